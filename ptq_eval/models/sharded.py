"""A model larger than one GPU: its blocks are shared out over several, in their order, through accelerate's hooks.

accelerate moves what a block reads to the block's device; embeddings, output head and final norm are on the first
device, so token ids go in and logits come out there.  A layer's statistics, its quantized weights and its gradients are
on the device of the layer, and no device holds more than its share of them.

Every number is the same as with the model on one device of the same kind: the same operations in the same order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import nn

from ptq_eval.models.blueprint import blueprint
from ptq_eval.models.language_model import DTYPES, LanguageModel
from ptq_eval.models.loading import from_pretrained
from ptq_eval.models.offload import placement


class ShardedModel(LanguageModel):
    """A LanguageModel whose decoder blocks are on several devices."""

    @classmethod
    def load_on(
        cls,
        folder: str | Path,
        devices: Sequence[str],
        *,
        dtype: str = "float32",
        include_head: bool = False,
        include_embedding: bool = False,
        trust_remote_code: bool = False,
        name: str = "",
    ) -> ShardedModel:
        """As `LanguageModel.load`, on `devices`.  Raises what `LanguageModel.load` raises."""
        name = name or str(folder)
        plan = blueprint(folder, trust_remote_code)
        where = shares(plan.module, devices)
        module = from_pretrained(Path(folder), DTYPES[dtype], trust_remote_code, name, device_map=dict(where))
        quantized = {"include_head": include_head, "include_embedding": include_embedding}
        model = cls(module, **quantized, name=name, outside=plan.outside)
        model.refuse_bidirectional(known=plan.causal)
        return model


def shares(module: nn.Module, devices: Sequence[str]) -> Mapping[str, str]:
    """{module name: device} for accelerate: consecutive blocks on each device, as many that each has its share of the
    parameters; what is not in a list of blocks on the first."""
    found: dict[str, str] = {}
    lists: dict[str, nn.Module] = {}
    for name, device in placement(module, devices[0]):
        if device == "disk":
            lists[name] = module.get_submodule(name)
        else:
            found[name] = device
    blocks = {f"{name}.{own}": _size(block) for name, each in lists.items() for own, block in each.named_children()}
    total = _size(module)
    before = total - sum(blocks.values())
    for name, size in blocks.items():
        # By the middle of a block: the first device has less room for blocks, and the last takes what remains.
        place = int((before + size / 2) / total * len(devices)) if total else 0
        found[name] = devices[min(place, len(devices) - 1)]
        before += size
    return found


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
