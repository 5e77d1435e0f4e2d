"""The next checkpoint brought near while one is measured: fetched from where it is, or read so that it is cached.

A process of its own does it, with low priority, because a download cannot be ended within a process; it ends with the
one that started it.  What it cannot do, whoever needs the checkpoint does in its turn, and says what is wrong.  Nothing
that is measured depends on it.  Files that are here already are only read, into the system's page cache, and only
where that has room for them beside what is being measured, and where reading them takes longer than the process does.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ptq_eval.backends.worker import end_with
from ptq_eval.checkpoints import local_path
from ptq_eval.errors import PtqEvalError
from ptq_eval.measure.memory import free_memory
from ptq_eval.models.weight_files import find_weights
from ptq_eval.records import Checkpoint

_SHARE_OF_MEMORY = 0.25
"""Share of the free memory that files which are read ahead may take: the model that is measured is mapped there too."""

_LEAST = 2**25
"""Bytes of files from which on they are read ahead: to start the process takes 0.2 CPU seconds, as long as a hard disk
takes for these."""

_PIECE = 2**23
"""Bytes that are read at a time."""

_NICE = 10


@dataclass(frozen=True)
class Near:
    """What is to be brought near: checkpoints to be fetched, and files to be read."""

    fetch: tuple[Checkpoint, ...] = ()
    read: tuple[Path, ...] = ()

    @classmethod
    def folder(cls, folder: Path) -> Near:
        """The weights in a folder, or the file."""
        with suppress(PtqEvalError, OSError):
            return cls(read=find_weights(folder).files if folder.is_dir() else (folder,))
        return cls()

    def __add__(self, other: Near) -> Near:
        return Near((*self.fetch, *other.fetch), (*self.read, *other.read))


class Prefetch:
    """Brings checkpoints near, those of one call at a time; a context that ends what is under way.

    memory: bytes that files may take of the page cache at the most.
    """

    def __init__(self, memory: int | None) -> None:
        self._memory = memory
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Prefetch:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    @property
    def busy(self) -> bool:
        """Whether something is under way."""
        return self._process is not None and self._process.poll() is None

    def begin(self, near: Near) -> None:
        """Bring this near from now on, in place of what is under way."""
        self.end()
        read = near.read if self._is_worth_it(near.read) else ()
        if not (near.fetch or read):
            return
        job = {"fetch": [checkpoint.to_dict() for checkpoint in near.fetch], "read": [str(path) for path in read]}
        with suppress(OSError):  # no process, no help
            self._process = subprocess.Popen(
                [sys.executable, "-m", __name__],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            assert self._process.stdin is not None
            with self._process.stdin as job_in:
                job_in.write(json.dumps(job).encode())

    def wait(self, say: Callable[[], object] = lambda: None) -> None:
        """Return once everything is near, or could not be brought; say() if that takes time."""
        if self.busy:
            say()
        if self._process is not None:
            self._process.wait()

    def end(self) -> None:
        """End what is under way."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def _is_worth_it(self, files: Sequence[Path]) -> bool:
        most = _SHARE_OF_MEMORY * free_memory("cpu")
        try:
            size = sum(path.stat().st_size for path in files)
        except OSError:
            return False
        return _LEAST <= size <= (most if self._memory is None else min(most, self._memory))


def bring(job: dict[str, list]) -> None:
    """What the process does, as far as that is possible."""
    for entry in job["fetch"]:
        with suppress(Exception):  # the checkpoint's turn will say what is wrong
            local_path(Checkpoint.from_dict(entry))
    for name in job["read"]:
        with suppress(OSError), open(name, "rb", buffering=0) as file:
            while file.read(_PIECE):
                pass


if __name__ == "__main__":
    end_with(os.getppid())
    if hasattr(os, "nice"):
        os.nice(_NICE)
    bring(json.load(sys.stdin))
