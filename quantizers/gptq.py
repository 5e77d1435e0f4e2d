"""GPTQ (Frantar et al. 2022, arXiv 2210.17323): round columns one by one; those to come absorb the error.

The layer's loss ‖(W − Ŵ)X‖² is quadratic with Hessian H = 2XXᵀ, the same for every row.  When column j of
the remaining ones is fixed with error w_j − ŵ_j, the best change of the others is −(w_j − ŵ_j)/[H⁻¹]_jj ·
[H⁻¹]_j,: (their equation 2), after which row and column j are removed from H⁻¹ (equation 3).  Done in a
fixed order, all rows of H⁻¹ that are ever needed are those of its upper Cholesky factor U, H⁻¹ = UᵀU (their
step 3), so

    W[:, j:] −= (w_j − ŵ_j) / U_jj · U_j,j:

Here H is never inverted.  Cholesky in reversed order gives H = RRᵀ with R upper triangular, hence U = R⁻¹, and
blocks on the diagonal of U are the inverses of those of R.  With F the columns already fixed, B the next block
and Δ = W − Ŵ the differences from the *original* weights, ‖ΔR‖² is least over Δ_B for Δ_B·R_BB = −Δ_F·R_FB, so
the weights as the columns before left them are

    W_B + Δ_F · R_FB · R_BB⁻¹,

one product per block instead of an update of all later columns, and the recursion above is run within the block
with U_BB = R_BB⁻¹.  It gives the same numbers as their lazy batch updates (step 2) for a third less arithmetic
and with smaller rounding errors.

What the paper leaves open, and how it is settled (as in the authors' code unless said otherwise):

- Scales.  A group's scale is taken when its first column is reached, from the weights as they stood before
  the current block of `block_size` columns: they carry the errors of earlier blocks only
  (`group_scale_from`).
- Order.  `act_order` takes the columns by falling diag H.  Groups then hold columns that follow each other
  in that order, unless `static_groups` keeps the groups of the original order, with scales from the
  original weights.
- Dead columns, inputs that were always zero (diag H = 0), get H_jj = 1, and their weights are set to zero
  or only rounded (`dead`).  They never take part in the feedback.  Unlike in the authors' code they count
  neither in mean diag H, so that `damping` means the same for every layer, nor in a row's range when there
  is one scale per row.
- Damping.  `damping` × mean diag H is added to diag H.  If the factorisation fails, ten times as much is
  tried, up to 1.0; the fraction that was used is in the report.  If that fails too, QuantizationError:
  there is no silent return to rounding.

Layers that share an input share H: their rows are stacked and solved together, with one factorisation.  So are
all schemes of a grid under the same statistics.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from quantizers import grid, kernels
from quantizers.base import QuantizedWeight, Quantizer, Scheme
from quantizers.errors import QuantizationError
from quantizers.factor import cholesky_factor
from quantizers.options import option
from quantizers.stats import LayerStats, all_finite, finite_hessian


@dataclass(frozen=True)
class GPTQ(Quantizer):
    """Column-wise rounding with second-order error feedback."""

    name = "gptq"
    version = "2"
    needs_stats = True
    default_calibration = "sequential"

    damping: float = option(0.01, "Fraction of the mean of diag H that is added to diag H.", low=0)
    act_order: bool = option(False, "Take the columns by falling diag H, the most active inputs first.")
    static_groups: bool = option(False, "Take all scales from the original weights, in the original groups.")
    block_size: int = option(128, "Columns between two updates of all later columns.", low=1)
    group_scale_from: str = option(
        "block_start",
        "Take a group's scale from the weights before the current block of columns, or as they are now.",
        choices=("block_start", "current"),
    )
    dead: str = option("zero", "What becomes of weights whose input was always zero.", choices=("zero", "round"))
    mse: bool = option(False, "Shrink each group's range to where the sum of |error|^2.4 is least.")

    def quantize(self, weight: Tensor, scheme: Scheme, stats: LayerStats | None = None) -> QuantizedWeight:
        """Quantize `weight` [out, in].  Raises QuantizationError if H is not finite or cannot be factored."""
        return self.quantize_group([weight], scheme, stats)[0]

    def quantize_group(
        self, weights: Sequence[Tensor], scheme: Scheme, stats: LayerStats | None = None
    ) -> list[QuantizedWeight]:
        """Quantize layers that share one input, `weights[i]` [out_i, in], with one factorisation.

        The report of each gives the damping used, its retries, the dead columns and the tokens behind H.
        """
        return self.quantize_grid(weights, [scheme], stats)[0]

    @torch.no_grad()
    def quantize_grid(
        self, weights: Sequence[Tensor], schemes: Sequence[Scheme], stats: LayerStats | None = None
    ) -> list[list[QuantizedWeight]]:
        """As `quantize_group` for several schemes, all solved together with one factorisation."""
        for scheme in schemes[1:]:
            for weight in weights:
                scheme.groups(weight.shape[-1])
        rows = [self.prepare(weight, scheme, stats) for scheme in schemes[:1] for weight in weights]
        if not rows or stats is None:
            return [[] for _ in schemes]
        work = torch.cat(rows).T.contiguous()  # [in, Σ out]: a column is contiguous
        hessian = finite_hessian(stats, work.device)
        diagonal = hessian.diagonal()
        dead = diagonal == 0
        unit = diagonal.sum() / (~dead).sum().clamp(min=1)
        diagonal[dead] = 1
        if self.dead == "zero":
            work[dead] = 0

        families = _families(self, schemes, work)
        if self.act_order:
            order = torch.argsort(diagonal, descending=True, stable=True)
            hessian, work = hessian[order][:, order], work[order]
            for family in families:
                family.reorder(order)
        factor, damping, retries = cholesky_factor(hessian, self.damping, unit)
        self._solve(work, factor, families)
        report = {
            "damping": damping,
            "damping_retries": retries,
            "dead_columns": int(dead.sum()),
            "n_tokens": stats.n_tokens,
        }
        results: dict[int, list[QuantizedWeight]] = {}
        for family in families:
            results.update(family.results([weight.shape[0] for weight in rows], report))
        return [results[index] for index in range(len(schemes))]

    def _solve(self, work: Tensor, factor: Tensor, families: Sequence[_Family]) -> None:
        """Code every column of `work` [in, rows] for every scheme, with the `factor` R of H in the same order."""
        columns, rows = work.shape
        counts = [len(family.members) for family in families]
        delta = work.new_empty(sum(counts), columns, rows)
        for start, stop in self._blocks(columns, [family.size for family in families]):
            end = max(stop, *(family.reach(stop) for family in families))
            own = factor[start:end, start:end]
            inverse = torch.linalg.solve_triangular(own, torch.eye(end - start).to(own), upper=True)
            state = work[start:end].repeat(len(delta), 1, 1)
            if start:
                state += inverse.T @ (factor[:start, start:end].T @ delta[:, :start])
            inverse = inverse[: stop - start, : stop - start]
            feedback = inverse / inverse.diagonal().unsqueeze(1)
            for family, now, error in zip(families, state.split(counts), delta[:, start:stop].split(counts)):
                family.take_scales(now, start, stop)
                family.run_block(now[:, : stop - start], work[start:stop], feedback, start, stop, error)

    def _blocks(self, columns: int, sizes: Sequence[int]) -> Iterator[tuple[int, int]]:
        """Where blocks begin and end; with scales from the current weights, a group also begins a block."""
        start = 0
        cut = self.group_scale_from == "current" and not self.static_groups
        while start < columns:
            stop = min(start + self.block_size, columns)
            if cut:
                stop = min(stop, *((start // size + 1) * size for size in sizes))
            yield start, stop
            start = stop


class _Family:
    """Grids and codes, during a solve, of the schemes that differ in their bits only.

    `members` are their places among all schemes.  Everything lies with a column, or a group, per row: levels
    [members, in, rows], codes minus zero; scale and zero [members, groups, rows].
    """

    def __init__(self, options: GPTQ, schemes: Sequence[Scheme], members: Sequence[int], work: Tensor) -> None:
        self.options, self.members = options, list(members)
        self.schemes = [schemes[index] for index in members]
        self.bits = torch.tensor([scheme.bits for scheme in self.schemes], device=work.device)
        columns, rows = work.shape
        self.size = self.schemes[0].columns_per_group(columns)
        self.group_of = torch.arange(columns, device=work.device) // self.size
        self.order: Tensor | None = None
        self.levels = work.new_empty(len(self.members), columns, rows)
        self.scale = work.new_empty(len(self.members), self.schemes[0].groups(columns), rows)
        self.zero = torch.empty_like(self.scale)
        if options.static_groups:
            self._take(0, self.scale.shape[1], work.expand(len(self.members), -1, -1))

    def reorder(self, order: Tensor) -> None:
        """Take the columns in another order; groups taken before keep their columns."""
        self.order = order
        if self.options.static_groups:
            self.group_of = self.group_of[order]

    def reach(self, stop: int) -> int:
        """Where the last group ends whose first column lies before `stop`."""
        columns = self.levels.shape[1]
        return 0 if self.options.static_groups else min(-(-stop // self.size) * self.size, columns)

    def take_scales(self, state: Tensor, start: int, stop: int) -> None:
        """Scales of the groups that begin from `start` to before `stop`.

        Row 0 of `state` [members, columns, rows] is column `start`.
        """
        first, last = -(-start // self.size), -(-stop // self.size)
        if first < last and not self.options.static_groups:
            self._take(first, last, state[:, first * self.size - start : last * self.size - start])

    def _take(self, first: int, last: int, columns: Tensor) -> None:
        members, count, rows = columns.shape
        groups = grid.to_groups(columns.mT.reshape(members * rows, count), self.size)
        groups = groups.view(members, rows, last - first, self.size)
        bits = self.bits[:, None, None] if members > 1 else self.schemes[0].bits
        scale, zero = grid.find_params(groups, bits, self.schemes[0].symmetric, self.options.mse)
        self.scale[:, first:last], self.zero[:, first:last] = scale.mT, zero.mT

    def run_block(
        self, state: Tensor, original: Tensor, feedback: Tensor, start: int, stop: int, delta: Tensor
    ) -> None:
        """Code the columns from `start` to before `stop`, and write their differences from the original."""
        grids = self.scale, self.zero, self.group_of[start:stop], self.bits
        kernels.solve_block(state, original, feedback, *grids, self.levels[:, start:stop], delta)

    def results(
        self, sizes: Sequence[int], report: dict[str, float | int | str]
    ) -> Iterator[tuple[int, list[QuantizedWeight]]]:
        """By member the result of every layer, `sizes[i]` rows each, codes in the original order of columns."""
        if not all_finite(self.levels):
            raise QuantizationError("the error feedback overflowed: H is too close to singular")
        grouped_in_order = self.order is not None and not self.options.static_groups and self.scale.shape[1] > 1
        permutation = self.order if grouped_in_order else None
        for member, scheme, *tensors in zip(self.members, self.schemes, self.levels, self.scale, self.zero):
            levels, scale, zero = tensors
            codes = (levels + zero[self.group_of]).to(torch.uint8)
            if self.order is not None:
                codes = torch.empty_like(codes).index_copy_(0, self.order, codes)
            parts = zip(*(t.T.contiguous().split(list(sizes)) for t in (codes, scale, zero)))
            yield (
                member,
                [
                    QuantizedWeight(c, s, z, scheme, self.size, permutation=permutation, report=dict(report))
                    for c, s, z in parts
                ],
            )


def _families(options: GPTQ, schemes: Sequence[Scheme], work: Tensor) -> list[_Family]:
    """The schemes sorted into families, in order of first appearance."""
    members: dict[tuple[int, bool], list[int]] = {}
    for index, scheme in enumerate(schemes):
        members.setdefault((scheme.columns_per_group(len(work)), scheme.symmetric), []).append(index)
    return [_Family(options, schemes, places, work) for places in members.values()]
