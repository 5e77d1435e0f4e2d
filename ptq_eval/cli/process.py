"""What the command line sets for its own process before torch starts; a library must leave these to its caller.

Threads.  torch's operations end in a barrier at which libgomp's threads spin for milliseconds.  On a quiet machine the
next operation begins before that; on a busy one the thread that is waited for has lost its core to the spinning one.
Beside three busy processes on two cores a run took 134 s that way, and 61 s when waiting threads slept at once, which
costs 11 % on a quiet machine.  A short spin costs nothing there and gives the core back soon.  `benchmarks/busy.py`
measures it.  A variable that the user has set is kept.

Memory.  See `ptq_eval.measure.memory.keep_freed_memory`.

Output.  Where the reader of a pipe ends first, as in `ptq-eval fit … | head`, what is left to print is dropped, and the
command goes on: it writes its files and ends with its own exit code.
"""

from __future__ import annotations

import io
import os
import sys
from typing import Any

from ptq_eval.measure.memory import keep_freed_memory

OPENMP = {"GOMP_SPINCOUNT": "3000"}
"""Turns of the waiting loop, some 10 microseconds; without it libgomp makes 300,000."""


class _Pipe(io.FileIO):
    """A file that takes whatever is written to it, and drops it once nobody reads at the other end."""

    def write(self, data: Any) -> int | None:
        """Bytes written or dropped."""
        try:
            return super().write(data)
        except BrokenPipeError:
            return memoryview(data).nbytes


def prepare_process() -> None:
    """Set how threads wait, how memory is freed and what a closed pipe means; call it before torch is imported."""
    for name in ("stdout", "stderr"):
        out = getattr(sys, name)
        if out is not None and out is getattr(sys, f"__{name}__"):
            raw = io.BufferedWriter(_Pipe(out.fileno(), "wb", closefd=False))
            at_once = out.isatty() or name == "stderr"
            setattr(sys, name, io.TextIOWrapper(raw, out.encoding, out.errors, line_buffering=at_once))
    if "OMP_WAIT_POLICY" not in os.environ:
        for name, value in OPENMP.items():
            os.environ.setdefault(name, value)
    keep_freed_memory()
