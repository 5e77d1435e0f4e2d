"""Qronos (Zhang et al. 2025, arXiv 2505.11695): correct what earlier layers did wrong, then diffuse rounding errors.

The objective is ‖WX − ŴX̃‖², X the inputs in the full-precision model and X̃ those in the quantized one.  Each step
rounds one column to where the error of the whole layer is least, all later columns as they are, and then sets the later
columns to their least-squares optimum.  Only the first step needs both inputs:

    q_1 = round( (W·G_:1 − W_2:·H_2:,1) / H_11 ),      G = XX̃ᵀ, H = X̃X̃ᵀ
    W_2: ← argmin ‖WX − q_1·X̃_1 − W_2:·X̃_2:‖² = (W·G_:,2: − q_1·H_1,2:)·(H_2:,2:)⁻¹

and that from then on it is GPTQ's error diffusion on the corrected weights.  With the unconstrained optimum
W* = W·G·H⁻¹, the second line is W*_2: − (W*_1 − q_1)·U_1,2:/U_11: one step of error diffusion from W*.  So the
algorithm here is GPTQ on W*, the first column being rounded from the first line.

H and G are damped alike, so that W* = W where the inputs are the same: then the method is GPTQ.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from quantizers.base import ALL_FORMATS, QuantizedWeight, Quantizer, Scheme
from quantizers.mismatched import Rounding, problem, round_columns
from quantizers.options import option
from quantizers.stats import LayerStats


@dataclass(frozen=True)
class Qronos(Quantizer):
    """Corrects the errors of earlier layers by least squares, then diffuses rounding errors as GPTQ."""

    name = "qronos"
    version = "1"
    needs_stats = True
    needs_mismatch = True
    default_calibration = "sequential"
    formats = ALL_FORMATS

    damping: float = option(0.01, "Fraction of the mean of diag H that is added to diag H and diag G.", low=0)
    act_order: bool = option(True, "Take the columns by decreasing diag H, the most active inputs first.")
    block_size: int = option(128, "Columns between two updates of all later columns.", low=1)

    @torch.no_grad()
    def quantize(self, weight: Tensor, scheme: Scheme, stats: LayerStats | None = None) -> QuantizedWeight:
        """Quantize `weight` [out, in].  Raises QuantizationError if H is not finite or cannot be factored.

        The report has the damping used and ‖G − H‖/‖H‖ (mismatch), 0 where the two models' inputs are the same.
        """
        weight = self.prepare(weight, scheme, stats)
        assert stats is not None  # checked by `prepare`
        solved = problem(stats, weight.device, self.damping, self.act_order)
        rounding = Rounding(weight, scheme, solved.order)
        state = weight[:, solved.order].clone()
        state[:, solved.dead] = 0
        moved = state @ solved.mismatch  # W(G − H)
        first = state[:, 0] + moved[:, 0] / solved.hessian[0, 0]  # (W·G_:1 − W_2:·H_2:,1) / H_11
        state += moved @ solved.inverse.T @ solved.inverse  # W* = W·G·H⁻¹
        round_columns(state, rounding, solved.inverse, self.block_size, first=first)
        return rounding.result(solved.report)
