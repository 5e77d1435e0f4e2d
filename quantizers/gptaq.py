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

from torch import Tensor

from quantizers.mismatched import Mismatched, Problem, Rounding, round_columns
from quantizers.options import option


@dataclass(frozen=True)
class GPTAQ(Mismatched):
    """GPTQ towards the outputs of the full-precision model."""

    name = "gptaq"
    version = "1"
    source = "Li et al. 2025 (arXiv 2504.02692)"

    alpha: float = option(0.25, "Share of the mismatch that is corrected; 1 in the derivation.", low=0, high=1)

    def _round(self, state: Tensor, known: Problem, rounding: Rounding) -> None:
        upper = (known.mismatch @ known.inverse.T).triu_(1)
        transfer = self.alpha * upper @ known.inverse  # P
        round_columns(state, rounding, known.inverse, self.block_size, transfer=transfer)
