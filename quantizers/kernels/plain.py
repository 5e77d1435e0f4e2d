"""The inner loops in torch: the slow, plain versions, for every device."""

from __future__ import annotations

import torch
from torch import Tensor

from quantizers import grid


def solve_block(
    state: Tensor,
    original: Tensor,
    feedback: Tensor,
    scale: Tensor,
    zero: Tensor,
    group_of: Tensor,
    bits: Tensor,
    levels: Tensor,
    delta: Tensor,
) -> None:
    """See `quantizers.kernels.solve_block`.  A few operations a column: on small matrices calls are what it costs."""
    lows, highs = -zero, (2**bits - 1)[:, None, None] - zero
    error = torch.empty_like(state[:, 0])
    grids = list(zip(scale.unbind(1), lows.unbind(1), highs.unbind(1)))
    columns = zip(group_of.tolist(), state.unbind(1), levels.unbind(1), feedback.unbind())
    for i, (group, weight, level, back) in enumerate(columns, start=1):
        step, low, high = grids[group]
        torch.div(weight, step, out=error)
        level.copy_(error.round_().clamp_(low, high))
        torch.addcmul(weight, level, step, value=-1, out=error)
        state[:, i:] -= back[i:, None] * error[:, None]
    delta.copy_(torch.addcmul(original, levels, scale[:, group_of], value=-1))


def rounding_errors(weight: Tensor, scales: Tensor, bits: int, size: int, symmetric: bool) -> Tensor:
    """See `quantizers.kernels.rounding_errors`."""
    columns, rows = weight.shape
    scaled = (weight.T * scales[:, None, :]).flatten(0, 1)
    groups = grid.to_groups(scaled, size)
    scale, zero = grid.find_params(groups, bits, symmetric)
    rounded = grid.from_groups(grid.decode(grid.encode(groups, scale, zero, bits), scale, zero), columns)
    return (rounded.view(-1, rows, columns) / scales[:, None, :] - weight.T).transpose(1, 2)
