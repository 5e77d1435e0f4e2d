"""Where the time of a GPTQ solve goes: CPU seconds of its parts over all threads, and what arithmetic alone gives.

A solve takes the rows of a layer through the recursion in threads of their own, so wall time says little about a part;
CPU seconds are added up instead.  A part is timed by wrapping the function that does it, the outermost one where they
call each other: within a thread that takes rows, by that thread's clock, and else by the clock of the process, because
torch shares such a part over threads of its own.  What no wrapped function does is "rest"; waiting that a thread of
torch spends spinning is in it.
"""

from __future__ import annotations

import contextlib
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import torch

from quantizers import gptq, kernels
from quantizers.gptq.batch import SchemeBatch
from quantizers.gptq.solve import CarriedError

PARTS: list[tuple[str, Any, str]] = [
    ("statistics, copied", gptq, "finite_hessian"),
    ("factor", gptq, "damped_factor"),
    ("inverses of its blocks", torch.linalg, "solve_triangular"),
    ("products", CarriedError, "into"),
    ("products", torch, "baddbmm"),
    ("scales", SchemeBatch, "take_scales"),
    ("rounding kernel", kernels, "solve_block"),
]
"""(part, owner, function)."""

SHARED = ("statistics, copied", "factor", "inverses of its blocks")
"""What a solve of several bit-widths does once."""


def operations(rows: int, columns: int, bit_widths: int) -> tuple[float, float]:
    """Floating-point operations of (the factor, all products): columns³/3 once, rows·columns² for each bit-width."""
    return columns**3 / 3, float(bit_widths * rows * columns**2)


def bound(rows: int, columns: int, bit_widths: int) -> float:
    """Time of several bit-widths together over the time of one, if operations are all that counts and equally fast."""
    return sum(operations(rows, columns, bit_widths)) / sum(operations(rows, columns, 1))


def parts_of(solve: Callable[[], object], repeats: int) -> dict[str, float]:
    """CPU seconds by part of a call, medians of `repeats`; their sum is not quite the median of the whole."""
    found = [_once(solve) for _ in range(repeats)]
    return {part: statistics.median(one.get(part, 0.0) for one in found) for part in [*_names(), "rest"]}


def table_of(rows: int, columns: int, one: dict[str, float], four: dict[str, float], bit_widths: int) -> dict[str, Any]:
    """Parts of one bit-width and of several together side by side, and what operations alone would give."""
    body = [[part, one[part], four[part], _ratio(four[part], one[part])] for part in one]
    total = [sum(side.values()) for side in (one, four)]
    body.append(["sum", *total, _ratio(total[1], total[0])])
    for place, what in enumerate(("factor", "products")):
        counts = [operations(rows, columns, n)[place] / 1e9 for n in (1, bit_widths)]
        body.append([f"10⁹ operations, {what}", *counts, counts[1] / counts[0]])
    counts = [sum(operations(rows, columns, n)) / 1e9 for n in (1, bit_widths)]
    body.append(["10⁹ operations, both", *counts, bound(rows, columns, bit_widths)])
    return {
        "note": f"CPU seconds over all threads, medians. Done once for all bit-widths: {', '.join(SHARED)}. Each "
        "bit-width has differences from the original weights of its own, hence products, scales and rounding of its "
        "own. Of the factor: columns³ / 3 operations; of the products: rows · columns² for each bit-width.",
        "columns": ["part", "one bit-width", f"{bit_widths} together", "ratio"],
        "rows": body,
    }


def _ratio(several: float, one: float) -> float | None:
    return several / one if one > 0 else None


def _names() -> list[str]:
    return list(dict.fromkeys(part for part, _, _ in PARTS))


def _once(solve: Callable[[], object]) -> dict[str, float]:
    seconds: dict[str, float] = {}
    with _watched(seconds):
        before = time.process_time()
        solve()
        whole = time.process_time() - before
    return {**seconds, "rest": max(0.0, whole - sum(seconds.values()))}


@contextlib.contextmanager
def _watched(seconds: dict[str, float]) -> Iterator[None]:
    """Add what the parts take meanwhile, in any thread, to `seconds`."""
    lock, state = threading.Lock(), threading.local()

    def timed(part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if getattr(state, "within", False):
                return function(*args, **kwargs)
            main = threading.current_thread() is threading.main_thread()
            clock = time.process_time if main else time.thread_time
            state.within, before = True, clock()
            try:
                return function(*args, **kwargs)
            finally:
                state.within = False
                with lock:
                    seconds[part] = seconds.get(part, 0.0) + clock() - before

        return call

    with contextlib.ExitStack() as stack:
        for part, owner, name in PARTS:
            stack.enter_context(mock.patch.object(owner, name, timed(part, getattr(owner, name))))
        yield
