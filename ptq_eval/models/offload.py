"""A model larger than memory: its blocks stay on disk and are read when they run, through accelerate's hooks.

transformers lays out which file holds which parameter and accelerate reads each one just before its module runs:
straight from the checkpoint's safetensors, mapped and not copied, so that on a CPU even the page cache is shared
with whoever else reads the file.  Embeddings, output head and final norm stay in memory.  Quantized variants are on
disk too, and one is put in place by making accelerate's hook of each layer read from there.

Every number is the same as with the model in memory: the same weights, the same batches, the same operations.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ptq_eval.models.blueprint import blueprint
from ptq_eval.models.language_model import DTYPES, LanguageModel
from ptq_eval.models.loading import from_pretrained
from ptq_eval.models.parameters import transposed


class OffloadedModel(LanguageModel):
    """A LanguageModel whose decoder blocks are on disk."""

    @classmethod
    def load_from_disk(
        cls,
        folder: str | Path,
        scratch: Path,
        *,
        dtype: str = "float32",
        device: str = "cpu",
        include_head: bool = False,
        include_embedding: bool = False,
        trust_remote_code: bool = False,
        name: str = "",
    ) -> OffloadedModel:
        """As `LanguageModel.load`; `scratch` is for weights that cannot be read where they are (pickles).

        Raises what `LanguageModel.load` raises.
        """
        name = name or str(folder)
        plan = blueprint(folder, trust_remote_code)
        where = {"device_map": dict(placement(plan.module, device)), "offload_folder": str(scratch)}
        with _quiet_accelerate():
            module = from_pretrained(Path(folder), DTYPES[dtype], trust_remote_code, name, scratch / "files", **where)
        quantized = {"include_head": include_head, "include_embedding": include_embedding}
        model = cls(module, **quantized, name=name, outside=plan.outside)
        model.refuse_bidirectional(known=plan.causal)
        return model

    def weight(self, name: str) -> Tensor:
        """The weight of a quantizable module as [out, in], read now, on the model's device."""
        module = self._matrices[name]
        hook = _hook(module)
        if hook is None:
            return super().weight(name)
        weight = hook.weights_map["weight"].to(self.device)
        return weight.T if transposed(module) else weight

    def parameters_of(self, weights: Mapping[str, Tensor]) -> Mapping[str, Any]:
        """The variant's own mapping: its weights are read when their layer runs."""
        return weights

    def adopt(self, weights: Mapping[str, Tensor], names: tuple[str, ...]) -> None:
        """Put the named weights [out, in] in place; they are read when their layer runs."""
        for name in names:
            module = self._matrices[name]
            hook = _hook(module)
            if hook is None:
                super().adopt(weights, (name,))
            else:
                hook.weights_map = _CarriedWeights(hook.weights_map, weights, name, transposed(module))

    @contextlib.contextmanager
    def restoring(self) -> Iterator[None]:
        """Whatever weights are set within the context, afterwards every module reads its own again."""
        hooks = [hook for hook in map(_hook, self._linears.values()) if hook is not None]
        own = [hook.weights_map for hook in hooks]
        with super().restoring():
            try:
                yield
            finally:
                for hook, mapping in zip(hooks, own):
                    hook.weights_map = mapping

    @contextlib.contextmanager
    def carrying(self, parameters: Mapping[str, Any]) -> Iterator[None]:
        """Within the context, the named modules read their weights from `parameters` (of `parameters_of`)."""
        with self.restoring():
            self.adopt(parameters, tuple(parameters))
            yield


class _CarriedWeights(Mapping[str, Tensor]):
    """One module's parameters: its weight read from a quantized variant, the others from where they were."""

    def __init__(self, own: Mapping[str, Tensor], variant: Mapping[str, Tensor], name: str, transpose: bool) -> None:
        self._own, self._variant, self._name, self._transpose = own, variant, name, transpose

    def __getitem__(self, key: str) -> Tensor:
        if key != "weight":
            return self._own[key]
        weight = self._variant[self._name]
        return weight.T.contiguous() if self._transpose else weight

    def __iter__(self) -> Iterator[str]:
        return iter(self._own)

    def __len__(self) -> int:
        return len(self._own)


def placement(module: nn.Module, device: str, prefix: str = "") -> Iterator[tuple[str, str]]:
    """(module name, device or "disk") for accelerate: lists of blocks on disk, everything else on `device`."""
    for name, child in module.named_children():
        full = f"{prefix}{name}"
        if isinstance(child, nn.ModuleList):
            yield full, "disk"
        elif any(isinstance(inner, nn.ModuleList) for inner in child.modules()):
            yield from placement(child, device, f"{full}.")
            yield from ((f"{full}.{own}", device) for own, _ in child.named_parameters(recurse=False))
        else:
            yield full, device


@contextlib.contextmanager
def _quiet_accelerate() -> Iterator[None]:
    """Silence accelerate's notice about offloaded parameters."""
    logger = logging.getLogger("accelerate.big_modeling")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _hook(module: nn.Module) -> Any:
    """accelerate's hook of a module whose weights it reads from disk, or None."""
    hook = getattr(module, "_hf_hook", None)
    return hook if hook is not None and getattr(hook, "offload", False) else None
