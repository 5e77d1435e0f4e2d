"""The factor of a damped Hessian, with more damping where it cannot be had otherwise."""

from __future__ import annotations

import torch
from torch import Tensor

from quantizers.errors import QuantizationError
from quantizers.stats import all_finite

FIRST_RESCUE = 0.01
LAST_RESCUE = 1.0


_BLOCK = 512
"""Columns factored at a time on a CPU, where torch's own factor clears its other half slowly."""


def cholesky_factor(hessian: Tensor, damping: float, unit: Tensor) -> tuple[Tensor, float, int]:
    """R, upper triangular with H + damping·unit·I = RRᵀ, the damping that was used, and the retries.

    Raises QuantizationError if H cannot be factored even with a damping of 1.0.
    """
    retries = 0
    while True:
        factor = _upper(hessian, damping * unit)
        if factor is not None and all_finite(factor):
            return factor, damping, retries
        if damping >= LAST_RESCUE:
            raise QuantizationError(
                f"the Hessian of {len(hessian)} inputs cannot be factored with damping up to {damping:g}"
            )
        damping = min(LAST_RESCUE, 10 * damping) if damping > 0 else FIRST_RESCUE
        retries += 1


def _upper(matrix: Tensor, added: Tensor) -> Tensor | None:
    """R with matrix + added·I = RRᵀ, block column by block column from the last; None if there is none."""
    columns = len(matrix)
    step = columns if matrix.is_cuda else _BLOCK
    factor = torch.zeros_like(matrix)
    for start in reversed(range(0, columns, step)):
        stop = min(start + step, columns)
        panel = matrix[:stop, start:stop].clone()
        panel[start:].diagonal().add_(added)
        if stop < columns:
            panel.addmm_(factor[:stop, stop:], factor[start:stop, stop:].T, alpha=-1)
        lower, failed = torch.linalg.cholesky_ex(panel[start:].flip(0, 1))  # of the reversed block: J·block·J = LLᵀ
        if failed:
            return None
        corner = lower.flip(0, 1)
        factor[start:stop, start:stop] = corner
        if start:
            above = torch.linalg.solve_triangular(corner.T, panel[:start], upper=False, left=False)
            factor[:start, start:stop] = above
    return factor
