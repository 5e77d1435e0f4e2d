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

from quantizers.base import QuantizedWeight
from quantizers.errors import QuantizationError
from quantizers.gptq.batch import batches_of
from quantizers.scheme import Scheme
from quantizers.stats import all_finite

_PANEL = 256
"""Columns that receive the errors of all earlier columns in one product."""


def solve(
    weight: Tensor,
    factor: Tensor,
    order: Tensor | None,
    schemes: Sequence[Scheme],
    outers: Sequence[Tensor | None],
    *,
    block_size: int,
    blocks_end_at_groups: bool,
    static_groups: bool,
    mse: bool,
    widen: Tensor | None = None,
) -> list[QuantizedWeight]:
    """`weight` [in, rows] under every scheme; the columns are rounded in `order`, and the `factor` R is ordered so too.

    `outers[i]` is the `grid.outer_of` the original rows under schemes[i].  `widen` [groups, rows] multiplies the ranges
    of integer groups.
    Raises QuantizationError if the error feedback overflows.
    """
    batches = batches_of(schemes, outers, weight, static_groups=static_groups, mse=mse, widen=widen)
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
