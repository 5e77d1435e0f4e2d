"""Text files: plain text, JSON, JSON Lines, and tables in Parquet or Arrow.

FILE.txt            the whole file: UTF-8, or UTF-16 or UTF-32 with a byte-order mark (which is dropped).
                    Line ends are kept.  Also .raw, .text, .md and any other file that is text.
FILE.jsonl#FIELD    one JSON object a line; also .json, which may be an array of objects.  FIELD is `text` by
                    default, `a.b` is field `b` of field `a`, of every element where `a` is a list.
FILE.parquet#COLUMN one document a row, the column `text` by default; `a.b` as above.  Also .arrow, as `datasets` saves
                    its tables, and .feather.

Each may be compressed with gzip, bzip2, xz, zstd or lz4, or be the only file in a zip archive.  The name decides the
kind, the content the compression; a file with another name is recognised by its content.  Documents are joined by a
blank line; rows without text are skipped and counted in a note.  A folder is not accepted: which of its files are
text, and in which order, would be a guess that changes the numbers.
"""

from __future__ import annotations

import codecs
import io
import json
import lzma
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ptq_eval.corpora.base import Text, TextSource, joined, marked_documents, text_digest
from ptq_eval.corpora.documents import DEFAULT_FIELD, Documents
from ptq_eval.corpora.files import (
    content_name,
    not_text,
    open_bytes,
    require_file,
    require_text,
    split_spec,
    uncompressed_name,
)
from ptq_eval.corpora.tables import TABLES, is_table, read_table
from ptq_eval.errors import TextSourceError

PLAIN = (".txt", ".text", ".raw", ".md")
JSON = (".jsonl", ".ndjson", ".jsonlines", ".json")

_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16, whose mark it begins with
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


class TextFile(TextSource):
    """`FILE.txt`, `FILE.jsonl[#FIELD]`, `FILE.parquet[#COLUMN]` or `FILE.arrow[#COLUMN]`."""

    name = "textfile"
    help = "FILE.txt, FILE.jsonl[#FIELD], FILE.parquet[#COLUMN], FILE.arrow[#COLUMN]: a text file, compressed or not"
    examples = ("FILE.txt", "FILE.jsonl", "FILE.parquet", "FILE.arrow")

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
        except (OSError, EOFError, zlib.error, lzma.LZMAError, zipfile.BadZipFile) as error:
            raise TextSourceError(
                "the file cannot be read", got=f"{path} ({error})", remedy="fetch it again"
            ) from error
        name, digest = path.name.split(".")[0], text_digest(text, spec)
        return Text(spec=spec, digest=digest, text=text, name=name, notes=notes, documents=starts)


def _known(name: str) -> bool:
    return uncompressed_name(name).endswith(PLAIN + JSON + TABLES)


def _rows_reader(path: Path, field: str) -> Callable[[Path, str], Iterator[tuple[str, Any]]] | None:
    """The function that reads the rows of the file, or None for plain text."""
    start, name = _beginning(path), content_name(path)
    if is_table(start) or name.endswith(TABLES):
        return read_table
    if not any(start.startswith(mark) for mark, _ in _MARKS):
        require_text(path, start)
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


def _beginning(path: Path) -> bytes:
    with open_bytes(path) as file:
        return file.read(1 << 16)


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
        got = f"byte 0x{error.object[error.start]:02x} at position {error.start} of {path}"
        raise not_text(path, got, data[: 1 << 16]) from error
    if text.count("\0") > len(text) // 100:
        raise not_text(path, f"{text.count(chr(0))} zero bytes in {len(text)} characters of {path}", data)
    return text


def _object(names: Sequence[str], pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object.  Raises ValueError where a field of these names occurs twice, whose last value would be read."""
    found = dict(pairs)
    if len(found) < len(pairs) and (twice := [n for n in names if sum(key == n for key, _ in pairs) > 1]):
        raise ValueError(f"the field {twice[0]!r} occurs twice in one object")
    return found


def _json(path: Path, field: str) -> Iterator[tuple[str, Any]]:
    """The objects of JSON Lines, or the elements of a JSON array (or one object), each with its place."""
    with open_bytes(path) as file:
        encoding = _encoding(file.read(4))
    read = json.JSONDecoder(object_pairs_hook=partial(_object, field.split("."))).decode
    with open_bytes(path) as file, io.TextIOWrapper(file, encoding=encoding, newline="\n") as lines:
        number, first = 0, True
        try:
            for number, line in enumerate(lines, 1):
                if not line.strip():
                    continue
                try:
                    row = read(line)
                except ValueError:
                    if not first:
                        raise
                    row = read(line + lines.read())  # an array or an object written over several lines
                first = False
                if isinstance(row, list):
                    yield from ((f"element {place}", element) for place, element in enumerate(row))
                else:
                    yield f"line {number}", row
        except UnicodeDecodeError as error:
            raise not_text(path, f"{error.reason} near line {number + 1} of {path}", _beginning(path)) from error
        except (ValueError, RecursionError) as error:
            raise TextSourceError(
                "the file is not JSON",
                got=f"line {number} of {path} ({error})",
                allowed="one object a line, or one array of objects",
                remedy="write one object a line",
            ) from error
