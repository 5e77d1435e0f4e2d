"""Which checkpoints of a run that is still training are complete.

A folder may be seen while its files are written, and nothing in it says which file is the last.  A checkpoint counts as
complete when its files have been seen unchanged for `settle` seconds and nothing that verification finds is fatal.  One
that still has a fatal problem after `patience` seconds without any change counts as complete too: it is damaged, and
waiting would not help.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from ptq_eval.records import Checkpoint

Files: TypeAlias = tuple[tuple[str, int, int], ...]
"""(path, bytes, time of the last change in ns) of every file of a checkpoint."""


def files_of(checkpoint: Checkpoint) -> Files:
    """The files in a checkpoint's folder and below; nothing for one that is not a folder here, or is gone."""
    folder, found = Path(checkpoint.location), []
    for path in sorted(folder.rglob("*")) if folder.is_dir() else ():
        try:
            state = path.stat()
        except OSError:  # deleted, or renamed at the end of writing it
            continue
        found.append((path.relative_to(folder).as_posix(), state.st_size, state.st_mtime_ns))
    return tuple(found)


LONG = 10
"""How many times `settle` a change must be past to count as long ago."""


@dataclass
class Arrivals:
    """The checkpoints seen so far; times in seconds."""

    settle: float
    patience: float
    _seen: dict[str, tuple[Files, float]] = field(default_factory=dict, init=False)

    def still(self, checkpoints: Sequence[Checkpoint], now: float | None = None) -> list[Checkpoint]:
        """Those whose files have not changed for `settle` seconds; a remote one never changes."""
        now = time.time() if now is None else now
        return [checkpoint for checkpoint in checkpoints if self._age(checkpoint, now) >= self.settle]

    def complete(self, verified: Checkpoint, now: float | None = None) -> bool:
        """Whether a verified checkpoint is to be taken as it is: sound, or damaged for longer than `patience`."""
        now = time.time() if now is None else now
        return not verified.fatal or self._age(verified, now) >= self.patience

    def _age(self, checkpoint: Checkpoint, now: float) -> float:
        """For how many seconds the files have been seen unchanged.

        Clocks of file servers may be wrong by a minute, so the time of the last change counts only where it is long
        past when the folder is seen first: `LONG` times `settle`.
        """
        files = files_of(checkpoint)
        if not files:
            return math.inf if checkpoint.location.startswith("hub:") else 0.0
        latest = max(changed for *_, changed in files) / 1e9
        first = latest if now - latest >= LONG * self.settle else now
        before, since = self._seen.get(checkpoint.location, (files, first))
        since = since if before == files else now
        self._seen[checkpoint.location] = files, since
        return now - since
