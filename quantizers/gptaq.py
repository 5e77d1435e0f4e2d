"""GPTAQ, asymmetric calibration (Li et al. 2025, arXiv 2504.02692): match the outputs of the full-precision model.

GPTQ matches a layer's output on the inputs X̃ of the quantized model, WX̃, and keeps what earlier layers did wrong.
GPTAQ asks for the output in the full-precision model, WX:

    minimise ‖(W + ΔW)X̃ − WX‖² = ‖ΔW·X̃ − W(X − X̃)‖².

With GPTQ's column-by-column solution, the second term adds to each update of the columns after j what they can take
over of column j's own mismatch w_j·(X − X̃)_j; for all j at once

    W[:, j+1:] += w_j·P_j,j+1: − (w_j − ŵ_j)/U_jj·U_j,j+1:     P = α·((X − X̃)X̃ᵀ·Uᵀ ⊙ strictly upper)·U,   H⁻¹ = UᵀU.

α = 0.25 is the authors' code's; the derivation has α = 1.  Without the inputs of the full-precision model (calibration
"shared", where they are the same) P = 0, and the method is GPTQ.
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
class GPTAQ(Quantizer):
    """GPTQ towards the outputs of the full-precision model."""

    name = "gptaq"
    version = "1"
    needs_stats = True
    needs_mismatch = True
    default_calibration = "sequential"
    formats = ALL_FORMATS

    alpha: float = option(0.25, "Share of the mismatch that is corrected; 1 in the derivation.", low=0)
    damping: float = option(0.01, "Fraction of the mean of diag H that is added to diag H.", low=0)
    act_order: bool = option(False, "Take the columns by decreasing diag H, the most active inputs first.")
    block_size: int = option(128, "Columns between two updates of all later columns.", low=1)

    @torch.no_grad()
    def quantize(self, weight: Tensor, scheme: Scheme, stats: LayerStats | None = None) -> QuantizedWeight:
        """Quantize `weight` [out, in].  Raises QuantizationError if H is not finite or cannot be factored.

        The report has the damping used and ‖M‖/‖H‖ (mismatch), 0 where the two models' inputs are the same.
        """
        weight = self.prepare(weight, scheme, stats)
        assert stats is not None  # checked by `prepare`
        solved = problem(stats, weight.device, self.damping, self.act_order)
        rounding = Rounding(weight, scheme, solved.order)
        state = weight[:, solved.order].clone()
        state[:, solved.dead] = 0
        upper = (solved.mismatch @ solved.inverse.T).triu_(1)
        transfer = self.alpha * upper @ solved.inverse  # P
        round_columns(state, rounding, solved.inverse, self.block_size, transfer=transfer)
        return rounding.result(solved.report)
