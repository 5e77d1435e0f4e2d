"""GPTQ as the paper publishes it, in plain torch: what the solver's speed is measured against.

Algorithm 1 of arXiv 2210.17323 with matrices as in the paper, [rows, columns], on any device: H⁻¹ from the Cholesky
factor of H, the upper factor of H⁻¹ by a second Cholesky, then blocks of 128 columns in which each column is rounded
and its error subtracted from the later columns of the block; the rest of the matrix is updated once per block.  A
group's scale is taken when its first column is reached, from the weights as they were when the current block began, as
in the authors' code: they include the errors of earlier blocks only.  Grids are asymmetric and contain 0.  Column
order, dead columns and retries are not included.

Nothing of the package is used, and nothing is tuned beyond what the paper says.  That it computes what it should is
tested against `tests/reference/gptq.py`.
"""

from __future__ import annotations

import torch
from torch import Tensor

BLOCK = 128
DAMPING = 0.01


def upper_factor(hessian: Tensor) -> Tensor:
    """The upper Cholesky factor of (H + λI)⁻¹ with λ = 1 % of the mean of diag H; H [columns, columns] is kept."""
    damped = hessian.clone()
    damped.diagonal().add_(DAMPING * hessian.diagonal().mean())
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    return torch.linalg.cholesky(inverse, upper=True)


def grid_of(group: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Scale and zero [rows, 1] of a group of columns [rows, size]."""
    high = group.amax(1, keepdim=True).clamp(min=0)
    low = group.amin(1, keepdim=True).clamp(max=0)
    scale = (high - low) / (2**bits - 1)
    return scale, torch.round(-low / scale)


@torch.no_grad()
def gptq(weight: Tensor, factor: Tensor, bits: int, group_size: int) -> tuple[Tensor, Tensor]:
    """Codes and the weight they encode, [rows, columns] each, of `weight` with the factor of `upper_factor`."""
    left, dense = weight.clone(), torch.empty_like(weight)  # `left` is updated once per block
    codes = torch.empty(weight.shape, dtype=torch.uint8, device=weight.device)
    columns = weight.shape[1]
    for start in range(0, columns, BLOCK):
        stop = min(start + BLOCK, columns)
        block, errors = left[:, start:stop].clone(), torch.zeros_like(left[:, start:stop])
        for column in range(stop - start):
            if (start + column) % group_size == 0:
                scale, zero = grid_of(left[:, start + column : start + column + group_size], bits)
            w = block[:, column : column + 1]
            code = torch.clamp(torch.round(w / scale) + zero, 0, 2**bits - 1)
            rounded = scale * (code - zero)
            error = (w - rounded) / factor[start + column, start + column]
            block[:, column:] -= error @ factor[start + column : start + column + 1, start + column : stop]
            errors[:, column], dense[:, start + column] = error[:, 0], rounded[:, 0]
            codes[:, start + column] = code[:, 0].to(torch.uint8)
        left[:, stop:] -= errors @ factor[start:stop, stop:]
    return codes, dense
