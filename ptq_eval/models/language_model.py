"""A causal language model as the rest of the package sees it: logits, and the matrices that may be quantized.

What may be quantized is decided by `parameters`; everything else stays in full precision and is *listed with its
reason*.  Fused expert weights are refused by name, because leaving them in full precision would measure another model.

Weights are swapped by reference, so putting a quantized model in place copies nothing.  A tied head can be quantized
alone, without touching the embedding, or with the embedding, as one matrix that both use.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ptq_eval.config.run import DTYPES as DTYPE_NAMES
from ptq_eval.errors import UnsupportedModelError
from ptq_eval.models.blueprint import blueprint, is_causal, not_causal, usable_length
from ptq_eval.models.loading import from_pretrained, to_device
from ptq_eval.models.parameters import Parts, classify, transposed

DTYPES = {name: getattr(torch, name) for name in DTYPE_NAMES}


class LanguageModel:
    """A loaded causal LM on one device, in evaluation mode, without gradients."""

    def __init__(
        self,
        module: nn.Module,
        *,
        include_head: bool = False,
        include_embedding: bool = False,
        name: str = "",
        outside: Collection[str] = (),
    ) -> None:
        self.module = module.eval().requires_grad_(False)
        self.name, self.outside = name, frozenset(outside)
        self.include_head, self.include_embedding = include_head, include_embedding
        parts = self._classified()
        self._linears, self.excluded = parts.linears, parts.excluded
        self._matrices = {**parts.embedding, **parts.linears}
        self._uses = {name: [own] for name, own in self._matrices.items()}
        self.embedding = next(iter(parts.embedding), None)
        """The name of the token embedding, if it is quantized."""
        if self.embedding is not None:
            self._uses[self.embedding] += parts.shared

    @classmethod
    def load(
        cls,
        folder: str | Path,
        *,
        dtype: str = "float32",
        device: str = "cpu",
        include_head: bool = False,
        include_embedding: bool = False,
        trust_remote_code: bool = False,
        name: str = "",
    ) -> LanguageModel:
        """Load a checkpoint folder through AutoModelForCausalLM (safetensors, or pickles with weights only).

        Raises UnreadableCheckpointError, UnsafeCheckpointError, UnsupportedModelError or DeviceError.
        """
        name = name or str(folder)
        plan = blueprint(folder, trust_remote_code)
        module = from_pretrained(Path(folder), DTYPES[dtype], trust_remote_code, name)
        quantized = {"include_head": include_head, "include_embedding": include_embedding}
        model = cls(to_device(module, device), **quantized, name=name, outside=plan.outside)
        model.refuse_bidirectional(known=plan.causal)
        return model

    @classmethod
    def blueprint(
        cls,
        folder: str | Path,
        *,
        include_head: bool = False,
        include_embedding: bool = False,
        trust_remote_code: bool = False,
        name: str = "",
    ) -> LanguageModel:
        """The model without its weights (on torch's meta device), to know its matrices before anything is loaded.

        Raises what `load` raises for a model that cannot be treated.
        """
        plan = blueprint(folder, trust_remote_code)
        quantized = {"include_head": include_head, "include_embedding": include_embedding}
        return cls(plan.module, **quantized, name=name or str(folder), outside=plan.outside)

    @property
    def device(self) -> torch.device:
        """The device of the parameters."""
        return next(self.module.parameters()).device

    @property
    def vocab_size(self) -> int:
        """Rows of the input embedding."""
        return int(self.module.get_input_embeddings().weight.shape[0])  # type: ignore[operator,union-attr]

    @property
    def width(self) -> int:
        """Columns of the input embedding."""
        return int(self.module.get_input_embeddings().weight.shape[1])  # type: ignore[operator,union-attr]

    @property
    def max_length(self) -> int | None:
        """The longest text that the architecture can read, or None where the configuration does not say."""
        return usable_length(self.module, self.outside)

    def refuse_bidirectional(self, known: bool | None) -> None:
        """Raise UnsupportedModelError if a later token changes earlier logits, unless that is `known` already."""
        if known is None and is_causal(self.module) is False:
            raise not_causal(f"{self.name} ({type(self.module).__name__})")

    @torch.inference_mode()
    def logits(self, ids: Tensor) -> Tensor:
        """Logits [batch, time, vocabulary] of token ids [batch, time], in the model's dtype."""
        return self.module(input_ids=ids.to(self.device), use_cache=False).logits

    @torch.inference_mode()
    def hidden(self, ids: Tensor) -> Tensor:
        """The last hidden states [batch, time, width] of token ids [batch, time], which the head turns into logits."""
        body: Any = self.module.base_model
        return body(input_ids=ids.to(self.device), use_cache=False)[0]

    def factors(self, ids: Tensor) -> bool:
        """Whether the logits of `ids` are, bit for bit, the last hidden states times the output head's weight."""
        head: Any = self.module.get_output_embeddings()  # type: ignore[operator]
        if not isinstance(head, nn.Linear) or self.module.base_model is self.module:
            return False
        hidden = self.hidden(ids)
        if hidden.shape[-1] != head.in_features:
            return False
        with torch.inference_mode():
            return torch.equal(nn.functional.linear(hidden, head.weight, head.bias), self.logits(ids))

    def linears(self) -> dict[str, nn.Module]:
        """The modules that may be quantized and have inputs, by name, in the model's order."""
        return dict(self._linears)

    def matrices(self) -> dict[str, nn.Module]:
        """All modules that may be quantized: the `linears`, and before them the embedding where it is asked for."""
        return dict(self._matrices)

    def weight(self, name: str) -> Tensor:
        """The weight of a quantizable module as [out, in] (a view)."""
        module = self._matrices[name]
        weight: Tensor = module.weight  # type: ignore[assignment]
        return weight.T if transposed(module) else weight

    def weight_bytes(self, name: str) -> int:
        """Memory of a quantizable module's weight."""
        return self._matrices[name].weight.nbytes  # type: ignore[union-attr,return-value]

    def parameters_of(self, weights: Mapping[str, Tensor]) -> Mapping[str, Any]:
        """Weights [out, in] by layer name as parameters ready to be carried, by reference where the layout allows.

        Parameters outside the layers, such as norms, are by their own name.
        """
        return {
            name: self._parameter(name, weight) if name in self._matrices else self._other(name, weight)
            for name, weight in weights.items()
        }

    def _other(self, name: str, value: Tensor) -> nn.Parameter:
        return nn.Parameter(value.to(self.module.get_parameter(name)), requires_grad=False)

    def _parameter(self, name: str, weight: Tensor) -> nn.Parameter:
        module = self._matrices[name]
        if transposed(module):
            weight = weight.T.contiguous()
        own: Tensor = module.weight  # type: ignore[assignment]
        return nn.Parameter(weight.to(own), requires_grad=False)

    def set_weight(self, name: str, weight: Tensor) -> None:
        """Put `weight` [out, in] in place of a module's weight."""
        parameter = self._parameter(name, weight)
        for module in self._uses[name]:
            module.weight = parameter

    def adopt(self, weights: Mapping[str, Tensor], names: tuple[str, ...]) -> None:
        """Put these weights of a quantized variant in place."""
        for name in names:
            self.set_weight(name, weights[name])

    @contextlib.contextmanager
    def restoring(self) -> Iterator[None]:
        """Whatever weights are set within the context, afterwards every module carries its own again."""
        own = self.carried()
        try:
            yield
        finally:
            self.carry(own)

    def carried(self) -> dict[str, Any]:
        """The weights that the quantizable modules carry now, as parameters by name."""
        return {name: module._parameters["weight"] for name, module in self._matrices.items()}

    def carry(self, parameters: Mapping[str, Any]) -> None:
        """Put weights of `carried` or `parameters_of` in place, by reference, until others are."""
        for name, parameter in parameters.items():
            for module in self._uses[name]:
                module._parameters["weight"] = parameter

    @contextlib.contextmanager
    def carrying(self, parameters: Mapping[str, Any]) -> Iterator[None]:
        """Within the context, the model carries other parameters (of `parameters_of`)."""
        others: list[tuple[dict[str, Any], str, Any]] = []
        with self.restoring():
            for name, parameter in parameters.items():
                # Straight into the dictionary: nn.Module's own assignment takes longer than a small layer's product.
                if name in self._uses:
                    for module in self._uses[name]:
                        module._parameters["weight"] = parameter
                    continue
                owner, _, attribute = name.rpartition(".")
                own: dict[str, Any] = self.module.get_submodule(owner)._parameters
                others.append((own, attribute, own[attribute]))
                own[attribute] = parameter
            try:
                yield
            finally:
                for own, attribute, before in others:
                    own[attribute] = before

    def quantized_params(self) -> int:
        """Number of weights that are quantized."""
        return sum(module.weight.numel() for module in self._matrices.values())  # type: ignore[operator,union-attr]

    def describe(self) -> dict[str, Any]:
        """What is quantized and what is not, by name, with counts and the quantized share of what text runs through."""
        quantized = self.quantized_params()
        sizes = {name: p.numel() for name, p in self.module.named_parameters()}  # a shared parameter appears once
        return {
            "architecture": type(self.module).__name__,
            "vocab_size": self.vocab_size,
            "params_total": sum(sizes.values()),
            "params_quantized": quantized,
            "share_quantized": quantized / sum(n for name, n in sizes.items() if name not in self.outside),
            "quantized": list(self._matrices),
            "excluded": [{"name": e.name, "reason": e.reason, "params": e.params} for e in self.excluded],
        }

    def _classified(self) -> Parts:
        parts = classify(self.module, self.include_head, self.outside, self.include_embedding)
        if parts.fused:
            raise UnsupportedModelError(
                f"{self.name}: {len(parts.fused)} fused expert weights cannot be quantized",
                got=", ".join(parts.fused),
                allowed="experts that are nn.Linear modules of their own",
                remedy="use a model class with one nn.Linear per expert matrix",
            )
        if not parts.linears:
            raise UnsupportedModelError(f"{self.name}: no nn.Linear or Conv1D matrix to quantize")
        return parts
