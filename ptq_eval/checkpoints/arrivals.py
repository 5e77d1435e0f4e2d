"""Which checkpoints of a run that is still training are complete.

A folder may be seen while its files are written, and nothing in it says which file is the last.  A checkpoint counts as
complete when its files have been seen unchanged for `settle` seconds and it can be measured.  One that still cannot
after `patience` seconds without any change is damaged, and no longer waited for.
"""

from __future__ import annotations

import math
import re
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from ptq_eval.records import Checkpoint

Files: TypeAlias = tuple[tuple[str, int, int], ...]
"""(path, bytes, time of the last change in ns) of every file of a checkpoint."""


def files_of(checkpoint: Checkpoint) -> Files:
    """The files in a checkpoint's folder and below, or the file it is; nothing for one that is not here, or is gone."""
    return files_in(Path(checkpoint.location))


def files_in(folder: Path) -> Files:
    """The files in a folder and below, in order of path, or the file of that name; nothing where there is neither."""
    found = []
    for path in sorted(folder.rglob("*")) if folder.is_dir() else (folder,):
        try:
            state = path.stat()
        except OSError:  # deleted, or renamed at the end of writing it
            continue
        found.append((path.relative_to(folder).as_posix(), state.st_size, state.st_mtime_ns))
    return tuple(found)


def remove(folder: Path) -> None:
    """Delete a checkpoint's folder so that another process, which may look at any moment, never sees half of it."""
    hidden = folder.with_name(f".removed-{folder.name}")
    with suppress(OSError):
        shutil.rmtree(hidden, ignore_errors=True)
        folder.rename(hidden)
        shutil.rmtree(hidden, ignore_errors=True)


_TEMPORARY = re.compile(r"(tmp|temp|partial|incomplete)[-_.].+|.+[-_.](tmp|temp|partial|incomplete)", re.IGNORECASE)
"""Names of folders that are renamed once they are written, such as `tmp-checkpoint-500`."""


def is_temporary(checkpoint: Checkpoint) -> bool:
    """Whether the name of a checkpoint's folder says that it is still being written."""
    return any(_TEMPORARY.fullmatch(part) for part in checkpoint.revision.split("/"))


LONG = 10
"""How many times `settle` a change must be past to count as long ago."""


@dataclass
class Arrivals:
    """The checkpoints seen so far; times in seconds."""

    settle: float
    patience: float
    clock: Callable[[], float] = time.monotonic
    wall_clock: Callable[[], float] = time.time
    _seen: dict[str, tuple[Files, float]] = field(default_factory=dict, init=False)

    def still(self, checkpoints: Sequence[Checkpoint], now: float | None = None) -> list[Checkpoint]:
        """Those whose files have not changed for `settle` seconds; a remote one never changes."""
        now = self.clock() if now is None else now
        return [checkpoint for checkpoint in checkpoints if self._age(checkpoint, now) >= self.settle]

    def given_up(self, checkpoint: Checkpoint, now: float | None = None) -> bool:
        """Whether a checkpoint with a problem has not changed for `patience` seconds: waiting would not help."""
        return self._age(checkpoint, self.clock() if now is None else now) >= self.patience

    def _age(self, checkpoint: Checkpoint, now: float) -> float:
        """For how many seconds the files have been seen unchanged, by a clock that never jumps.

        Clocks of file servers may be wrong by a minute, so the time of the last change counts only where it is long
        past when the folder is seen first: `LONG` times `settle`.
        """
        files = files_of(checkpoint)
        if not files:
            return math.inf if checkpoint.location.startswith("hub:") else 0.0
        unchanged = self.wall_clock() - _came(Path(checkpoint.location), files)
        first = now - unchanged if unchanged >= LONG * self.settle else now
        before, since = self._seen.get(checkpoint.location, (files, first))
        since = since if before == files else now
        self._seen[checkpoint.location] = files, since
        return now - since


def _came(folder: Path, files: Files) -> float:
    """When the last of these files came to be as it is here, in seconds of the clock on the wall.

    A copy keeps the time of the last change of its original (`rsync -a`, `cp -p`), which says nothing about the
    copying; the time of the last change of its entry is its own.
    """
    latest = max(changed for *_, changed in files) / 1e9
    for name, *_ in files:
        with suppress(OSError):  # deleted, or renamed meanwhile
            latest = max(latest, (folder / name).stat().st_ctime)
    return latest
