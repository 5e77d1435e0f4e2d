"""GPTQ's inner loop as one Triton launch per block of columns; AWQ's loop and formats of levels run in torch on a GPU.

A program keeps a tile of rows, with all columns of the block, in registers from the first column to the last.  In
torch every column takes half a dozen launches, and on a GPU the launches take most of the time.
"""

from __future__ import annotations

import torch
import triton  # pyrefly: ignore[missing-import]
import triton.language as tl  # pyrefly: ignore[missing-import]

from quantizers.kernels import plain
from quantizers.kernels.plain import Block

rounding_errors = plain.rounding_errors
solve_levels = plain.solve_levels

MAX_COLUMNS = 256
"""Wider blocks do not fit into registers and are solved by `plain`."""

_TILE_ELEMENTS = 4096


def solve_block(block: Block) -> None:
    """See `quantizers.kernels.solve_block`."""
    state, original, feedback, scale, zero, group_of, bits, codes, delta = block
    schemes, columns, rows = state.shape
    if columns > MAX_COLUMNS:
        plain.solve_block(block)
        return
    width = max(16, triton.next_power_of_2(columns))
    tile = max(16, _TILE_ELEMENTS // width)
    matrices = [feedback.contiguous(), state, original, scale, zero, codes, delta]
    steps = [state.stride(0), scale.stride(0), codes.stride(0), delta.stride(0)]
    strides = [state.stride(1), original.stride(0), scale.stride(1), codes.stride(1), delta.stride(1)]
    with torch.cuda.device(state.device) if state.is_cuda else torch.no_grad():
        _solve[(triton.cdiv(rows, tile), schemes)](
            *matrices, group_of, bits, rows, columns, *steps, *strides, WIDTH=width, TILE=tile, num_warps=1
        )


@triton.jit
def _solve(
    feedback_ptr,
    state_ptr,
    original_ptr,
    scale_ptr,
    zero_ptr,
    codes_ptr,
    delta_ptr,
    group_ptr,
    bits_ptr,
    rows,
    columns,
    state_scheme,
    scale_scheme,
    codes_scheme,
    delta_scheme,
    state_step,
    original_step,
    scale_step,
    codes_step,
    delta_step,
    WIDTH: tl.constexpr,
    TILE: tl.constexpr,
):
    scheme = tl.program_id(1).to(tl.int64)
    row = tl.program_id(0) * TILE + tl.arange(0, TILE)
    column = tl.arange(0, WIDTH)
    inside = row < rows
    offset = scheme * state_scheme + column[:, None] * state_step + row[None, :]
    now = tl.load(state_ptr + offset, mask=(column < columns)[:, None] & inside[None, :], other=0.0)
    top = tl.exp2(tl.load(bits_ptr + scheme).to(tl.float32)) - 1.0
    for i in range(columns):
        group = tl.load(group_ptr + i)
        place = scheme * scale_scheme + group * scale_step + row
        step = tl.load(scale_ptr + place, mask=inside, other=1.0)
        zero = tl.load(zero_ptr + place, mask=inside, other=0.0)
        weight = tl.sum(tl.where((column == i)[:, None], now, 0.0), axis=0)
        level = tl.div_rn(weight, step)
        level = tl.where(level < -zero, -zero, level)
        level = tl.where(level > top - zero, top - zero, level)
        # Adding and subtracting 1.5 * 2^23 rounds halves to even; the bounds are whole numbers, so it may come last.
        level = (level + 12582912.0) - 12582912.0
        error = weight - level * step
        tl.store(codes_ptr + scheme * codes_scheme + i * codes_step + row, (level + zero).to(tl.uint8), mask=inside)
        before = tl.load(original_ptr + i * original_step + row, mask=inside, other=0.0)
        tl.store(delta_ptr + scheme * delta_scheme + i * delta_step + row, before - level * step, mask=inside)
        back = tl.load(feedback_ptr + i * columns + column, mask=(column > i) & (column < columns), other=0.0)
        now -= back[:, None] * error[None, :]
