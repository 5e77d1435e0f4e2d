"""Schemes that GPTQ solves together: their grids and codes while columns are fixed one after another."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from quantizers import grid, kernels
from quantizers.base import QuantizedWeight, Scheme
from quantizers.kernels.block import Block


class Family:
    """Grids and codes, during a solve, of the schemes that differ in their bits only.

    `members` are their places among all schemes.  Everything lies with a column, or a group, per row: codes
    [members, in, rows]; scale and zero [members, groups, rows].
    """

    def __init__(
        self, schemes: Sequence[Scheme], members: Sequence[int], work: Tensor, *, static_groups: bool, mse: bool
    ) -> None:
        self.members, self.static_groups, self.mse = list(members), static_groups, mse
        self.schemes = [schemes[index] for index in members]
        self.bits = torch.tensor([scheme.bits for scheme in self.schemes], device=work.device)
        columns, rows = work.shape
        self.size = self.schemes[0].columns_per_group(columns)
        self.group_of = torch.arange(columns, device=work.device) // self.size
        self.order: Tensor | None = None
        self.codes = work.new_empty(len(self.members), columns, rows, dtype=torch.uint8)
        self.scale = work.new_empty(len(self.members), self.schemes[0].groups(columns), rows)
        self.zero = torch.empty_like(self.scale)
        if static_groups:
            self._take(0, self.scale.shape[1], work.expand(len(self.members), -1, -1))

    def reorder(self, order: Tensor) -> None:
        """Take the columns in another order; groups taken before keep their columns."""
        self.order = order
        if self.static_groups:
            self.group_of = self.group_of[order]

    def reach(self, start: int, stop: int) -> int:
        """Where the last group ends that begins from `start` to before `stop`; 0 if none does."""
        last = -(-stop // self.size)
        begins = last > -(-start // self.size) and not self.static_groups
        return min(last * self.size, self.codes.shape[1]) if begins else 0

    def take_scales(self, state: Tensor, start: int, stop: int) -> None:
        """Scales of the groups that begin from `start` to before `stop`.

        Row 0 of `state` [members, columns, rows] is column `start`.
        """
        first, last = -(-start // self.size), -(-stop // self.size)
        if first < last and not self.static_groups:
            self._take(first, last, state[:, first * self.size - start : last * self.size - start])

    def _take(self, first: int, last: int, columns: Tensor) -> None:
        bits = self.bits[:, None, None] if len(columns) > 1 else self.schemes[0].bits
        symmetric, size = self.schemes[0].symmetric, self.size
        if self.mse:
            # Laid out anew also for one scheme, whose errors would else be summed in another order than among others.
            rows = columns.mT.contiguous().flatten(0, 1)
            groups = grid.to_groups(rows, size).unflatten(0, (len(columns), -1))
            scale, zero = (t.mT for t in grid.find_params(groups, bits, symmetric, mse=True))
        else:
            whole = columns.shape[1] // size * size
            parts = [columns[:, :whole].unflatten(1, (-1, size))] if whole else []
            parts += [columns[:, None, whole:]] if whole < columns.shape[1] else []  # a ragged last group
            low, high = (torch.cat([end(part, 2) for part in parts], 1) for end in (torch.amin, torch.amax))
            scale, zero = grid.params_of_range(low, high, bits, symmetric)
        self.scale[:, first:last], self.zero[:, first:last] = scale, zero

    def run_block(
        self, state: Tensor, original: Tensor, feedback: Tensor, start: int, stop: int, delta: Tensor
    ) -> None:
        """Code the columns from `start` to before `stop`, and write their differences from the original."""
        grids = self.scale, self.zero, self.group_of[start:stop], self.bits
        kernels.solve_block(Block(state, original, feedback, *grids, self.codes[:, start:stop], delta))

    def results(self) -> Iterator[tuple[int, QuantizedWeight]]:
        """By member the result for all rows, codes in the original order of columns."""
        grouped_in_order = self.order is not None and not self.static_groups and self.scale.shape[1] > 1
        permutation = self.order if grouped_in_order else None
        for member, scheme, codes, *grids in zip(self.members, self.schemes, self.codes, self.scale, self.zero):
            if self.order is not None:
                codes = torch.empty_like(codes).index_copy_(0, self.order, codes)
            codes, scale, zero = (t.T.contiguous() for t in (codes, *grids))
            yield member, QuantizedWeight(codes, scale, zero, scheme, self.size, permutation=permutation)


def families_of(schemes: Sequence[Scheme], work: Tensor, *, static_groups: bool, mse: bool) -> list[Family]:
    """The schemes sorted into families, in order of first appearance, for weights `work` [in, rows]."""
    members: dict[tuple[int, bool], list[int]] = {}
    for index, scheme in enumerate(schemes):
        members.setdefault((scheme.columns_per_group(len(work)), scheme.symmetric), []).append(index)
    return [Family(schemes, places, work, static_groups=static_groups, mse=mse) for places in members.values()]
