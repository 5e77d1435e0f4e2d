"""Executors: an object with `map(fn, jobs)`, which answers with results in the order of jobs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol


class Executor(Protocol):
    """Anything that can map a function over jobs."""

    def map(self, fn: Callable[[Any], Any], jobs: Iterable[Any]) -> Iterator[Any]:
        """`fn(job)` for each job, in order."""
        ...
