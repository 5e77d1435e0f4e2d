"""One job after another in this process: torch already uses every core, or the one GPU."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any


class LocalExecutor:
    """Runs jobs in order in the calling process."""

    def map(self, fn: Callable[[Any], Any], jobs: Iterable[Any]) -> Iterator[Any]:
        """`fn(job)` for each job, lazily, in order."""
        return map(fn, jobs)
