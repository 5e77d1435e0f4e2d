"""GPTQ without clipping: ranges wide enough that every rounding error is at most half a step.

Chen et al. 2025, "The Geometry of LLM Quantization: GPTQ as Babai's Nearest Plane Algorithm" (arXiv 2507.18553), show
that GPTQ is Babai's nearest plane algorithm on the lattice of the Hessian, columns taken from back to front, and that
Babai's error bound holds where no code is clipped.  With H = RRᵀ (R upper triangular; the D of the paper's H = LDLᵀ is
diag(R)²) and e_j the difference between the weight reached at column j and what it is rounded to,

    (w − ŵ)·H·(w − ŵ)ᵀ = Σ_j (e_j·R_jj)² ≤ ¼·Σ_j (s_j·R_jj)²,   because |e_j| ≤ s_j/2 without clipping.

GPTQ itself clips: the range of a group is set by its original weights, and error feedback moves weights out of it.
Here the scales are set in advance, and wherever a code was clipped, the scales of its group are multiplied by `growth`
until none is.  This ends, because at a large enough scale all codes are the zero point and nothing is clipped.  Rows do
not depend on each other, so only rows with a clipped code are solved again.

How the paper's own methods avoid clipping is not reproduced here.  Widening keeps plain integers, at the price of
larger steps.  Where H is nearly singular, and steps are as large as at 2 bits, wider steps feed back so much that
ranges grow tenfold; more `damping` ends it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from quantizers.base import QuantizedWeight, Quantizer
from quantizers.errors import QuantizationError
from quantizers.gptq.damping import damped_factor
from quantizers.gptq.solve import solve
from quantizers.options import option
from quantizers.scheme import Scheme
from quantizers.stats import LayerStats, finite_hessian

_TOLERANCE = 1e-3
"""Share of a step by which an error may exceed half a step: float32 feedback and rounding at a tie."""

_MAX_ROUNDS = 400


@dataclass(frozen=True)
class GPTQNoClip(Quantizer):
    """GPTQ with ranges that are widened until no code is clipped, so that its error bound holds."""

    name = "gptq-noclip"
    version = "1"
    needs_stats = True
    default_calibration = "sequential"
    source = "Chen et al. 2025 (arXiv 2507.18553)"

    damping: float = option(0.01, "Fraction of the mean of diag H that is added to diag H.", low=0, high=1)
    act_order: bool = option(True, "Take the columns by decreasing diag H; groups keep the original order.")
    growth: float = option(1.05, "Factor by which the range of a group with a clipped code grows.", low=1.001, high=2)
    block_size: int = option(128, "Columns between two updates of all later columns.", low=1, high=65536)

    @torch.no_grad()
    def quantize(self, weight: Tensor, scheme: Scheme, stats: LayerStats | None = None) -> QuantizedWeight:
        """Quantize `weight` [out, in].  Raises QuantizationError if H is not finite or cannot be factored.

        The report has the mean and the largest factor of the ranges (widened, widened_most), and the layer's error
        as a share of its bound (bound_used).
        """
        weight = self.prepare(weight, scheme, stats)
        assert stats is not None  # checked by `prepare`
        hessian = finite_hessian(stats, weight.device)
        diagonal = hessian.diagonal()
        dead = diagonal == 0
        unit = diagonal.sum() / (~dead).sum().clamp(min=1)
        diagonal[dead] = 1  # such columns are rounded to nearest, which clips nothing
        order = torch.argsort(diagonal, descending=True, stable=True) if self.act_order else None
        if order is not None:
            hessian = hessian[order][:, order]
        factor, damping, retries = damped_factor(hessian, self.damping, unit)
        order = torch.arange(len(diagonal), device=weight.device) if order is None else order
        best, widen, error = self._widened(weight, scheme, factor, order)
        bound = (_per_column(best)[:, order] / 2 * factor.diagonal()).square().sum()
        report = {
            "damping": damping,
            "damping_retries": retries,
            "dead_columns": int(dead.sum()),
            "n_tokens": stats.n_tokens,
            "widened": float(widen.mean()),
            "widened_most": float(widen.max()),
            "bound_used": float((error * factor.diagonal()).square().sum() / bound),
        }
        return replace(best, report=report)

    def _widened(
        self, weight: Tensor, scheme: Scheme, factor: Tensor, order: Tensor
    ) -> tuple[QuantizedWeight, Tensor, Tensor]:
        """The result without clipping, the factor of every range [out, groups], and e [out, in] in `order`."""
        widen = weight.new_ones(len(weight), scheme.groups(weight.shape[1]))
        codes = torch.empty(weight.shape, dtype=torch.uint8, device=weight.device)
        scale, zero = torch.empty_like(widen), torch.empty_like(widen)
        errors = torch.empty_like(weight)
        rows = torch.arange(len(weight), device=weight.device)
        group_of = torch.arange(weight.shape[1], device=weight.device) // scheme.columns_per_group(weight.shape[1])
        for _ in range(_MAX_ROUNDS):
            solved = self._solved(weight[rows], scheme, factor, order, widen[rows])
            codes[rows], scale[rows], zero[rows] = solved.codes, solved.scale, solved.zero
            errors[rows] = error = rounding_errors(weight[rows], solved, factor, order)
            clipped = error.abs() > (0.5 + _TOLERANCE) * _per_column(solved)[:, order]
            grown = torch.zeros_like(widen[rows]).index_add_(1, group_of[order], clipped.to(weight.dtype)) > 0
            widen[rows] = torch.where(grown, self.growth * widen[rows], widen[rows])
            rows = rows[grown.any(1)]
            if not len(rows):
                return replace(solved, codes=codes, scale=scale, zero=zero), widen, errors
        raise QuantizationError(f"codes are still clipped after widening {_MAX_ROUNDS} times by {self.growth:g}")

    def _solved(self, weight: Tensor, scheme: Scheme, factor: Tensor, order: Tensor, widen: Tensor) -> QuantizedWeight:
        (solved,) = solve(
            weight.T.contiguous(),
            factor,
            order,
            [scheme],
            [None],
            block_size=self.block_size,
            blocks_end_at_groups=False,
            static_groups=True,
            mse=False,
            widen=widen.T,
        )
        return solved


def rounding_errors(weight: Tensor, quantized: QuantizedWeight, factor: Tensor, order: Tensor) -> Tensor:
    """e [out, in] in `order`: what each column differed by from its code when it was rounded, (w − ŵ)·R / diag R."""
    delta = (weight - quantized.dequantize())[:, order]
    return delta @ factor.triu() / factor.diagonal()


def _per_column(quantized: QuantizedWeight) -> Tensor:
    """The step of every column [out, in], in the original order."""
    return quantized.scale.repeat_interleave(quantized.group_size, 1)[:, : quantized.codes.shape[1]]
