"""Text files: plain text, JSON, JSON Lines and Parquet tables.

FILE.txt            the whole file: UTF-8, or UTF-16 or UTF-32 with a byte-order mark (which is dropped).
                    Line ends are kept.  Also .raw, .text, .md and any other file that is text.
FILE.jsonl#FIELD    one JSON object a line; also .json, which may be an array of objects.  FIELD is `text` by
                    default, `a.b` is field `b` of field `a`, of every element where `a` is a list.
FILE.parquet#COLUMN one document a row, the column `text` by default; `a.b` as above.

Each may be compressed with gzip, bzip2, xz or zstd.  The name decides the kind, the content the compression; a file
with another name is recognised by its content.  Documents are joined by a blank line; rows without text are skipped
and counted in a note.  A folder is not accepted: which of its files are text, and in which order, would be a guess
that changes the numbers.
"""

from __future__ import annotations

import codecs
import io
import json
import lzma
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from ptq_eval.corpora.base import Text, TextSource, joined, marked_documents, text_digest
from ptq_eval.corpora.files import (
    DEFAULT_FIELD,
    Documents,
    missing_field,
    open_bytes,
    require_file,
    split_spec,
    uncompressed_name,
)
from ptq_eval.errors import TextSourceError

PLAIN = (".txt", ".text", ".raw", ".md")
JSON = (".jsonl", ".ndjson", ".jsonlines", ".json")
TABLES = (".parquet", ".pq")

_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16, whose mark it begins with
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


class TextFile(TextSource):
    """`FILE.txt`, `FILE.jsonl[#FIELD]` or `FILE.parquet[#COLUMN]`."""

    name = "textfile"
    help = "FILE.txt, FILE.jsonl[#FIELD], FILE.parquet[#COLUMN]: a local text file, compressed or not"
    examples = ("FILE.txt", "FILE.jsonl", "FILE.parquet")

    @classmethod
    def claims(cls, spec: str) -> bool:
        """A path with one of the endings, whether it exists or not."""
        return _known(split_spec(spec, _known)[0])

    def read(self, spec: str, *, max_chars: int | None = None) -> Text:
        """The file's text.

        Raises TextSourceError for a missing or damaged file, bytes that are not text, and a missing field.
        """
        name, field = split_spec(spec, _known)
        path = Path(name)
        require_file(path)
        notes: tuple[str, ...] = ()
        try:
            rows = _rows_reader(path, field)
            if rows is None:
                text = _plain(path, max_chars)
                starts = marked_documents(text)
            else:
                documents = Documents(path, field, rows(path, field or DEFAULT_FIELD))
                text, starts = joined(documents, "\n\n", max_chars)
                notes = documents.notes()
        except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
            raise TextSourceError(
                "the file cannot be read", got=f"{path} ({error})", remedy="fetch it again"
            ) from error
        name, digest = path.name.split(".")[0], text_digest(text, spec)
        return Text(spec=spec, digest=digest, text=text, name=name, notes=notes, documents=starts)


def _known(name: str) -> bool:
    return uncompressed_name(name).endswith(PLAIN + JSON + TABLES)


def _rows_reader(path: Path, field: str) -> Callable[[Path, str], Iterator[tuple[str, Any]]] | None:
    """The function that reads the rows of the file, or None for plain text."""
    with open_bytes(path) as file:
        start = file.read(1 << 16)
    name = uncompressed_name(path.name)
    if start.startswith(b"PAR1") or name.endswith(TABLES):
        return _table
    if name.endswith(JSON) or (not _known(name) and (field or _is_json_line(start))):
        return _json
    if name.endswith((".csv", ".tsv")):
        raise TextSourceError(
            "a table of values separated by commas or tabs is not read as text",
            got=path,
            remedy="save the column of text as .jsonl or .parquet",
        )
    if field:
        raise TextSourceError("plain text has no fields", got=f"#{field}", remedy=f"name the file alone: {path}")
    return None


