"""The kernels in torch: for every device, for CPUs without numba, and the reference that `cpu` is tested against.

A block of logits, some tokens by some of the vocabulary, is reduced while it is in the cache; nothing as wide as the
vocabulary outlives it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ptq_eval.measure.kernels.sums import LOG_FLOOR, Sums


def full_precision(z: Tensor, e: Tensor | None, targets: Tensor, first: int, sums: Sums) -> None:
    """Add a block of full-precision logits z [tokens, columns], float32, whose columns start at vocabulary `first`.

    `e`, of the same shape, receives exp(z − shift); None where no variant is compared.  z may be overwritten.
    """
    z.clamp_(min=LOG_FLOOR)
    if e is None:  # torch finds the highest faster than the highest and its index
        highest = z.amax(-1)
    else:
        highest, index = z.max(-1)
        sums.top.copy_(torch.where(highest > sums.highest, index + first, sums.top))
    shifted = _raise(z, e, highest, sums)
    if e is not None:
        sums.cross.mul_(sums.scale).add_(torch.linalg.vecdot(e, z))
    sums.total.mul_(sums.scale).add_(shifted)
    _take(z, targets, first, sums.target)


def variant(q: Tensor, e: Tensor, targets: Tensor, first: int, full: Sums, sums: Sums) -> None:
    """Add a variant's logits q [tokens, columns] of a block whose full-precision `e` and sums `full` are known.

    q may be overwritten.
    """
    shifted = _raise(q.clamp_(min=LOG_FLOOR), None, q.amax(-1), sums)
    sums.cross.mul_(full.scale).add_(torch.linalg.vecdot(e, q))
    sums.total.mul_(sums.scale).add_(shifted)
    _take(q, targets, first, sums.target)
    _take(q, full.top.long(), first, sums.top)


def _raise(z: Tensor, out: Tensor | None, highest: Tensor, sums: Sums) -> Tensor:
    """Raise the shift to the highest logit so far; Σ exp(z − shift) of this block, its terms in `out`."""
    torch.maximum(sums.highest, highest, out=sums.highest)
    shift = sums.highest.double()
    torch.exp(sums.shift - shift, out=sums.scale)
    sums.shift.copy_(shift)
    return torch.sub(z, sums.highest[:, None], out=out).exp_().sum(-1)


def _take(z: Tensor, indices: Tensor, first: int, out: Tensor) -> None:
    """Copy the logits at vocabulary `indices` [tokens] to `out`, for those tokens whose index is in this block."""
    inside = (indices >= first) & (indices < first + z.shape[1])
    found = z.gather(1, (indices - first).clamp(0, z.shape[1] - 1)[:, None])[:, 0]
    out.copy_(torch.where(inside, found.to(out.dtype), out))
