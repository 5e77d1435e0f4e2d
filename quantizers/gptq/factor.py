"""The factor of a damped Hessian, with more damping where it cannot be had otherwise."""

from __future__ import annotations

import torch
from torch import Tensor

from quantizers.errors import QuantizationError
from quantizers.stats import all_finite

FIRST_RESCUE = 0.01
LAST_RESCUE = 1.0


_BLOCK = 256
"""Columns factored at a time on a CPU, where torch's own factor clears its other half slowly."""


def cholesky_factor(hessian: Tensor, damping: float, unit: Tensor) -> tuple[Tensor, float, int]:
    """R with H + damping·unit·I = RRᵀ, the damping that was used, and the retries.

    R takes the place of the upper half of `hessian`, diagonal included; below the diagonal H stays as it was.
    Raises QuantizationError if H cannot be factored even with a damping of 1.0.
    """
    diagonal, retries = hessian.diagonal().clone(), 0
    while not _factored(hessian, diagonal + damping * unit):
        if damping >= LAST_RESCUE:
            raise QuantizationError(
                f"the Hessian of {len(hessian)} inputs cannot be factored with damping up to {damping:g}"
            )
        damping = min(LAST_RESCUE, 10 * damping) if damping > 0 else FIRST_RESCUE
        retries += 1
        hessian.copy_(hessian.tril() + hessian.tril(-1).T)
    return hessian, damping, retries


def _factored(matrix: Tensor, diagonal: Tensor) -> bool:
    """Whether `matrix` with that diagonal has a factor; it is left in its upper half.

    Block column by block column from the last, in place: a large matrix is slow to copy.
    """
    columns = len(matrix)
    step = columns if matrix.is_cuda else _BLOCK
    matrix.diagonal().copy_(diagonal)
    for start in reversed(range(0, columns, step)):
        stop = min(start + step, columns)
        above, block = matrix[:start, start:stop], matrix[start:stop, start:stop]
        below = block.tril(-1)
        if stop < columns:
            matrix[:stop, start:stop].addmm_(matrix[:stop, stop:], matrix[start:stop, stop:].T, alpha=-1)
        lower, failed = torch.linalg.cholesky_ex(block.flip(0, 1))  # of the reversed block: J·block·J = LLᵀ
        corner = lower.flip(0, 1)
        torch.add(corner, below, out=block)
        if failed:
            return False
        if start:
            inverse = torch.linalg.solve_triangular(corner.T, torch.eye(stop - start).to(corner), upper=False)
            above.copy_(above @ inverse)
    return all_finite(matrix)
