"""The Cholesky factor of the damped Hessian, and the retry with ten times the damping when it does not exist."""

from __future__ import annotations

import torch
from torch import Tensor

from quantizers.errors import QuantizationError
from quantizers.stats import all_finite

FIRST_RETRY = 0.01
"""Damping of the first retry where none was asked for."""

MAX_DAMPING = 1.0

_BLOCK = 256
"""Columns factored at a time on a CPU: torch's own factorisation is slow to clear the other half of a large matrix."""


def damped_factor(hessian: Tensor, damping: float, unit: Tensor) -> tuple[Tensor, float, int]:
    """R with H + damping·unit·I = RRᵀ, the damping that was used, and the number of retries.

    `hessian` [in, in] is overwritten: R is its upper triangle, diagonal included; below the diagonal H is unchanged.
    Raises QuantizationError if H cannot be factored even with a damping of 1.
    """
    diagonal, retries = hessian.diagonal().clone(), 0
    while not _factor(hessian, diagonal + damping * unit):
        if damping >= MAX_DAMPING:
            raise QuantizationError(
                f"the Hessian of {len(hessian)} inputs cannot be factored with damping up to {damping:g}"
            )
        damping = min(MAX_DAMPING, 10 * damping) if damping > 0 else FIRST_RETRY
        retries += 1
        hessian.copy_(hessian.tril() + hessian.tril(-1).T)
    return hessian, damping, retries


def _factor(matrix: Tensor, diagonal: Tensor) -> bool:
    """Factor `matrix` with this diagonal into its own upper triangle; False if it is not positive definite.

    Works in place, by block columns from the last to the first, because copying a large matrix is slow.
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
