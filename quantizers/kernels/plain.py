"""The inner loops in torch, for every device: slow, and what the compiled versions are tested against."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from quantizers import grid
from quantizers.levels import Levels


class Block(NamedTuple):
    """A block of columns under n schemes that differ in their bits only; last dimensions are contiguous."""

    state: Tensor
    """[n, columns, rows]: the weights with the errors of all earlier blocks fed back; may be overwritten."""
    original: Tensor
    """[columns, rows]: the weights before quantization."""
    feedback: Tensor
    """[columns, columns]: row j is U_j,j: / U_jj; entries below the diagonal are not read."""
    scale: Tensor
    """[n, groups, rows]."""
    zero: Tensor
    """[n, groups, rows]: whole numbers."""
    group_of: Tensor
    """[columns] int64: the group of each column."""
    bits: Tensor
    """[n] int64."""
    codes: Tensor
    """[n, columns, rows] uint8; written."""
    delta: Tensor
    """[n, columns, rows]; written: `original` minus the rounded weights; not finite if the feedback overflowed."""


def solve_block(block: Block) -> None:
    """See `quantizers.kernels.solve_block`.  Few operations per column: small matrices take as long as their calls."""
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


class LevelBlock(NamedTuple):
    """A block of columns under one format of levels; its fields are as in `Block`, without the leading dimension."""

    state: Tensor
    original: Tensor
    feedback: Tensor
    scale: Tensor
    """[groups, rows]; may be negative or zero."""
    zero: Tensor
    """[groups, rows], in units of weights."""
    group_of: Tensor
    levels: Levels
    codes: Tensor
    delta: Tensor


def solve_levels(block: LevelBlock) -> None:
    """See `quantizers.kernels.solve_levels`."""
    state, original, feedback, scale, zero, group_of, levels, codes, delta = block
    table, steps = levels.table(), torch.where(scale == 0, 1.0, scale)
    for i, group in enumerate(group_of.tolist()):
        weight = state[i]
        code = levels.nearest((weight + zero[group]) / steps[group])
        codes[i] = code
        value = table[code.int()] * scale[group] - zero[group]
        value += weight * 0  # NaN where the feedback overflowed
        torch.sub(original[i], value, out=delta[i])
        state[i + 1 :] -= feedback[i, i + 1 :, None] * (weight - value)


def rounding_errors(weight: Tensor, scales: Tensor, bits: int, size: int, symmetric: bool) -> Tensor:
    """See `quantizers.kernels.rounding_errors`."""
    columns, rows = weight.shape
    scaled = (weight.T * scales[:, None, :]).flatten(0, 1)
    groups = grid.to_groups(scaled, size)
    scale, zero = grid.find_params(groups, bits, symmetric)
    rounded = grid.from_groups(grid.decode(grid.encode(groups, scale, zero, bits), scale, zero), columns)
    return (rounded.view(-1, rows, columns) / scales[:, None, :] - weight.T).transpose(1, 2)
