"""Checkpoints of other formats as folders that transformers loads: links to their weights, and small files beside them.

Such a folder is made once for the same files and kept below `home()`, where every process finds it.  It holds links as
long as the tensors keep their names; a format that has to rename or reshape tensors writes them as safetensors.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ptq_eval.config.cache import cache_folder

if TYPE_CHECKING:
    from torch import Tensor

VERSION = 1
"""Raised whenever the content of staged folders changes."""


@dataclass(frozen=True)
class Content:
    """What a staged folder holds, by name of file: texts, links to files, and tensors for a `model.safetensors`."""

    texts: Mapping[str, str]
    links: Mapping[str, Path] = field(default_factory=dict)
    tensors: Mapping[str, Tensor] = field(default_factory=dict)

    def write(self, folder: Path) -> None:
        """Fill an empty folder."""
        for name, text in self.texts.items():
            (folder / name).write_text(text, encoding="utf-8")
        for name, target in self.links.items():
            (folder / name).symlink_to(target.absolute())
        if self.tensors:
            from safetensors.torch import save_file

            save_file(
                {name: tensor.contiguous() for name, tensor in self.tensors.items()}, folder / "model.safetensors"
            )


def home() -> Path:
    """The folder of all staged folders: `ptq-eval/staged` in the user's cache."""
    return cache_folder("staged")


def place_of(sources: Iterable[Path], facts: Mapping[str, Any]) -> Path:
    """The staged folder of these files and `facts`, which need not exist."""
    states = [(str(path.absolute()), *_state(path)) for path in sources]
    digest = hashlib.sha256(json.dumps([VERSION, states, facts], sort_keys=True, default=str).encode()).hexdigest()
    return home() / digest[:24]


def staged(sources: Iterable[Path], facts: Mapping[str, Any], make: Callable[[], Content]) -> Path:
    """The folder with what `make()` reads from `sources`, made if these files or `facts` are new.

    Raises what `make` raises, and leaves nothing behind then.
    """
    place = place_of(sources, facts)
    if not place.is_dir():
        home().mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(dir=home(), prefix=".new-"))
        try:
            make().write(folder)
            folder.rename(place)
        except OSError:
            if not place.is_dir():  # otherwise another process has just made it
                raise
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    return place


def _state(path: Path) -> tuple[int, int]:
    about = path.stat()
    return about.st_size, about.st_mtime_ns
