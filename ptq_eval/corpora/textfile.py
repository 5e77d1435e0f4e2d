"""Text files: plain text, JSON lines and Parquet tables.

FILE.txt            the whole file, UTF-8, byte for byte (a byte-order mark is dropped); also .txt.gz and
.txt.bz2
FILE.jsonl#FIELD    one JSON object a line, the field `text` by default; also .jsonl.gz and .jsonl.bz2
FILE.parquet#COLUMN one document a row, the column `text` by default

Documents of the last two are joined by a blank line.  A folder is not accepted: which of its files are text,
and in what order they follow one another, would be a guess that changes the numbers.
"""

from __future__ import annotations

import bz2
import codecs
import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from ptq_eval.corpora.base import Text, TextSource, joined, text_digest
from ptq_eval.errors import TextSourceError

PLAIN = (".txt", ".txt.gz", ".txt.bz2")
LINES = (".jsonl", ".jsonl.gz", ".jsonl.bz2")
TABLES = (".parquet",)


class TextFile(TextSource):
    """`FILE.txt`, `FILE.jsonl[#FIELD]` or `FILE.parquet[#COLUMN]`."""

    name = "textfile"
    help = "FILE.txt, FILE.jsonl[#FIELD], FILE.parquet[#COLUMN]: a local text file"
    examples = ("FILE.txt", "FILE.jsonl", "FILE.parquet")

    @classmethod
    def claims(cls, spec: str) -> bool:
        """A path with one of the endings, whether it exists or not."""
        path, _ = split_spec(spec)
        return path.lower().endswith(PLAIN + LINES + TABLES)

    def read(self, spec: str, *, max_chars: int | None = None) -> Text:
        """The file's text.

        Raises TextSourceError for a missing or damaged file, bytes that are not UTF-8, and a missing field.
        """
        name, field = split_spec(spec)
        path, ending = Path(name), name.lower()
        require_file(path)
        try:
            if ending.endswith(PLAIN):
                text = _plain(path, max_chars)
            else:
                documents = _lines if ending.endswith(LINES) else _table
                text = joined(documents(path, field or "text"), "\n\n", max_chars)
        except (OSError, EOFError, zlib.error) as error:
            raise TextSourceError(
                "the file cannot be read", got=f"{path} ({error})", remedy="fetch it again"
            ) from error
        return Text(spec=spec, digest=text_digest(text, spec), text=text, name=path.name.split(".")[0])


def split_spec(spec: str) -> tuple[str, str]:
    """`FILE#FIELD` → (FILE, FIELD); the field is empty where there is none."""
    path, mark, field = spec.rpartition("#")
    return (path, field) if mark else (spec, "")


def require_file(path: Path) -> None:
    """TextSourceError unless `path` is a file."""
    if path.is_dir():
        raise TextSourceError("a text is one file, not a folder", got=path, remedy="name the file in it")
    if not path.is_file():
        raise TextSourceError("there is no such text file", got=path, remedy="check the path")


def _open(path: Path) -> IO[bytes]:
    opener = {".gz": gzip.open, ".bz2": bz2.open}.get(path.suffix.lower(), open)
    return opener(path, "rb")


def _plain(path: Path, max_chars: int | None) -> str:
    with _open(path) as file:
        # A character has at most four bytes, and the byte-order mark three; one cut at the end is left out.
        data = file.read() if max_chars is None else file.read(4 * max_chars + 3)
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    try:
        return decoder.decode(data, final=max_chars is None)[:max_chars]
    except UnicodeDecodeError as error:
        raise TextSourceError(
            "the file is not UTF-8 text",
            got=f"byte 0x{error.object[error.start]:02x} at position {error.start} of {path}",
            remedy="convert it, for example with iconv -t utf-8",
        ) from error


def _lines(path: Path, field: str) -> Iterator[str]:
    with _open(path) as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:  # bytes that are not UTF-8, too
                raise TextSourceError(
                    "a line is not JSON",
                    got=f"line {number} of {path} ({error})",
                    remedy="write one object a line",
                ) from error
            if isinstance(row, dict) and field in row and row[field] is None:
                continue  # an empty document, as a null in a column of a .parquet
            if not isinstance(row, dict) or not isinstance(row.get(field), str):
                raise _no_field(path, field, list(row) if isinstance(row, dict) else [], f"line {number} of {path}")
            yield row[field]


def _table(path: Path, column: str) -> Iterator[str]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as table:
            schema = table.schema_arrow
            types = pyarrow.types
            strings = [f.name for f in schema if types.is_string(f.type) or types.is_large_string(f.type)]
            if column not in strings:
                raise _no_field(path, column, schema.names, path)
            for batch in table.iter_batches(batch_size=1024, columns=[column]):
                yield from (document for document in batch.column(0).to_pylist() if document is not None)
    except pyarrow.ArrowException as error:
        raise TextSourceError(
            "the file is not readable Parquet", got=f"{path} ({error})", remedy="fetch it again"
        ) from error


def _no_field(path: Path, field: str, present: list[str], where: object) -> TextSourceError:
    return TextSourceError(
        f"there is no text under {field!r}",
        got=where,
        allowed=f"fields present: {', '.join(present) or 'none'}",
        remedy=f"name one that holds text: {path}#FIELD",
    )
