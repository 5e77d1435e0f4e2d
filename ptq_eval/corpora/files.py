"""Local files of texts: which file a spec names, and its content decompressed.

How a file is compressed is recognised by its first bytes, not by its name, so a renamed download and a `.gz` that
the browser has already decompressed are both read.  zstd and lz4 go through pyarrow, which `datasets` requires; the
others are in the standard library.  Formats that hold no plain text are recognised in the same way and refused by name.
"""

from __future__ import annotations

import bz2
import codecs
import gzip
import io
import lzma
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, cast

from ptq_eval.errors import TextSourceError, did_you_mean

COMPRESSIONS = (".gz", ".gzip", ".bz2", ".xz", ".zst", ".zstd", ".lz4", ".zip")
"""Endings of compressed files, after the ending of what they hold."""

_LZ4 = b"\x04\x22\x4d\x18"
_SKIPPABLE = tuple(bytes([byte]) for byte in range(0x50, 0x60))
_ZIP = (b"PK\x03\x04", b"PK\x05\x06")
_POINTER = b"version https://git-lfs.github.com/spec/"

_EXTRACT = "extract its text, for example as .txt or .jsonl"
_UNPACK = "unpack it, and name one file of text"
_DECOMPRESS = "decompress it, or compress it with gzip, bzip2, xz, zstd or lz4"
_NO_TEXT = (
    (0, b"%PDF-", "a PDF document", _EXTRACT),
    (0, b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "a Microsoft Office document", _EXTRACT),
    (0, b"{\\rtf", "a document in rich text format", _EXTRACT),
    (257, b"ustar", "a tar archive", _UNPACK),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7z archive", _UNPACK),
    (0, b"Rar!\x1a\x07", "a RAR archive", _UNPACK),
    (0, b"\x1f\x9d", "compressed with compress (.Z)", _DECOMPRESS),
    (0, b"LZIP", "compressed with lzip", _DECOMPRESS),
    (0, b"\x02\x21\x4c\x18", "compressed in lz4's legacy format", _DECOMPRESS),
    (0, b"\xff\x06\x00\x00sNaPpY", "compressed with Snappy", _DECOMPRESS),
    (0, b"\x89LZO", "compressed with lzop", _DECOMPRESS),
    (0, b"\x5d\x00\x00", "compressed with lzma alone (.lzma)", _DECOMPRESS),
    (
        0,
        b"\x93NUMPY",
        "a NumPy array",
        "save token ids alone as .npy, with numpy.save",
    ),
    (0, b"MMIDIDX", "a Megatron index", "name the .bin file beside it"),
    (0, b"FEA1", "Feather, version 1", "save it as Parquet, Arrow or .jsonl"),
    (0, b"ORC", "a table in ORC", "save it as Parquet, Arrow or .jsonl"),
    (0, b"Obj\x01", "a table in Avro", "save it as Parquet, Arrow or .jsonl"),
    (0, b"PARE", "encrypted Parquet", "save it without encryption"),
    (0, b"SQLite format 3\x00", "an SQLite database", "save its column of text as .jsonl or .parquet"),
    (0, b"\x89HDF\r\n\x1a\n", "an HDF5 file", "save its texts as .jsonl, or its token ids as .npy"),
    (0, b"GGUF", "a model in GGUF", "name a text"),
    (0, b"\x89PNG\r\n", "an image", "name a text"),
    (0, b"\xff\xd8\xff", "an image", "name a text"),
    (0, b"\x7fELF", "a program", "name a text"),
    (0, b"\x80\x04\x95", "a Python pickle", "save its texts as .jsonl, or its token ids as .npy"),
)
"""(position, bytes there, what such a file is, what to do instead)."""

_CONTROLS = bytes({*range(32), 127} - {*b"\t\n\v\f\r\x1b"})


def split_spec(spec: str, known: Callable[[str], bool]) -> tuple[str, str]:
    """`FILE#FIELD` → (FILE, FIELD); the field is empty where there is none.

    File and folder names may contain `#`: the longest start of `spec` that is an existing file is taken, then the
    longest whose name is `known` as a text's.
    """
    cuts = [len(spec), *(place for place in reversed(range(len(spec))) if spec[place] == "#")]
    parts = [(spec[:cut], spec[cut + 1 :]) for cut in cuts]
    for part in parts:
        if os.path.isfile(part[0]):
            return part
    return next((part for part in parts if known(part[0])), (spec, ""))


def uncompressed_name(name: str) -> str:
    """`name` in lower case, without the ending of a compression."""
    stem, ending = os.path.splitext(name.lower())
    return stem if ending in COMPRESSIONS else name.lower()


def content_name(path: Path) -> str:
    """The name of what the file holds, in lower case: of the one file in a zip archive, else its own."""
    return zip_member(path).lower() if first_bytes(path).startswith(_ZIP) else uncompressed_name(path.name)


def require_file(path: Path) -> None:
    """TextSourceError unless `path` is a file whose content is present."""
    if path.is_dir():
        raise TextSourceError("a text is one file, not a folder", got=path, remedy="name the file in it")
    if path.exists() and not path.is_file():
        what, remedy = "a pipe or a device, not a text file", "write the text into a file, and name that"
        raise TextSourceError(what, got=path, remedy=remedy)
    if not path.is_file():
        near = did_you_mean(path.name, os.listdir(path.parent)) if path.parent.is_dir() else ""
        raise TextSourceError("there is no such text file", got=path, remedy=near or "check the path")
    if first_bytes(path).startswith(_POINTER):
        raise TextSourceError(
            "the file is a Git LFS pointer, not the content", got=path, remedy="fetch the content with git lfs pull"
        )


