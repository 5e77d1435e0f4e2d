"""Where this package keeps what can be made again."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder(name: str) -> Path:
    """The folder of this name in the user's cache: below $XDG_CACHE_HOME, by default ~/.cache; it need not exist."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ptq-eval" / name