def _is_json_line(start: bytes) -> bool:
    try:
        return isinstance(json.loads(start.split(b"\n", 1)[0]), dict)
    except ValueError:
        return False


def _encoding(start: bytes) -> str:
    return next((encoding for mark, encoding in _MARKS if start.startswith(mark)), "utf-8")


def _plain(path: Path, max_chars: int | None) -> str:
    with open_bytes(path) as file:
        # A character takes at most four bytes, and so does the byte-order mark; one cut at the end is dropped.
        data = file.read() if max_chars is None else file.read(4 * max_chars + 4)
    decoder = codecs.getincrementaldecoder(_encoding(data))()
    try:
        text = decoder.decode(data, final=max_chars is None)[:max_chars]
    except UnicodeDecodeError as error:
        raise _not_text(path, f"byte 0x{error.object[error.start]:02x} at position {error.start} of {path}") from error
    if text.count("\0") > len(text) // 100:
        raise _not_text(path, f"{text.count(chr(0))} zero bytes in {len(text)} characters of {path}")
    return text


def _not_text(path: Path, got: str) -> TextSourceError:
    return TextSourceError(
        "the file is not UTF-8 text and has no byte-order mark",
        got=got,
        remedy=f"convert it, for example with iconv -f LATIN1 -t UTF-8 {path.name}; binary formats are not read",
    )


def _json(path: Path, field: str) -> Iterator[tuple[str, Any]]:
    """The objects of JSON Lines, or the elements of a JSON array (or one object), each with its place."""
    with open_bytes(path) as file:
        encoding = _encoding(file.read(4))
    with open_bytes(path) as file, io.TextIOWrapper(file, encoding=encoding, newline="\n") as lines:
        number, first = 0, True
        try:
            for number, line in enumerate(lines, 1):
                if not line.strip():
                    continue
                try:
                    row = json.loads(line)
                except ValueError:
                    if not first:
                        raise
                    row = json.loads(line + lines.read())  # an array or an object written over several lines
                first = False
                if isinstance(row, list):
                    yield from ((f"element {place}", element) for place, element in enumerate(row))
                else:
                    yield f"line {number}", row
        except UnicodeDecodeError as error:
            raise _not_text(path, f"{error.reason} near line {number + 1} of {path}") from error
        except ValueError as error:
            raise TextSourceError(
                "the file is not JSON",
                got=f"line {number} of {path} ({error})",
                allowed="one object a line, or one array of objects",
                remedy="write one object a line",
            ) from error


def _seekable(file: IO[bytes]) -> IO[bytes]:
    return file if file.seekable() else io.BytesIO(file.read())


def _holds_strings(kind: Any) -> bool:
    """Whether a column of this type holds strings, as they are or as a dictionary's values."""
    from pyarrow import types

    kind = kind.value_type if types.is_dictionary(kind) else kind
    return types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)


def _table(path: Path, field: str) -> Iterator[tuple[str, Any]]:
    """The rows of a Parquet file as objects of one column, each with its place."""
    import pyarrow
    import pyarrow.parquet

    try:
        with open_bytes(path) as file, pyarrow.parquet.ParquetFile(_seekable(file)) as table:
            schema = table.schema_arrow
            names = schema.names
            # Stand-ins for the columns that are not read, for messages: which there are, and which hold strings.
            others = {field.name: "" if _holds_strings(field.type) else None for field in schema}
            parts = field.split(".")
            heads = (".".join(parts[:length]) for length in range(len(parts), 0, -1))
            column = next((head for head in heads if head in names), None)
            if column is None:
                raise missing_field(path, field, others)
            batches = table.iter_batches(batch_size=1024, columns=[column])
            values = (value for batch in batches for value in batch.column(0).to_pylist())
            for number, value in enumerate(values, 1):
                yield f"row {number}", {**others, column: value}
    except pyarrow.ArrowException as error:
        raise TextSourceError(
            "the file is not readable Parquet", got=f"{path} ({error})", remedy="fetch it again"
        ) from error
