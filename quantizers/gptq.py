"""GPTQ (Frantar et al. 2022, arXiv 2210.17323): round columns one by one; those to come absorb the error.

The layer's loss ‖(W − Ŵ)X‖² is quadratic with Hessian H = 2XXᵀ, the same for every row.  When column j of
the remaining ones is fixed with error w_j − ŵ_j, the best change of the others is −(w_j − ŵ_j)/[H⁻¹]_jj ·
[H⁻¹]_j,: (their equation 2), after which row and column j are removed from H⁻¹ (equation 3).  Done in a
fixed order, all rows of H⁻¹ that are ever needed are those of its upper Cholesky factor U, H⁻¹ = UᵀU (their
step 3), so

    W[:, j:] −= (w_j − ŵ_j) / U_jj · U_j,j:

with the columns beyond the current block updated once per block (their step 2, "lazy batch updates").  Here
U comes from one Cholesky factorisation in reversed order: with J the reversal, JHJ = LLᵀ gives H = RRᵀ with
R = JLJ upper triangular, hence U = R⁻¹.  It is the same matrix, for half the work and with smaller rounding
errors than inverting H and factoring the inverse.

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

Layers that share an input share H: their rows are stacked and solved together, with one factorisation.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from quantizers import grid
from quantizers.base import QuantizedWeight, Quantizer, Scheme
from quantizers.errors import QuantizationError
from quantizers.options import option
from quantizers.stats import LayerStats, finite_hessian

FIRST_RESCUE = 0.01
LAST_RESCUE = 1.0


@dataclass(frozen=True)
class GPTQ(Quantizer):
    """Column-wise rounding with second-order error feedback."""

    name = "gptq"
    version = "1"
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

    @torch.no_grad()
    def quantize_group(
        self, weights: Sequence[Tensor], scheme: Scheme, stats: LayerStats | None = None
    ) -> list[QuantizedWeight]:
        """Quantize layers that share one input, `weights[i]` [out_i, in], with one factorisation.

        The report of each gives the damping used, its retries, the dead columns and the tokens behind H.
        """
        rows = [self.prepare(weight, scheme, stats) for weight in weights]
        if not rows or stats is None:
            return []
        work = torch.cat([weight.T for weight in rows], dim=1)  # [in, Σ out]: a column is contiguous
        hessian = finite_hessian(stats, work.device)
        diagonal = hessian.diagonal()
        dead = diagonal == 0
        unit = diagonal.sum() / (~dead).sum().clamp(min=1)
        diagonal[dead] = 1
        if self.dead == "zero":
            work[dead] = 0

        solver = _Solver(self, scheme, work)
        if self.act_order:
            order = torch.argsort(diagonal, descending=True, stable=True)
            hessian = hessian[order][:, order]
            solver.reorder(order)
        factor, damping, retries = inverse_factor(hessian, self.damping, unit)
        solver.run(factor)
        codes, scale, zero = solver.result()

        report = {
            "damping": damping,
            "damping_retries": retries,
            "dead_columns": int(dead.sum()),
            "n_tokens": stats.n_tokens,
        }
        sizes = [weight.shape[0] for weight in rows]
        parts = zip(codes.split(sizes), scale.split(sizes), zero.split(sizes))
        return [
            QuantizedWeight(c, s, z, scheme, solver.size, permutation=solver.permutation, report=dict(report))
            for c, s, z in parts
        ]


def inverse_factor(hessian: Tensor, damping: float, unit: Tensor) -> tuple[Tensor, float, int]:
    """U, upper triangular with (H + damping·unit·I)⁻¹ = UᵀU, the damping that was used, and the retries.

    Raises QuantizationError if H cannot be factored even with a damping of 1.0.
    """
    retries = 0
    while True:
        damped = hessian.clone()
        damped.diagonal().add_(damping * unit)
        lower, failed = torch.linalg.cholesky_ex(damped.flip(0, 1))
        if not failed:
            root = lower.flip(0, 1)
            identity = torch.eye(len(root), dtype=root.dtype, device=root.device)
            factor = torch.linalg.solve_triangular(root, identity, upper=True)
            if factor.isfinite().all():
                return factor, damping, retries
        if damping >= LAST_RESCUE:
            raise QuantizationError(
                f"the Hessian of {len(hessian)} inputs cannot be factored with damping up to {damping:g}"
            )
        damping = min(LAST_RESCUE, 10 * damping) if damping > 0 else FIRST_RESCUE
        retries += 1


class _Solver:
    """The state of one solve: remaining weights and grids, with a column (or a group) per row."""

    def __init__(self, options: GPTQ, scheme: Scheme, work: Tensor) -> None:
        self.options, self.scheme, self.work = options, scheme, work
        columns, rows = work.shape
        self.size = scheme.columns_per_group(columns)
        self.group_of = torch.arange(columns, device=work.device) // self.size
        self.order: Tensor | None = None
        self.levels = torch.empty_like(work)  # codes minus zero
        self.scale = work.new_empty(scheme.groups(columns), rows)
        self.zero = torch.empty_like(self.scale)
        if options.static_groups:
            self._take_scales(0, len(self.scale))

    def reorder(self, order: Tensor) -> None:
        """Take the columns in another order; groups taken before keep their columns."""
        self.order = order
        self.work = self.work[order]
        if self.options.static_groups:
            self.group_of = self.group_of[order]

    def run(self, factor: Tensor) -> None:
        """Code every column, from the first to the last, with `factor` U of the reordered H."""
        factor = factor / factor.diagonal().unsqueeze(1)  # U_j,j: / U_jj, the feedback of a unit error
        group_of = self.group_of.tolist()
        errors = torch.empty_like(self.work[: self.options.block_size])
        for start, stop in self._blocks():
            if not self.options.static_groups:
                self._take_scales(-(-start // self.size), -(-stop // self.size))
            block = self.work[start:stop]
            self._run_block(block, factor[start:stop, start:stop], group_of[start:stop], start, errors)
            self.work[stop:].addmm_(factor[start:stop, stop:].T, errors[: stop - start], alpha=-1)

    def _run_block(self, block: Tensor, factor: Tensor, group_of: list[int], start: int, errors: Tensor) -> None:
        """The inner loop: five operations a column, because on small matrices calls are what GPTQ costs."""
        scales = self.scale.unbind()
        lows, highs = (-self.zero).unbind(), (2**self.scheme.bits - 1 - self.zero).unbind()
        columns = zip(group_of, block.unbind(), self.levels[start:].unbind(), errors.unbind(), factor.unbind())
        for i, (group, weight, level, error, feedback) in enumerate(columns, start=1):
            scale = scales[group]
            torch.div(weight, scale, out=level)
            level.round_().clamp_(lows[group], highs[group])
            torch.addcmul(weight, level, scale, value=-1, out=error)
            block[i:].addr_(feedback[i:], error, alpha=-1)

    def _blocks(self) -> Iterator[tuple[int, int]]:
        """Where blocks begin and end; with scales from the current weights, a group also begins a block."""
        columns, start = len(self.work), 0
        cut = self.options.group_scale_from == "current" and not self.options.static_groups
        while start < columns:
            stop = min(start + self.options.block_size, columns)
            if cut:
                stop = min(stop, (start // self.size + 1) * self.size)
            yield start, stop
            start = stop

    def _take_scales(self, first: int, last: int) -> None:
        """Scales of the groups from `first` to before `last`, from their columns as they stand now."""
        if first < last:
            weight = self.work[first * self.size : last * self.size].T
            groups = grid.to_groups(weight, self.size)
            scale, zero = grid.find_params(groups, self.scheme.bits, self.scheme.symmetric, self.options.mse)
            self.scale[first:last], self.zero[first:last] = scale.T, zero.T

    @property
    def permutation(self) -> Tensor | None:
        """The order of columns, where groups follow it."""
        return None if self.options.static_groups or len(self.scale) == 1 else self.order

    def result(self) -> tuple[Tensor, Tensor, Tensor]:
        """Codes [out, in] in the original order, scale and zero [out, groups]."""
        if not self.levels.isfinite().all():
            raise QuantizationError("the error feedback overflowed: H is too close to singular")
        codes = (self.levels + self.zero[self.group_of]).to(torch.uint8)
        if self.order is not None:
            codes = torch.empty_like(codes).index_copy_(0, self.order, codes)
        return codes.T.contiguous(), self.scale.T.contiguous(), self.zero.T.contiguous()
