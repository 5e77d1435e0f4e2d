"""What scoring needs to know about one model's logits: seven numbers per token, from which loss and KL follow.

With z the logits in full precision and q a quantized variant's,

    KL(softmax(z) ‖ softmax(q)) = Σ e·(z − q) / Σ e − logsumexp(z) + logsumexp(q),     e = exp(z − shift),

so one exponential per logit serves each model, the full-precision model's e serves all variants, and no probability
is stored.  When a later block of the vocabulary raises the shift, the earlier sums are rescaled (the online softmax of
Milakov and Gimelshein 2018).  Sums over a block are in float32, sums of blocks in float64.

Logits below `LOG_FLOOR`, including minus infinity, belong to tokens that the model rules out.  They count as
`LOG_FLOOR`, whose exponential is zero beside any other, and a next token that was ruled out has an infinite loss.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

LOG_FLOOR = -1e6


@dataclass(frozen=True)
class Sums:
    """Running sums over one model's logits, each [tokens]; the kernels update them in place, block by block."""

    highest: Tensor
    """The highest logit so far (float32)."""
    shift: Tensor
    """What is subtracted before the exponential (nats, float64)."""
    total: Tensor
    """Σ exp(logit − shift) (float64)."""
    cross: Tensor
    """Σ e·logit with the full-precision model's e (float64)."""
    target: Tensor
    """The logit of the next token (float32)."""
    top: Tensor
    """In full precision the index of the highest logit, for a variant its logit at that index (float64 holds both)."""
    scale: Tensor
    """The factor that last rescaled the full-precision sums (float64); unused for a variant."""

    @classmethod
    def zero(cls, tokens: int, device: torch.device) -> Sums:
        """The sums before the first block."""
        low = torch.full((tokens,), -torch.inf, device=device)
        zero = lambda dtype: torch.zeros(tokens, dtype=dtype, device=device)
        double = torch.float64
        return cls(low, low.double(), zero(double), zero(double), zero(torch.float32), zero(double), zero(double))

    def part(self, rows: slice) -> Sums:
        """The sums of some tokens, as views."""
        return Sums(*(getattr(self, each.name)[rows] for each in fields(self)))

    def logsumexp(self) -> Tensor:
        """[tokens], float64."""
        return self.total.log() + self.shift

    def nll(self) -> Tensor:
        """Negative log-likelihood of the next token [tokens], nats, float64."""
        return torch.where(self.target > LOG_FLOOR, self.logsumexp() - self.target, self.target.new_tensor(torch.inf))

    def kl(self, variant: Sums) -> Tensor:
        """KL(this full-precision model ‖ `variant`) [tokens], nats, float64."""
        return (self.cross - variant.cross) / self.total - self.logsumexp() + variant.logsumexp()
