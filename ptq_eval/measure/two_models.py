"""The full-precision model beside the one that is quantized so far, in one module and one pass.

GPTAQ and Qronos need the inputs of a layer in both models, for the same tokens.  The calibration windows therefore pass
twice, side by side, as chunks that wait for each other at every layer (`paused_forward`), and before a chunk runs on,
the weights of its model are put in place, by reference.  Time and activations are doubled; the weights
are those that a sequential pass holds anyway.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from ptq_eval.models.language_model import LanguageModel
from quantizers import LayerStats


class TwoModels:
    """The pass of both models: chunks of windows, first all of the full-precision model, then all of the other."""

    def __init__(self, model: LanguageModel, chunks: Sequence[Tensor]) -> None:
        self.model, self.windows = model, list(chunks)
        self.chunks = [*chunks, *chunks]
        self._full: Mapping[str, Any] = model.carried()
        self._quantized = dict(self._full)
        self._carrying: Mapping[str, Any] = self._full

    def enter(self, number: int) -> None:
        """Put the weights in place of the model to which the chunk `number` belongs."""
        wanted = self._full if number < len(self.windows) else self._quantized
        if wanted is not self._carrying:
            self.model.carry(wanted)
            self._carrying = wanted

    def adopt(self, weights: Mapping[str, Tensor]) -> None:
        """Quantize these layers of the second model."""
        self._quantized.update(self.model.parameters_of(weights))
        self.enter(0)  # whichever model runs next, its weights are put in place anew

    def stats_of(self, inputs: Mapping[int, Tensor]) -> LayerStats | None:
        """Statistics of the second model's inputs, and of what differs; None if no token of it reached the layer.

        Tokens are compared where a layer sees all of them.  An expert sees those that each model sends to it, which
        need not be the same ones; its inputs count as equal.
        """
        stats = None
        for number, windows in enumerate(self.windows):
            x, full = inputs.get(number + len(self.windows)), inputs.get(number)
            if x is None:
                continue
            stats = stats or LayerStats(x.shape[-1], device=x.device)
            every = full is not None and full.shape == x.shape and x.numel() == windows.numel() * x.shape[-1]
            stats.update(x, full if every else None)
        return stats
