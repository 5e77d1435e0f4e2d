"""Rows in parallel: once grid and factor are known, the rows of a weight do not depend on each other.

Each thread takes a range of rows through the whole computation, while torch's own threads are idle.  Splitting every
operation over torch's threads instead would synchronise them after each one, and threads of torch that wait for the
next operation spin, taking the cores that a compiled loop in other threads needs.

torch has one count of threads for the whole process.  It is lowered for one call at a time, and others wait: with two
at once, one would restore what the other had lowered.  A thread of the caller that starts meanwhile is given the
lowered count by torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Lock
from typing import TypeVar

import torch

T = TypeVar("T")
_COUNT = Lock()
"""Held while torch's count of threads is lowered."""


def over_rows(task: Callable[[int, int], T], rows: int, threads: int, *, multiple: int = 64) -> list[T]:
    """The results of `task(first, last)` for ranges that cover all rows, in order, each in a thread of its own.

    At most `threads` ranges, and no more than torch has threads here, which within a task is one; all but the last with
    a length that is a multiple of `multiple`.  A single range runs in the calling thread.
    """
    threads = min(threads, torch.get_num_threads())
    step = -(-rows // (max(threads, 1) * multiple)) * multiple
    ranges = [(first, min(first + step, rows)) for first in range(0, rows, step)]
    if len(ranges) == 1:
        return [task(*ranges[0])]
    with _COUNT, one_thread(), ThreadPoolExecutor(len(ranges)) as pool:
        return list(pool.map(lambda each: task(*each), ranges))


@contextmanager
def one_thread() -> Iterator[None]:
    """Within the context, every thread runs its torch operations by itself.  For a whole process: see the module."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
