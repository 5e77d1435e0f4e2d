"""Low-precision training: tensors rounded in the forward pass, with a straight-through estimator.

Rounded are, each at a precision of its own, the weights and inputs of the linear layers of the blocks, and the keys
(after their rotation) and values that attention reads.  Embedding, head, norms, queries, attention weights, gradients
and the optimizer are never rounded, so training computes in low precision what inference would, and nothing else.

A precision of b bits means the integers −n … n with n = 2^(b−1) − 1 under the scale max|x|/n, rounded half to even.
A number format has the levels of `quantizers.formats`, with the largest magnitude at the largest level.  Nothing is
clipped, so the straight-through estimator (Bengio et al. 2013, arXiv 1308.3432) passes every gradient on unchanged.

Source: Kumar et al. 2024, Scaling Laws for Precision (arXiv 2411.04330), who train so with integers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ptq_eval.pretrain.stacked.options import FULL
from quantizers.formats import FORMATS, Format


@dataclass(frozen=True, eq=False)
class Rounding:
    """How K runs round one kind of tensor.

    top [K]: the largest integer of each run, 1 where it has none; active [K]: whether a run rounds at present; formats:
    the number formats in use, each with the indices of its runs; per: what shares a scale.
    """

    top: Tensor
    active: Tensor
    formats: tuple[tuple[Format, Tensor], ...]
    per: str

    @classmethod
    def of(cls, precisions: Sequence[str], per: str, device: str) -> Rounding | None:
        """The rounding of runs with these precisions; None if all are full."""
        if all(name == FULL for name in precisions):
            return None
        tops = [float(2 ** (int(name) - 1) - 1) if name.isdigit() else 1.0 for name in precisions]
        names = sorted({name for name in precisions if name in FORMATS})
        formats = tuple(
            (FORMATS[name], torch.tensor([k for k, own in enumerate(precisions) if own == name], device=device))
            for name in names
        )
        active = torch.tensor([name != FULL for name in precisions], device=device)
        return cls(torch.tensor(tops, device=device), active, formats, per)


def rounded(x: Tensor, rounding: Rounding | None, shared: tuple[int, ...]) -> Tensor:
    """`x` [K, …] with the values that each run's precision can represent, and the gradient of `x` itself.

    Values along the dimensions `shared` have one scale.
    """
    if rounding is None:
        return x
    with torch.no_grad():
        exact = x.float()
        top, active = (each.view(-1, *[1] * (x.dim() - 1)) for each in (rounding.top, rounding.active))
        scale = exact.abs().amax(shared, keepdim=True) / top
        scale = torch.where(scale == 0, 1.0, scale)
        found = torch.round(exact / scale) * scale
        for form, runs in rounding.formats:
            found = found.index_copy(0, runs, _in_format(exact[runs], form, shared))
        found = torch.where(active, found, exact).to(x.dtype)
    # not x + (found − x): its sum would not be a level of the grid
    return found + (x - x.detach())


@torch.compiler.disable()
def _in_format(x: Tensor, form: Format, shared: tuple[int, ...]) -> Tensor:
    kept = [i for i in range(x.dim()) if i not in shared]
    order = [*kept, *shared]
    moved = x.permute(order)
    groups = moved.reshape(1, -1, math.prod(moved.shape[len(kept) :]))
    params: Any = form.params(groups)
    found = form.weights(form.codes(groups, params), params).view(moved.shape)
    return found.permute([order.index(i) for i in range(x.dim())])


@dataclass(frozen=True, eq=False)
class Precision:
    """How K runs round weights, activations and keys/values; None where no run does."""

    weights: Rounding | None = None
    activations: Rounding | None = None
    kv: Rounding | None = None

    def weight(self, w: Tensor, rows: Sequence[int] = ()) -> Tensor:
        """Weights [K, out, in]: a scale for each output channel, or for the layer.

        rows: of `w`, if it is several layers joined, those of each.
        """
        if self.weights is None or self.weights.per == "channel":
            return rounded(w, self.weights, (2,))
        return torch.cat([rounded(layer, self.weights, (1, 2)) for layer in w.split(list(rows) or w.shape[1], 1)], 1)

    def activation(self, x: Tensor) -> Tensor:
        """Inputs [K, tokens, in] of a layer: a scale for each token, or for the batch."""
        return rounded(x, self.activations, (2,) if self.activations and self.activations.per == "token" else (1, 2))

    def cached(self, x: Tensor) -> Tensor:
        """Keys or values [K, B, heads, T, channels]: a scale for the batch, for each token of it, or for each head."""
        shared = {"tensor": (1, 2, 3, 4), "token": (2, 4), "head": (1, 3, 4)}
        return rounded(x, self.kv, shared[self.kv.per] if self.kv else ())

    def activate(self, active: Tensor, kinds: Sequence[str] = ("weights", "activations", "kv")) -> None:
        """Let only the runs in `active` [K] round from now on, those of full precision excepted."""
        for kind in kinds:
            rounding = getattr(self, kind)
            if rounding is not None:
                rounding.active.copy_(active & self._rounds(rounding))

    @staticmethod
    def _rounds(rounding: Rounding) -> Tensor:
        rounds = rounding.top > 1
        for _, runs in rounding.formats:
            rounds[runs] = True
        return rounds
