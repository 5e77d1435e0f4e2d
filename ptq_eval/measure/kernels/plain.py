"""Logits to log-sum-exp, target and cross term, a block of tokens by a block of the vocabulary at a time.

A block is read while it lies in the core's own cache, and nothing as wide as the vocabulary outlives it.  Each model
keeps a handful of numbers per token (`Sums`): the highest logit so far, Σ exp(z − shift) with the shift that goes with
it, the logit of the next token.  With z the full-precision logits and q a lane's,

    KL(softmax(z) ‖ softmax(q)) = Σ e·(z − q) / Σ e − logsumexp(z) + logsumexp(q),     e = exp(z − shift),

so one exponential per logit serves each model, the reference's e serves all lanes, and no probability is stored.
When a later block raises the shift, what was summed before is scaled (the online softmax of Milakov and Gimelshein
2018).  Sums over a block are in float32, sums of blocks in float64.

Logits below `LOWEST`, minus infinity among them, stand for tokens that a model rules out: they count as `LOWEST`, whose
exponential is zero beside any other, and a next token that was ruled out has an infinite loss.

This is the version in torch, for every device and for CPUs without numba, and what the other one (`reduction_cpu`) is
tested against.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from types import ModuleType

import torch
from torch import Tensor

from quantizers import kernels

LOWEST = -1e6


@dataclass(frozen=True)
class Sums:
    """What is known of one model's logits per token, each [tokens]; changed in place by `reference` and `lane`."""

    highest: Tensor
    """The highest logit (float32)."""
    shift: Tensor
    """What is subtracted before the exponential (nats, float64)."""
    total: Tensor
    """Σ exp(logit − shift) (float64)."""
    cross: Tensor
    """Σ e·logit with the reference's e (float64)."""
    target: Tensor
    """The logit of the next token (float32)."""
    top: Tensor
    """Of the reference the place of its highest logit, of a lane its logit at that place (float64 holds either)."""
    scale: Tensor
    """By what the reference's earlier sums were last multiplied (float64); of no use for a lane."""

    @classmethod
    def nothing(cls, tokens: int, device: torch.device) -> Sums:
        """Before the first block."""
        low = torch.full((tokens,), -torch.inf, device=device)
        zero = lambda dtype: torch.zeros(tokens, dtype=dtype, device=device)
        double = torch.float64
        return cls(low, low.double(), zero(double), zero(double), zero(torch.float32), zero(double), zero(double))

    def part(self, rows: slice) -> Sums:
        """Those of some tokens, as views."""
        return Sums(*(getattr(self, each.name)[rows] for each in fields(self)))

    def logsumexp(self) -> Tensor:
        """[tokens], float64."""
        return self.total.log() + self.shift

    def nll(self) -> Tensor:
        """Negative log-likelihood of the next token [tokens], nats, float64."""
        return torch.where(self.target > LOWEST, self.logsumexp() - self.target, self.target.new_tensor(torch.inf))

    def kl(self, lane: Sums) -> Tensor:
        """KL of `lane` from this reference [tokens], nats, float64."""
        return (self.cross - lane.cross) / self.total - self.logsumexp() + lane.logsumexp()


def best(device: torch.device) -> ModuleType:
    """The module with the fastest `reference` and `lane` for a device: this one, or the one compiled by numba."""
    if kernels.backend(device) == "numba":
        from ptq_eval.measure.kernels import cpu as reduction_cpu

        return reduction_cpu
    import ptq_eval.measure.kernels.plain as plain

    return plain


def reference(z: Tensor, e: Tensor | None, targets: Tensor, first: int, sums: Sums) -> None:
    """Take up full-precision logits z [tokens, columns], float32, of the vocabulary from entry `first` on.

    `e`, of the same shape, becomes exp(z − shift); None where no lane is compared.  z may be changed.
    """
    z.clamp_(min=LOWEST)
    if e is not None:  # torch finds the highest faster than the highest and its place
        highest, place = z.max(-1)
        sums.top.copy_(torch.where(highest > sums.highest, place + first, sums.top))
    shifted = _raise(z, e, z.amax(-1) if e is None else highest, sums)
    if e is not None:
        sums.cross.mul_(sums.scale).add_(torch.linalg.vecdot(e, z))
    sums.total.mul_(sums.scale).add_(shifted)
    _take(z, targets, first, sums.target)


def lane(q: Tensor, e: Tensor, targets: Tensor, first: int, full: Sums, sums: Sums) -> None:
    """Take up a lane's logits q [tokens, columns] of a block whose full-precision `e` and sums are known.

    q may be changed.
    """
    shifted = _raise(q.clamp_(min=LOWEST), None, q.amax(-1), sums)
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


def _take(z: Tensor, places: Tensor, first: int, out: Tensor) -> None:
    """Note the logits at `places` [tokens] of the vocabulary where they lie in this block."""
    inside = (places >= first) & (places < first + z.shape[1])
    found = z.gather(1, (places - first).clamp(0, z.shape[1] - 1)[:, None])[:, 0]
    out.copy_(torch.where(inside, found.to(out.dtype), out))