def first_bytes(path: Path, count: int = 64) -> bytes:
    """The first `count` bytes of the file as stored."""
    with path.open("rb") as file:
        return file.read(count)


def open_bytes(path: Path) -> IO[bytes]:
    """The file's content, decompressed where it is compressed.

    Reading raises OSError, EOFError, zlib.error, lzma.LZMAError or zipfile.BadZipFile where the compressed data are
    damaged.  Raises TextSourceError for a zip archive of more than one file.
    """
    kind = compression(first_bytes(path))
    if kind == "zip":
        return zipfile.ZipFile(path).open(zip_member(path))
    if kind in ("zstd", "lz4"):
        import pyarrow

        stream: Any = pyarrow.input_stream(str(path), compression=kind)
        return io.BufferedReader(stream)
    openers: dict[str, Callable[..., Any]] = {"gzip": gzip.open, "bzip2": bz2.open, "xz": lzma.open}
    return cast("IO[bytes]", openers[kind](path, "rb")) if kind else path.open("rb")


def compression(start: bytes) -> str:
    """How a file that begins with `start` is compressed: gzip, bzip2, xz, zstd, lz4, zip; empty where it is not."""
    if start.startswith(b"\x1f\x8b"):
        return "gzip"
    if start.startswith(b"BZh") and start[4:10] in (b"1AY&SY", b"\x17rE8P\x90"):
        return "bzip2"
    if start.startswith(b"\xfd7zXZ\x00"):
        return "xz"
    # A zstd file may begin with a skippable frame, as pzstd writes them.
    if start.startswith(b"\x28\xb5\x2f\xfd") or (start[:1] in _SKIPPABLE and start[1:4] == b"\x2a\x4d\x18"):
        return "zstd"
    if start.startswith(_LZ4):
        return "lz4"
    return "zip" if start.startswith(_ZIP) else ""


def zip_member(path: Path) -> str:
    """The name of the only file in a zip archive.  Raises TextSourceError."""
    with zipfile.ZipFile(path) as archive:
        # macOS adds a folder of its own to archives.
        files = [item for item in archive.infolist() if not item.is_dir() and not item.filename.startswith("__MACOSX/")]
    if len(files) != 1:
        names = ", ".join(item.filename for item in files[:3]) + (", …" if len(files) > 3 else "")
        raise TextSourceError(
            f"a zip archive of {len(files)} files is not one text",
            got=f"{path} with {names}" if files else path,
            allowed="a zip archive of one text file",
            remedy="unpack it, and name one file of text",
        )
    if files[0].flag_bits & 1:
        raise TextSourceError("the zip archive needs a password", got=path, remedy="unpack it, and name the file in it")
    return files[0].filename


def require_text(path: Path, start: bytes) -> None:
    """TextSourceError, with advice, where the content of `path` begins with `start` and that is no text's beginning.

    A zero byte among the first 8,000 marks a binary file, as it does for git.
    """
    for position, magic, what, remedy in _NO_TEXT:
        # ORC and PARE begin words as well: of letters alone, only those before binary content count.
        if start[position:].startswith(magic) and (not magic.isalnum() or _controls(start)):
            raise TextSourceError(f"the file is {what}, which is not read", got=path, remedy=remedy)
    if compression(start):
        raise TextSourceError("the file is compressed twice", got=path, remedy="decompress it once")
    if b"\0" in start[:8000]:
        raise not_text(path, f"zero bytes in {path}", start)


def not_text(path: Path, got: str, start: bytes) -> TextSourceError:
    """The error for a file without a byte-order mark that is not UTF-8; the advice depends on how it begins."""
    pairs = len(start) // 2
    for order, high in (("LE", start[1::2]), ("BE", start[::2])):
        if pairs and high.count(0) > 0.9 * pairs and start.count(0) < 1.1 * pairs:
            what, remedy = "the file is UTF-16 without a byte-order mark", f"iconv -f UTF-16{order} -t UTF-8"
            return TextSourceError(what, got=got, remedy=f"convert it: {remedy} {path.name}")
    if _controls(start) > len(start) // 100:
        remedy = "save its text as UTF-8 in a .txt or .jsonl file, or its token ids as .npy"
        return TextSourceError("the file is binary, not text", got=got, remedy=remedy)
    if "\0" in (text := codecs.getincrementaldecoder("utf-8")("replace").decode(start)) and "\ufffd" not in text:
        remedy = f"remove them: tr -d '\\000' < {path.name} > clean.txt"
        return TextSourceError("the file holds zero bytes, which no text has", got=got, remedy=remedy)
    return TextSourceError(
        "the file is not UTF-8 text and has no byte-order mark",
        got=got,
        remedy="find out its encoding, such as GB18030, SHIFT_JIS or LATIN1, and convert it: "
        f"iconv -f ENCODING -t UTF-8 {path.name} > utf8.txt",
    )


def _controls(start: bytes) -> int:
    """Bytes that do not occur in text, whatever its 8-bit encoding."""
    return len(start) - len(start.translate(None, _CONTROLS))
