"""The inner loops in torch: the slow, plain versions, for every device."""

from __future__ import annotations

import torch
from torch import Tensor

from quantizers import grid
from quantizers.kernels.block import Block


def solve_block(block: Block) -> None:
    """See `quantizers.kernels.solve_block`.  A few operations a column: on small matrices calls are what it costs."""
    state, original, feedback, scale, zero, group_of, bits, codes, delta = block
    tops = (2**bits - 1).to(scale)[:, None]
    grids = list(zip(scale.unbind(1), zero.unbind(1)))
    columns = zip(group_of.tolist(), original, state.unbind(1), codes.unbind(1), delta.unbind(1), feedback)
    for i, (group, before, weight, code, change, back) in enumerate(columns, start=1):
        step, middle = grids[group]
        rounded = (weight / step).round_().add_(middle).clamp_(min=0).clamp_(max=tops)
        code.copy_(rounded)
        value = rounded.sub_(middle).mul_(step)
        torch.sub(before, value, out=change)
        state[:, i:] -= back[i:, None] * (weight - value)[:, None]


def rounding_errors(weight: Tensor, scales: Tensor, bits: int, size: int, symmetric: bool) -> Tensor:
    """See `quantizers.kernels.rounding_errors`."""
    columns, rows = weight.shape
    scaled = (weight.T * scales[:, None, :]).flatten(0, 1)
    groups = grid.to_groups(scaled, size)
    scale, zero = grid.find_params(groups, bits, symmetric)
    rounded = grid.from_groups(grid.decode(grid.encode(groups, scale, zero, bits), scale, zero), columns)
    return (rounded.view(-1, rows, columns) / scales[:, None, :] - weight.T).transpose(1, 2)
