"""Local files: which file a spec names, and its content, decompressed.

How a file is compressed is recognised by its first bytes, not by its name, so a renamed download and a `.gz` that
the browser has already decompressed are both read.  zstd goes through pyarrow, which `datasets` requires; the
others are in the standard library.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, cast

from ptq_eval.errors import TextSourceError

COMPRESSIONS = (".gz", ".gzip", ".bz2", ".xz", ".zst", ".zstd")
"""Endings of compressed files, after the ending of what they hold."""

_POINTER = b"version https://git-lfs.github.com/spec/"


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


def require_file(path: Path) -> None:
    """TextSourceError unless `path` is a file whose content is present."""
    if path.is_dir():
        raise TextSourceError("a text is one file, not a folder", got=path, remedy="name the file in it")
    if not path.is_file():
        raise TextSourceError("there is no such text file", got=path, remedy="check the path")
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

    Reading raises OSError, EOFError, zlib.error or lzma.LZMAError where the compressed data are damaged.
    """
    start = first_bytes(path)
    if start.startswith(b"\x1f\x8b"):
        return cast("IO[bytes]", gzip.open(path, "rb"))
    if start.startswith(b"BZh") and start[4:10] in (b"1AY&SY", b"\x17rE8P\x90"):
        return cast("IO[bytes]", bz2.open(path, "rb"))
    if start.startswith(b"\xfd7zXZ\x00"):
        return cast("IO[bytes]", lzma.open(path, "rb"))
    # A zstd file may begin with a skippable frame, as pzstd writes them.
    if start.startswith(b"\x28\xb5\x2f\xfd") or (start[:1] in _SKIPPABLE and start[1:4] == b"\x2a\x4d\x18"):
        import pyarrow

        stream: Any = pyarrow.input_stream(str(path), compression="zstd")
        return io.BufferedReader(stream)
    return path.open("rb")


_SKIPPABLE = tuple(bytes([byte]) for byte in range(0x50, 0x60))
