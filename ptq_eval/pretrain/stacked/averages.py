"""Running averages of the weights of K runs, kept while they train.

ema-D    exponential, decay D; early on min(D, (1 + t)/(10 + t)) after t steps, so that the initial weights are soon
         forgotten.
lawa-k   the mean of the last k snapshots, one every so many steps (Kaddour 2022, arXiv 2209.14981).

Averaging costs no training: where it helps, it does so in the way of a decay of the learning rate.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ptq_eval.pretrain.stacked.options import RunOptions


class Averages:
    """All averages that `options` asks for, of weights [K, P]; `state` holds the tensors from which it goes on."""

    def __init__(self, options: RunOptions, weights: Tensor) -> None:
        self._decays, self._windows, self._every = options.ema, options.lawa, options.lawa_every
        self.state: dict[str, Any] = {"ema": [weights.clone() for _ in self._decays], "snapshots": []}

    def update(self, weights: Tensor, step: int) -> None:
        """Take in the weights after `step` steps."""
        for decay, mean in zip(self._decays, self.state["ema"]):
            mean.lerp_(weights, 1 - min(decay, (1 + step) / (10 + step)))
        if self._windows and step % self._every == 0:
            self.state["snapshots"] = [*self.state["snapshots"], weights.clone()][-max(self._windows) :]

    def found(self) -> dict[str, tuple[dict[str, Any], Tensor]]:
        """{name: (what it is, weights [K, P])} of the averages that exist so far."""
        found = {
            f"ema-{decay:g}": ({"kind": "ema", "decay": decay}, mean)
            for decay, mean in zip(self._decays, self.state["ema"])
        }
        kept = self.state["snapshots"]
        for size in self._windows:
            if len(kept) >= size:
                about = {"kind": "lawa", "snapshots": size, "every_steps": self._every}
                found[f"lawa-{size}"] = (about, torch.stack(kept[-size:]).mean(0))
        return found
