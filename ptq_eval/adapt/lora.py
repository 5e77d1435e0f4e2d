"""A low-rank update on a quantized base: y = (W_q + s·BA)x, s = α/r (Hu et al. 2021, arXiv 2106.09685, section 4.1).

The base holds W_q as dequantized weights, which never change, as in QLoRA (Dettmers et al. 2023, arXiv 2305.14314,
equation 5); the arithmetic is float32 throughout.  Every layer that may be quantized has an update, also those that a
method left in full precision.  A is random and B is zero, so the first model is the base.  Layers are wrapped by peft;
there is no dropout, neither of the update nor in the base.
"""

from __future__ import annotations

import copy
import re
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ptq_eval.errors import MissingPackageError
from ptq_eval.models.language_model import LanguageModel
from ptq_eval.models.parameters import transposed

_NAME = "default"
"""What peft calls the only adapter."""


def require_peft() -> Any:
    """The module peft.  Raises MissingPackageError where it is not installed."""
    try:
        import peft
    except ImportError as error:
        remedy = "pip install 'ptq-eval[adapt]'"
        raise MissingPackageError("adaptation needs the package peft", got=str(error), remedy=remedy) from error
    return peft


class Adapter:
    """A copy of a model with `weights` {layer: [out, in]} in place, and an update of rank `rank` on every linear layer.

    `seed` alone decides the first values of A; no global generator changes.  Raises MissingPackageError.
    """

    def __init__(
        self, model: LanguageModel, weights: Mapping[str, Tensor], *, rank: int, alpha: float, seed: int
    ) -> None:
        peft = require_peft()
        with model.carrying(model.parameters_of(weights)):
            module = copy.deepcopy(model.module)
        names = list(model.linears())
        exactly = "|".join(map(re.escape, names))  # a list also matches longer names that end with one of them
        config = peft.LoraConfig(r=rank, lora_alpha=alpha, target_modules=exactly, lora_dropout=0.0, bias="none")
        with torch.random.fork_rng(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="fan_in_fan_out")  # peft sets it for each layer as it is
            warnings.filterwarnings("ignore", message="Model has `tie_word_embeddings")  # a head's own update is meant
            warnings.filterwarnings("ignore", message="`is_gradient_checkpointing`", category=FutureWarning)
            torch.manual_seed(seed)
            wrapped: Any = peft.get_peft_model(module, config)
        self.module = wrapped.eval()
        self._layers: dict[str, Any] = {name: wrapped.base_model.model.get_submodule(name) for name in names}
        self.parameters = [parameter for parameter in wrapped.parameters() if parameter.requires_grad]

    @property
    def size(self) -> int:
        """The number of trained parameters."""
        return sum(parameter.numel() for parameter in self.parameters)

    def loss(self, ids: Tensor) -> Tensor:
        """Mean loss of windows `ids` [batch, time] over all tokens but the first, nats per token."""
        logits = self.module(input_ids=ids, use_cache=False).logits[:, :-1]
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), ids[:, 1:].flatten())

    def factors(self, name: str) -> tuple[Tensor, Tensor]:
        """A [rank, in] and B [out, rank] of a layer."""
        layer = self._layers[name]
        return layer.lora_A[_NAME].weight, layer.lora_B[_NAME].weight

    @torch.no_grad()
    def merged(self) -> dict[str, Tensor]:
        """W_q + s·BA of every layer: {name: [out, in]}."""
        found = {}
        for name, layer in self._layers.items():
            own = layer.base_layer
            weight = own.weight.T if transposed(own) else own.weight
            up, down = self.factors(name)[::-1]
            found[name] = weight + layer.scaling[_NAME] * (up @ down)
        return found
