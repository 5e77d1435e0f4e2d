"""Rows in parallel: the rows of a weight are independent once their grid and factor are known.

Each thread takes some rows through a whole computation, with torch's own threads at rest.  Splitting every operation
over torch's threads instead would make them meet after each, and its idle threads, which wait by spinning for the next
operation, would hold the cores that a compiled loop in other threads needs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch

T = TypeVar("T")


def over_rows(task: Callable[[int, int], T], rows: int, threads: int, *, multiple: int = 64) -> list[T]:
    """What `task(first, last)` gives for ranges that cover all rows, in order, each in a thread of its own.

    At most `threads` ranges, whose lengths, but for the last, are multiples of `multiple`.  A single range runs in the
    calling thread.
    """
    step = -(-rows // (max(threads, 1) * multiple)) * multiple
    ranges = [(first, min(first + step, rows)) for first in range(0, rows, step)]
    if len(ranges) == 1:
        return [task(*ranges[0])]
    with _one_thread_each(), ThreadPoolExecutor(len(ranges)) as pool:
        return list(pool.map(lambda each: task(*each), ranges))


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """Threads started meanwhile run each operation of torch alone."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
