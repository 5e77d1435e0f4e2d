"""The inner loops compiled by numba for a CPU, parallel over tiles of rows.

Within a tile the columns already rounded stay in the first-level cache, and every operation runs over `TILE` rows in
vector registers.  The loops release the interpreter's lock, and as many plain threads as torch uses share the rows.
Numba's own parallel loops are not used: their thread pool would compete with torch's for the cores.

Rounding agrees with `plain.py` to the last bit.  GPTQ's feedback is summed in the same order, for integers with fused
multiply-adds, so a weight within rounding error of the midpoint between two codes may get the other one.

Compiling takes about a second per loop.  The result is kept for later processes in `__pycache__` beside this file, or
where that is read-only in the user's cache folder, or in `NUMBA_CACHE_DIR`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numba import njit
from torch import Tensor

from quantizers.kernels.plain import Block, LevelBlock
from quantizers.parallel import over_rows

TILE = 64
"""Rows per tile: 64 rows of 128 columns in float32 are 32 kB, a first-level cache."""

_MIN_STEPS_PER_THREAD = 2e6
"""With fewer inner steps, starting a thread takes longer than the loop."""


def solve_block(block: Block) -> None:
    """See `quantizers.kernels.solve_block`."""
    state, original, feedback, scale, zero, group_of, bits, codes, delta = block
    schemes, columns, rows = state.shape
    common = original.numpy(), feedback.T.contiguous().numpy(), group_of.numpy()
    tops = [np.float32(2**b - 1) for b in bits.tolist()]
    # One scheme after another: numba vectorises loops over contiguous matrices only.
    each = [[t.numpy() for t in matrices] for matrices in zip(state, scale, zero, codes, delta)]

    def loop(first: int, last: int) -> None:
        for top, matrices in zip(tops, each):
            _solve(*common, top, *matrices, first, last)

    over_rows(loop, rows, _threads(schemes * rows * columns * columns / 2), multiple=TILE)


def solve_levels(block: LevelBlock) -> None:
    """See `quantizers.kernels.solve_levels`."""
    state, original, feedback, scale, zero, group_of, levels, codes, delta = block
    columns, rows = state.shape
    # The bounds are filled up to 2^k − 1, so that k halvings find a level without a branch.
    steps = len(levels.bounds).bit_length()
    bounds = np.full(2**steps - 1, np.inf, np.float32)
    bounds[: len(levels.bounds)] = levels.bounds.numpy()
    arrays = [t.numpy() for t in (state, original, feedback.T.contiguous(), scale, zero, group_of)]
    result = levels.values.numpy(), levels.codes.numpy(), codes.numpy(), delta.numpy()

    def loop(first: int, last: int) -> None:
        _solve_levels(*arrays, bounds, 2**steps // 2, *result, first, last)

    over_rows(loop, rows, _threads(rows * columns * columns / 2), multiple=TILE)


def rounding_errors(weight: Tensor, scales: Tensor, bits: int, size: int, symmetric: bool) -> Tensor:
    """See `quantizers.kernels.rounding_errors`."""
    columns, rows = weight.shape
    out = torch.empty(len(scales), columns, rows)
    arrays = [t.numpy() for t in (weight.contiguous(), scales.contiguous())]
    result = out.numpy()

    def loop(first: int, last: int) -> None:
        _round(*arrays, np.float32(2**bits - 1), size, symmetric, result, first, last)

    over_rows(loop, rows, _threads(4.0 * out.numel()), multiple=TILE)
    return out


def _threads(work: float) -> int:
    return min(torch.get_num_threads(), 1 + int(work / _MIN_STEPS_PER_THREAD))


def _solve_loop(original, feedback, group_of, top, state, scale, zero, codes, delta, first, last):  # pragma: no cover
    columns = len(state)
    errors = np.empty((columns, TILE), np.float32)
    now = np.empty(TILE, np.float32)
    for start in range(first, last, TILE):
        n = min(TILE, last - start)
        for i in range(columns):
            for t in range(n):
                now[t] = state[i, start + t]
            unrolled = i - i % 4
            for j in range(0, unrolled, 4):  # four at a time, so that `now` is loaded and stored once
                a, b, c, d = feedback[i, j], feedback[i, j + 1], feedback[i, j + 2], feedback[i, j + 3]
                for t in range(n):
                    value = now[t] - a * errors[j, t]
                    value -= b * errors[j + 1, t]
                    value -= c * errors[j + 2, t]
                    now[t] = value - d * errors[j + 3, t]
            for j in range(unrolled, i):
                back = feedback[i, j]
                for t in range(n):
                    now[t] -= back * errors[j, t]
            group = group_of[i]
            for t in range(n):
                step, z = scale[group, start + t], zero[group, start + t]
                code = np.rint(now[t] / step) + z
                code = np.float32(0) if code < 0 else code
                code = top if code > top else code
                codes[i, start + t] = np.uint8(code)
                value = (code - z) * step
                errors[i, t] = now[t] - value
                delta[i, start + t] = original[i, start + t] - value


def _levels_loop(
    state, original, feedback, scale, zero, group_of, bounds, half, values, patterns, codes, delta, first, last
):  # pragma: no cover
    columns = len(state)
    errors = np.empty((columns, TILE), np.float32)
    now = np.empty(TILE, np.float32)
    x = np.empty(TILE, np.float32)
    index = np.empty(TILE, np.int32)
    for start in range(first, last, TILE):
        n = min(TILE, last - start)
        for i in range(columns):
            for t in range(n):
                now[t] = state[i, start + t]
            for j in range(i):
                back = feedback[i, j]
                for t in range(n):
                    now[t] -= back * errors[j, t]
            group = group_of[i]
            for t in range(n):
                step = scale[group, start + t]
                step = np.float32(1) if step == 0 else step
                x[t] = (now[t] + zero[group, start + t]) / step
                index[t] = 0
            width = half
            while width > 0:
                for t in range(n):
                    index[t] += width if x[t] > bounds[index[t] + width - 1] else 0
                width //= 2
            for t in range(n):
                level = values[index[t]]
                value = np.float32(level * scale[group, start + t]) - zero[group, start + t]
                value += now[t] * np.float32(0)  # NaN where the feedback overflowed
                codes[i, start + t] = patterns[index[t]]
                errors[i, t] = now[t] - value
                delta[i, start + t] = original[i, start + t] - value


def _round_loop(weight, scales, top, size, symmetric, out, first, last):  # pragma: no cover
    columns = len(weight)
    low, high = np.empty(TILE, np.float32), np.empty(TILE, np.float32)
    step, zero = np.empty(TILE, np.float32), np.empty(TILE, np.float32)
    middle = np.float32((top + np.float32(1)) / np.float32(2))
    one = np.float32(1)
    for c in range(len(scales)):
        for start in range(first, last, TILE):
            n = min(TILE, last - start)
            for begin in range(0, columns, size):
                end = min(begin + size, columns)
                low[:] = 0
                high[:] = 0
                for j in range(begin, end):
                    factor = scales[c, j]
                    for t in range(n):
                        value = weight[j, start + t] * factor
                        low[t] = value if value < low[t] else low[t]
                        high[t] = value if value > high[t] else high[t]
                for t in range(n):
                    if symmetric:
                        high[t] = -low[t] if -low[t] > high[t] else high[t]
                        low[t] = -high[t]
                    s = (high[t] - low[t]) / top
                    low[t] = -one if s == 0 else low[t]
                    high[t] = one if s == 0 else high[t]
                    step[t] = (high[t] - low[t]) / top
                    zero[t] = middle if symmetric else np.rint(-low[t] / step[t])
                for j in range(begin, end):
                    factor = scales[c, j]
                    for t in range(n):
                        w = weight[j, start + t]
                        code = np.rint(w * factor / step[t]) + zero[t]
                        code = np.float32(0) if code < 0 else code
                        code = top if code > top else code
                        out[c, j, start + t] = (code - zero[t]) * step[t] / factor - w


def compiled(loop: Callable[..., Any], **options: Any) -> Any:
    """`loop` compiled, and cached on disk for later processes if any cache folder is writable."""
    try:
        return njit(loop, nogil=True, cache=True, error_model="numpy", **options)
    except RuntimeError:
        return njit(loop, nogil=True, error_model="numpy", **options)


_solve = compiled(_solve_loop, fastmath={"contract"})
_solve_levels = compiled(_levels_loop)
_round = compiled(_round_loop)
