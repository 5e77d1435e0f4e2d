"""The factor of a damped Hessian, with more damping where it cannot be had otherwise."""

from __future__ import annotations

import torch
from torch import Tensor

from quantizers.errors import QuantizationError
from quantizers.stats import all_finite

FIRST_RESCUE = 0.01
LAST_RESCUE = 1.0


def cholesky_factor(hessian: Tensor, damping: float, unit: Tensor) -> tuple[Tensor, float, int]:
    """R, upper triangular with H + damping·unit·I = RRᵀ, the damping that was used, and the retries.

    Raises QuantizationError if H cannot be factored even with a damping of 1.0.
    """
    retries = 0
    while True:
        reversed_ = hessian.flip(0, 1)
        reversed_.diagonal().add_(damping * unit)
        lower, failed = torch.linalg.cholesky_ex(reversed_)
        if not failed and all_finite(lower):
            return lower.flip(0, 1), damping, retries
        if damping >= LAST_RESCUE:
            raise QuantizationError(
                f"the Hessian of {len(hessian)} inputs cannot be factored with damping up to {damping:g}"
            )
        damping = min(LAST_RESCUE, 10 * damping) if damping > 0 else FIRST_RESCUE
        retries += 1
