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

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from quantizers.base import QuantizedWeight, Quantizer, Scheme
from quantizers.errors import QuantizationError
from quantizers.gptq.batch import families_of
from quantizers.gptq.factor import cholesky_factor
from quantizers.options import option
from quantizers.parallel import over_rows
from quantizers.stats import LayerStats, all_finite, finite_hessian

_PANEL = 256
"""Columns for which one product takes up all columns before them."""

_ROWS_OF_A_THREAD = 512
"""Fewer rows make a product slow; then torch's own threads share every operation."""


@dataclass(frozen=True)
class GPTQ(Quantizer):
    """Column-wise rounding with second-order error feedback."""

    name = "gptq"
    version = "3"
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
        whole = rows[0] if len(rows) == 1 else torch.cat(rows)
        hessian = finite_hessian(stats, whole.device)
        diagonal = hessian.diagonal()
        dead = diagonal == 0
        unit = diagonal.sum() / (~dead).sum().clamp(min=1)
        diagonal[dead] = 1
        order = torch.argsort(diagonal, descending=True, stable=True) if self.act_order else None
        if order is not None:
            hessian = hessian[order][:, order]
        factor, damping, retries = cholesky_factor(hessian, self.damping, unit)

        def solved(first: int, last: int) -> list[QuantizedWeight]:
            work = whole[first:last].T.clone(memory_format=torch.contiguous_format)  # [in, rows], ours to change
            if self.dead == "zero":
                work[dead] = 0
            return self._solve(work, factor, order, schemes)

        threads = min(torch.get_num_threads(), len(whole) // _ROWS_OF_A_THREAD) if whole.device.type == "cpu" else 1
        report = {
            "damping": damping,
            "damping_retries": retries,
            "dead_columns": int(dead.sum()),
            "n_tokens": stats.n_tokens,
        }
        parts = zip(*over_rows(solved, len(whole), threads))
        return [_layers(each, [len(weight) for weight in rows], report) for each in parts]

    def _solve(
        self, work: Tensor, factor: Tensor, order: Tensor | None, schemes: Sequence[Scheme]
    ) -> list[QuantizedWeight]:
        """`work` [in, rows] under every scheme, with the `factor` R of H, both taken in `order`."""
        families = families_of(schemes, work, static_groups=self.static_groups, mse=self.mse)
        if order is not None:
            work = work[order]
            for family in families:
                family.reorder(order)
        columns, rows = work.shape
        counts = [len(family.members) for family in families]
        delta = work.new_empty(sum(counts), columns, rows)
        each, carried = (len(delta), -1, -1), _Carried(factor, delta)
        for start, stop in self._blocks(columns, [family.size for family in families]):
            end = max(stop, *(family.reach(start, stop) for family in families))
            own = factor[start:end, start:end]
            inverse = torch.linalg.solve_triangular(own, torch.eye(end - start).to(own), upper=True)
            state = work[start:end].expand(each)
            state = torch.baddbmm(state, inverse.T.expand(each), carried(start, end)) if start else state.clone()
            inverse = inverse[: stop - start, : stop - start]
            feedback = inverse / inverse.diagonal().unsqueeze(1)
            for family, now, error in zip(families, state.split(counts), delta[:, start:stop].split(counts)):
                family.take_scales(now, start, stop)
                family.run_block(now[:, : stop - start], work[start:stop], feedback, start, stop, error)
        if not all_finite(delta):
            raise QuantizationError("the error feedback overflowed: H is too close to singular")
        results = dict(pair for family in families for pair in family.results())
        return [results[index] for index in range(len(schemes))]

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


def _layers(
    parts: Sequence[QuantizedWeight], sizes: Sequence[int], report: Mapping[str, float | int | str]
) -> list[QuantizedWeight]:
    """Stacked layers, solved in parts of their rows, as layers of `sizes[i]` rows again."""
    first, *others = parts
    stacked = first.codes, first.scale, first.zero
    if others:
        stacked = tuple(map(torch.cat, zip(*((part.codes, part.scale, part.zero) for part in parts))))
    layers = zip(*(tensor.split(list(sizes)) for tensor in stacked))
    return [replace(first, codes=c, scale=s, zero=z, report=dict(report)) for c, s, z in layers]


class _Carried:
    """Δ_F·R_FB for one block B after another, [schemes, columns of B, rows], F being all columns before it.

    The columns before a panel of several blocks enter with one product for all of them: one of few columns has to read
    the whole of Δ for little arithmetic.
    """

    def __init__(self, factor: Tensor, delta: Tensor) -> None:
        self.factor, self.delta = factor, delta
        self.start = self.stop = 0
        self.panel = delta[:, :0]

    def __call__(self, start: int, end: int) -> Tensor:
        if end > self.stop:
            self.start, self.stop = start, max(end, min(start + _PANEL, len(self.factor)))
            self.panel = self._product(0, start, start, self.stop)
        before = self.panel[:, start - self.start : end - self.start]
        return before + self._product(self.start, start, start, end) if start > self.start else before

    def _product(self, first: int, last: int, start: int, end: int) -> Tensor:
        factor = self.factor[first:last, start:end].T.expand(len(self.delta), -1, -1)
        return torch.bmm(factor, self.delta[:, first:last])
