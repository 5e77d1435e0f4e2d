"""The solver: blocks of columns from left to right, all rows and all schemes at once.

For each block B, with F the columns before it, Δ = W − Ŵ the differences from the original weights, and R the factor of
H (`quantizers.gptq` derives both steps):

    W_B + Δ_F · R_FB · R_BB⁻¹              one product feeds back all earlier errors
    w_l −= (w_j − ŵ_j) · U_jl / U_jj       column by column within the block, with U_BB = R_BB⁻¹

Matrices are transposed, [columns, rows], so that the rows, which do not depend on each other, are contiguous; a leading
dimension counts schemes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from quantizers import grid, kernels
from quantizers.base import QuantizedWeight, Scheme
from quantizers.errors import QuantizationError
from quantizers.stats import all_finite

_PANEL = 256
"""Columns that receive the errors of all earlier columns in one product."""


def solve(
    weight: Tensor,
    factor: Tensor,
    order: Tensor | None,
    schemes: Sequence[Scheme],
    *,
    block_size: int,
    blocks_end_at_groups: bool,
    static_groups: bool,
    mse: bool,
) -> list[QuantizedWeight]:
    """`weight` [in, rows] under every scheme; the columns are rounded in `order`, which is also that of the `factor` R.

    Raises QuantizationError if the error feedback overflows.
    """
    batches = batches_of(schemes, weight, static_groups=static_groups, mse=mse)
    if order is not None:
        weight = weight[order]
        for batch in batches:
            batch.reorder(order)
    columns, rows = weight.shape
    counts = [len(batch.members) for batch in batches]
    delta = weight.new_empty(sum(counts), columns, rows)
    carried, each = CarriedError(factor, delta), (len(delta), -1, -1)
    for start, stop in _blocks(columns, block_size, [batch.size for batch in batches] if blocks_end_at_groups else []):
        end = max(stop, *(batch.last_column_needed(start, stop) for batch in batches))
        own = factor[start:end, start:end]
        inverse = torch.linalg.solve_triangular(own, torch.eye(end - start).to(own), upper=True)
        state = weight[start:end].expand(each)
        state = torch.baddbmm(state, inverse.T.expand(each), carried.into(start, end)) if start else state.clone()
        inverse = inverse[: stop - start, : stop - start]
        feedback = inverse / inverse.diagonal().unsqueeze(1)
        for batch, now, change in zip(batches, state.split(counts), delta[:, start:stop].split(counts)):
            batch.take_scales(now, start, stop)
            batch.round_block(now[:, : stop - start], weight[start:stop], feedback, start, stop, change)
    if not all_finite(delta):
        raise QuantizationError("the error feedback overflowed: H is too close to singular")
    results = dict(pair for batch in batches for pair in batch.results())
    return [results[index] for index in range(len(schemes))]


def _blocks(columns: int, block_size: int, group_sizes: Sequence[int]) -> Iterator[tuple[int, int]]:
    """[start, stop) of each block of up to `block_size` columns; a block also ends where a group of any size does."""
    start = 0
    while start < columns:
        stop = min(start + block_size, columns, *((start // size + 1) * size for size in group_sizes))
        yield start, stop
        start = stop


class CarriedError:
    """Δ_F·R_FB for one block B after another.

    The columns before a panel of several blocks are multiplied once for the whole panel: for a few columns, such a
    product reads all of Δ but does little arithmetic.
    """

    def __init__(self, factor: Tensor, delta: Tensor) -> None:
        self.factor, self.delta = factor, delta
        self.start = self.stop = 0
        self.panel = delta[:, :0]

    def into(self, start: int, end: int) -> Tensor:
        """Δ_F·R_FB [schemes, end − start, rows] for B = [start, end) and F all columns before `start`."""
        if end > self.stop:
            self.start, self.stop = start, max(end, min(start + _PANEL, len(self.factor)))
            self.panel = self._product(0, start, start, self.stop)
        before = self.panel[:, start - self.start : end - self.start]
        return before + self._product(self.start, start, start, end) if start > self.start else before

    def _product(self, first: int, last: int, start: int, end: int) -> Tensor:
        factor = self.factor[first:last, start:end].T.expand(len(self.delta), -1, -1)
        return torch.bmm(factor, self.delta[:, first:last])


class SchemeBatch:
    """Grids and codes, during a solve, of schemes that differ in their bits only.

    `members` are the indices of these schemes in the caller's list.  Tensors are transposed, so that rows are
    contiguous: codes [members, in, rows]; scale and zero [members, groups, rows].  `group_of` [in] is the group of each
    column in the order in which columns are rounded.
    """

    def __init__(
        self, schemes: Sequence[Scheme], members: Sequence[int], weight: Tensor, *, static_groups: bool, mse: bool
    ) -> None:
        self.members, self.static_groups, self.mse = list(members), static_groups, mse
        self.schemes = [schemes[index] for index in members]
        self.bits = torch.tensor([scheme.bits for scheme in self.schemes], device=weight.device)
        columns, rows = weight.shape
        self.size = self.schemes[0].columns_per_group(columns)
        self.group_of = torch.arange(columns, device=weight.device) // self.size
        self.order: Tensor | None = None
        self.codes = weight.new_empty(len(self.members), columns, rows, dtype=torch.uint8)
        self.scale = weight.new_empty(len(self.members), self.schemes[0].groups(columns), rows)
        self.zero = torch.empty_like(self.scale)
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
            yield member, QuantizedWeight(codes, scale, zero, scheme, self.size, permutation=permutation)


def batches_of(schemes: Sequence[Scheme], weight: Tensor, *, static_groups: bool, mse: bool) -> list[SchemeBatch]:
    """The schemes by group size and symmetry, in order of first appearance, for `weight` [in, rows]."""
    members: dict[tuple[int, bool], list[int]] = {}
    for index, scheme in enumerate(schemes):
        members.setdefault((scheme.columns_per_group(len(weight)), scheme.symmetric), []).append(index)
    return [SchemeBatch(schemes, indices, weight, static_groups=static_groups, mse=mse) for indices in members.values()]
