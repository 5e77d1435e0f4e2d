"""The loss of K models from their last hidden states, without ever holding all their logits.

Logits are by far the largest tensors of a small model: 16 runs x 2,048 tokens x 1,024 entries are 134 MB, which the
usual chain (product, logarithm of softmax, choice, and each one's gradient) moves through memory about ten times.
Here a few windows of a few runs at a time go through product, softmax and both products of the gradient while they are
in the cache.  The gradient is thus known after the forward pass; the backward pass scales it.

The mathematics is that of cross-entropy, so losses and gradients are those of the chain but for rounding.
"""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor

CACHE = 1 << 20
"""Bytes of logits that a thread has at a time."""


class TiedHead(torch.autograd.Function):
    """`TiedHead.apply(hidden [K, B, T, width], embedding [K, V, width], ids [K, B, T])`: mean losses [K].

    The loss of a window is over its tokens 2 … T, each predicted from the hidden state before it.  float32, CPU.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, embedding: Tensor, ids: Tensor) -> Tensor:
        """The losses, and, where they are needed, the gradients of their sum."""
        runs, batch, length, width = hidden.shape
        total = hidden.new_zeros(runs)
        wanted = any(ctx.needs_input_grad)
        grad_hidden = torch.zeros_like(hidden) if wanted else None
        grad_embedding = torch.zeros_like(embedding) if wanted else None
        share, threads = batch * (length - 1), torch.get_num_threads()
        windows = max(1, CACHE // (4 * length * embedding.shape[1]))
        for first, at in itertools.product(range(0, runs, threads), range(0, batch, windows)):
            own, some = slice(first, first + threads), slice(at, at + windows)
            x = hidden[own, some, :-1].flatten(1, 2)
            target = ids[own, some, 1:].flatten(1, 2)[:, :, None]
            logits = torch.bmm(x, embedding[own].mT)
            chosen, high = logits.gather(2, target), logits.amax(2, keepdim=True)
            exponentials = logits.sub_(high).exp_()
            sums = exponentials.sum(2, keepdim=True)
            total[own] += (sums.log().add_(high) - chosen).sum((1, 2))
            if grad_hidden is not None and grad_embedding is not None:
                slope = exponentials.div_(sums)
                slope.scatter_add_(2, target, torch.full_like(sums, -1.0))
                found = torch.bmm(slope, embedding[own])
                grad_hidden[own, some, :-1] = found.view(len(x), -1, length - 1, width) / share
                grad_embedding[own].baddbmm_(slope.mT, x, alpha=1 / share)
        if wanted:
            ctx.save_for_backward(grad_hidden, grad_embedding)
        return total / share

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor, Tensor, None]:  # type: ignore[override]
        """The gradients, scaled by `slopes` [K]."""
        grad_hidden, grad_embedding = ctx.saved_tensors
        return grad_hidden * slopes[0].view(-1, 1, 1, 1), grad_embedding * slopes[0].view(-1, 1, 1), None


@torch.compiler.disable()
def tied_head(hidden: Tensor, embedding: Tensor, ids: Tensor) -> Tensor:
    """`TiedHead`, as an eager call within a compiled forward pass."""
    return TiedHead.apply(hidden, embedding, ids)
