"""Small files of checkpoints, mostly JSON, as whoever wrote them meant them.

They are read in UTF-8, UTF-16 or UTF-32, with or without a mark at the beginning, as the content says.  A key that
occurs twice in an object is an error: readers take the last value without a word, and an editor may show the first.
"""

from __future__ import annotations

import errno
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any


def load_json(path: Path, of: Callable[[dict[str, Any]], Any] = lambda entry: entry) -> Any:
    """The content of a file, each object passed through `of`.

    Raises OSError, and ValueError for what is no JSON or has a key twice.
    """

    def unique(pairs: list[tuple[str, Any]]) -> Any:
        entry = dict(pairs)
        if len(entry) < len(pairs):
            names = [name for name, _ in pairs]
            raise ValueError(f"the key {next(name for name in names if names.count(name) > 1)!r} occurs twice")
        return of(entry)

    try:
        return json.loads(file_content(path), object_pairs_hook=unique)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def file_content(path: Path) -> bytes:
    """The bytes of a file.  Raises OSError, also for a pipe or a device, which might never end."""
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "a folder" if path.is_dir() else "a pipe, a socket or a device", str(path))
    return path.read_bytes()
