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

from torch import Tensor

from quantizers.mismatched import Mismatched, Problem, Rounding, round_columns
from quantizers.options import option


@dataclass(frozen=True)
class Qronos(Mismatched):
    """Corrects the errors of earlier layers by least squares, then diffuses rounding errors as GPTQ."""

    name = "qronos"
    version = "1"
    source = "Zhang et al. 2025 (arXiv 2505.11695)"

    damping: float = option(0.01, "Fraction of the mean of diag H that is added to diag H and diag G.", low=0, high=1)
    act_order: bool = option(True, "Take the columns by decreasing diag H, the most active inputs first.")

    def _round(self, state: Tensor, known: Problem, rounding: Rounding) -> None:
        moved = state @ known.mismatch  # W(G − H)
        first = state[:, 0] + moved[:, 0] / known.hessian[0, 0]  # (W·G_:1 − W_2:·H_2:,1) / H_11
        state += moved @ known.inverse.T @ known.inverse  # W* = W·G·H⁻¹
        round_columns(state, rounding, known.inverse, self.block_size, first=first)
