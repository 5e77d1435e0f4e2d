"""Schemes that are solved together: their scales and codes, during a solve.

Tensors are transposed, [columns, rows], as in `solve.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from quantizers import grid, kernels
from quantizers.base import QuantizedWeight
from quantizers.formats import FORMATS
from quantizers.scheme import Scheme


class SchemeBatch:
    """Grids and codes, during a solve, of integer schemes that differ in their bits only.

    `members` are the indices of these schemes in the caller's list.  Tensors are transposed, so that rows are
    contiguous: codes [members, in, rows]; scale and zero [members, groups, rows].  `group_of` [in] is the group of each
    column in the order in which columns are rounded.
    """

    def __init__(
        self,
        schemes: Sequence[Scheme],
        members: Sequence[int],
        weight: Tensor,
        *,
        static_groups: bool,
        mse: bool,
        widen: Tensor | None = None,
    ) -> None:
        self.members, self.static_groups, self.mse, self.widen = list(members), static_groups, mse, widen
        self.schemes = [schemes[index] for index in members]
        self.bits = torch.tensor([scheme.bits for scheme in self.schemes], device=weight.device)
        columns, rows = weight.shape
        self.size = self.schemes[0].columns_per_group(columns)
        self.group_of = torch.arange(columns, device=weight.device) // self.size
        self.order: Tensor | None = None
        self.codes = weight.new_empty(len(self.members), columns, rows, dtype=torch.uint8)
        self.scale = weight.new_empty(len(self.members), self.schemes[0].groups(columns), rows)
        self.zero = torch.empty_like(self.scale)
        self.outer: Tensor | None = None
        if static_groups:
            self._set_scales(0, self.scale.shape[1], weight.expand(len(self.members), -1, -1))

    def reorder(self, order: Tensor) -> None:
        """Round the columns in another order; static groups keep their columns."""
        self.order = order
        if self.static_groups:
            self.group_of = self.group_of[order]

    def last_column_needed(self, start: int, stop: int) -> int:
        """The end of the last group whose first column is in [start, stop); 0 if no group begins there."""
        last = -(-stop // self.size)
        begins = last > -(-start // self.size) and not self.static_groups
        return min(last * self.size, self.codes.shape[1]) if begins else 0

    def take_scales(self, state: Tensor, start: int, stop: int) -> None:
        """Set the scales of the groups whose first column is in [start, stop).

        `state` [members, columns, rows] holds the weights from column `start` on.
        """
        first, last = -(-start // self.size), -(-stop // self.size)
        if first < last and not self.static_groups:
            self._set_scales(first, last, state[:, first * self.size - start : last * self.size - start])

    def _set_scales(self, first: int, last: int, columns: Tensor) -> None:
        """Scale and zero of the groups [first, last) from their weights `columns` [members, columns, rows]."""
        bits = self.bits[:, None, None] if len(columns) > 1 else self.schemes[0].bits
        symmetric, size = self.schemes[0].symmetric, self.size
        if self.mse:
            # Copied even for a single scheme: its errors must be summed in the same order as beside other schemes.
            rows = columns.mT.contiguous().flatten(0, 1)
            groups = grid.to_groups(rows, size).unflatten(0, (len(columns), -1))
            scale, zero = (t.mT for t in grid.find_params(groups, bits, symmetric, mse=True))
        else:
            whole = columns.shape[1] // size * size
            parts = [columns[:, :whole].unflatten(1, (-1, size))] if whole else []
            parts += [columns[:, None, whole:]] if whole < columns.shape[1] else []  # a ragged last group
            low, high = (torch.cat([end(part, 2) for part in parts], 1) for end in (torch.amin, torch.amax))
            scale, zero = grid.params_of_range(low, high, bits, symmetric)
        if self.widen is not None:
            scale = scale * self.widen[first:last]
        self.scale[:, first:last], self.zero[:, first:last] = scale, zero

    def round_block(
        self, state: Tensor, original: Tensor, feedback: Tensor, start: int, stop: int, delta: Tensor
    ) -> None:
        """Round the columns [start, stop) and write their differences from the original weights to `delta`."""
        grids = self.scale, self.zero, self.group_of[start:stop], self.bits
        kernels.solve_block(kernels.Block(state, original, feedback, *grids, self.codes[:, start:stop], delta))

    def results(self) -> Iterator[tuple[int, QuantizedWeight]]:
        """(member, its result for all rows), codes in the original order of columns."""
        grouped_in_order = self.order is not None and not self.static_groups and self.scale.shape[1] > 1
        permutation = self.order if grouped_in_order else None
        for member, scheme, codes, *grids in zip(self.members, self.schemes, self.codes, self.scale, self.zero):
            if self.order is not None:
                codes = torch.empty_like(codes).index_copy_(0, self.order, codes)
            codes, scale, zero = (t.T.contiguous() for t in (codes, *grids))
            yield (
                member,
                QuantizedWeight(codes, scale, zero, scheme, self.size, permutation=permutation, outer=self.outer),
            )


class FormatBatch(SchemeBatch):
    """The same for one scheme of a format of levels; `outer` [rows, 1, 1] is the scale of its layer, or None.

    All scales of a format whose blocks hold several groups are set from the original weights.
    """

    def __init__(
        self, scheme: Scheme, member: int, outer: Tensor | None, weight: Tensor, *, static_groups: bool, mse: bool
    ) -> None:
        self.format = FORMATS[scheme.format]
        self.levels = self.format.levels().to(weight.device)
        static_groups = static_groups or self.format.whole_rows
        super().__init__([scheme], [0], weight, static_groups=False, mse=mse)
        self.members, self.static_groups, self.outer = [member], static_groups, outer
        if static_groups:
            self._set_scales(0, self.scale.shape[1], weight.unsqueeze(0))

    def _set_scales(self, first: int, last: int, columns: Tensor) -> None:
        groups = grid.to_groups(columns[0].T.contiguous(), self.size)
        params = self.format.params(groups, self.outer, self.mse)
        self.scale[0, first:last], self.zero[0, first:last] = params.scale.T, params.zero.T
        self.outer = params.outer

    def round_block(
        self, state: Tensor, original: Tensor, feedback: Tensor, start: int, stop: int, delta: Tensor
    ) -> None:
        """Round the columns [start, stop) and write their differences from the original weights to `delta`."""
        grids = self.scale[0], self.zero[0], self.group_of[start:stop], self.levels
        kernels.solve_levels(
            kernels.LevelBlock(state[0], original, feedback, *grids, self.codes[0, start:stop], delta[0])
        )


def batches_of(
    schemes: Sequence[Scheme],
    outers: Sequence[Tensor | None],
    weight: Tensor,
    *,
    static_groups: bool,
    mse: bool,
    widen: Tensor | None = None,
) -> list[SchemeBatch]:
    """The schemes for `weight` [in, rows]: integers by group size and symmetry, every other format alone."""
    options = {"static_groups": static_groups, "mse": mse}
    integers: dict[tuple[int, bool], list[int]] = {}
    others: list[SchemeBatch] = []
    for index, (scheme, outer) in enumerate(zip(schemes, outers)):
        if scheme.format == "int":
            integers.setdefault((scheme.columns_per_group(len(weight)), scheme.symmetric), []).append(index)
        else:
            others.append(FormatBatch(scheme, index, outer, weight, **options))
    return [*(SchemeBatch(schemes, members, weight, widen=widen, **options) for members in integers.values()), *others]
