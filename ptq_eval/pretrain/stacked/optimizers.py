"""AdamW and Muon over K runs at once: parameters, gradients and moments are [K, P]; a row is a run.

Learning rate, weight decay and betas may differ by run.  Weight decay is decoupled and applies to matrices only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ptq_eval.pretrain.stacked.llama import Layout

EPSILON = 1e-8
MUON_MOMENTUM = 0.95
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
NEWTON_SCHULZ_STEPS = 5
RMS_OF_ADAMW = 0.2


def clipped(gradients: Tensor, limits: Tensor) -> Tensor:
    """`gradients` [K, P] with the norm of each row at most its limit [K], as torch.nn.utils.clip_grad_norm_ does."""
    norms = gradients.norm(dim=1)
    return gradients * (limits / (norms + 1e-6)).clamp(max=1.0)[:, None]


class StackedAdamW:
    """AdamW (Loshchilov and Hutter 2019, arXiv 1711.05101) as torch.optim.AdamW computes it.

    `decays` [P] is 1 where weight decay applies; `weight_decay` and `betas` have an entry for each run.
    """

    def __init__(
        self, decays: Tensor, weight_decay: Sequence[float], betas: Sequence[Sequence[float]], runs: int
    ) -> None:
        device = decays.device
        self._decays, self._betas = decays, betas
        self._weight_decay = torch.tensor(weight_decay, device=device)[:, None]
        first, second = (torch.tensor([pair[i] for pair in betas], device=device)[:, None] for i in (0, 1))
        self._first, self._second = first, second
        self.moments = {name: torch.zeros(runs, len(decays), device=device) for name in ("mean", "square")}

    def step(self, weights: Tensor, gradients: Tensor, rates: Sequence[float], steps: Sequence[int]) -> None:
        """Change `weights` in place at the learning rates of each run; `steps` counts its steps, this one included."""
        device = weights.device
        rate = torch.tensor(rates, device=device)[:, None]
        weights.mul_(1 - rate * self._weight_decay * self._decays)
        mean, square = self.moments["mean"], self.moments["square"]
        mean.lerp_(gradients, 1 - self._first)
        square.lerp_(gradients.square(), 1 - self._second)
        biases = [[1 - beta**t for beta in pair] for pair, t in zip(self._betas, steps)]
        size = torch.tensor([r / first for r, (first, _) in zip(rates, biases)], device=device)[:, None]
        root = torch.tensor([second**0.5 for _, second in biases], device=device)[:, None]
        weights.sub_(size * mean / (square.sqrt() / root + EPSILON))


class StackedMuon:
    """Muon on the matrices of the blocks, AdamW on embedding and norms.

    Source: Jordan 2024 (kellerjordan.github.io/posts/muon) with the update scaled to the size of AdamW's as in Liu et
    al. 2025 (arXiv 2502.16982), so that one learning rate and weight decay serve both.  torch.optim.Muon iterates in
    bfloat16; here that is so on CUDA only, as the CPU has no fast bfloat16 product.
    """

    def __init__(
        self, layout: Layout, device: str, weight_decay: Sequence[float], betas: Sequence[Sequence[float]], runs: int
    ) -> None:
        self._shapes = layout.in_blocks
        self._sizes = [rows * columns for rows, columns in self._shapes.values()]
        self._rest = sum(layout.sizes) - sum(self._sizes)
        self._adamw = StackedAdamW(layout.decays(device)[: self._rest], weight_decay, betas, runs)
        self._weight_decay = torch.tensor(weight_decay, device=device)[:, None]
        momentum = torch.zeros(runs, sum(self._sizes), device=device)
        self.moments = self._adamw.moments | {"momentum": momentum}
        self.dtype = torch.bfloat16 if device.startswith("cuda") else torch.float32

    def step(self, weights: Tensor, gradients: Tensor, rates: Sequence[float], steps: Sequence[int]) -> None:
        """Change `weights` in place at the learning rates of each run; `steps` counts its steps, this one included."""
        self._adamw.step(weights[:, : self._rest], gradients[:, : self._rest], rates, steps)
        matrices, own = weights[:, self._rest :], gradients[:, self._rest :]
        rate, momentum = torch.tensor(rates, device=weights.device)[:, None], self.moments["momentum"]
        momentum.lerp_(own, 1 - MUON_MOMENTUM)
        pieces = own.lerp(momentum, MUON_MOMENTUM).split(self._sizes, 1)
        matrices.mul_(1 - rate * self._weight_decay)
        updates = []
        for piece, (rows, columns) in zip(pieces, self._shapes.values()):
            update = orthogonal(piece.view(-1, rows, columns), self.dtype)
            updates.append(RMS_OF_ADAMW * max(rows, columns) ** 0.5 * update.flatten(1))
        matrices.sub_(rate * torch.cat(updates, 1))


def orthogonal(matrices: Tensor, dtype: torch.dtype) -> Tensor:
    """Each of `matrices` [K, rows, columns] with its singular values moved to about 1, by five Newton–Schulz steps."""
    a, b, c = NEWTON_SCHULZ
    tall = matrices.shape[1] > matrices.shape[2]
    x = (matrices.mT if tall else matrices).to(dtype)
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = torch.bmm(x, x.mT)
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if tall else x).to(matrices.dtype)


def make(name: str, layout: Layout, device: str, weight_decay: Sequence[float], betas: Any, runs: int) -> Any:
    """The optimizer `name` for K runs with these weight decays and betas."""
    if name == "muon":
        return StackedMuon(layout, device, weight_decay, betas, runs)
    return StackedAdamW(layout.decays(device), weight_decay, betas, runs)
