"""nanoGPT's checkpoints: `ckpt.pt`, or copies of it under other names beside it, since each save overwrites it.

The file says everything: iter_num, model_args, and in `config` the options of training.  D = iter_num ×
gradient_accumulation_steps × batch_size × block_size; the steps of accumulation are counted over all processes, because
nanoGPT records its options before it divides them among processes.  The model is GPT-2 with an exact GELU.  Without
biases (`bias=False`), GPT-2 gets biases of zero, which N counts: 0.1 % at a width of 768.
Source: github.com/karpathy/nanoGPT, model.py and train.py at 3adf61e.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ptq_eval.checkpoints.converted import ConvertedFormat, part_of
from ptq_eval.checkpoints.counts import count_in, product_in, with_tokens
from ptq_eval.checkpoints.layouts import renamed
from ptq_eval.checkpoints.staging import Content
from ptq_eval.errors import UnreadableCheckpointError, UnsafeCheckpointError
from ptq_eval.records import Checkpoint

if TYPE_CHECKING:
    from torch import Tensor

_NAME = re.compile(r"ckpt[\w.-]*\.pt")
_TRIED = 3
"""Files that are opened to find out what a folder without a `ckpt.pt` holds."""
_BATCH = ("gradient_accumulation_steps", "batch_size", "block_size")
_SIZES = ("block_size", "vocab_size", "n_layer", "n_head", "n_embd")
_TRANSPOSED = re.compile(r"transformer\.h\.\d+\.(attn\.c_attn|attn\.c_proj|mlp\.c_fc|mlp\.c_proj)\.weight")
"""Matrices that GPT-2 keeps as [in, out]."""


class NanoGPT(ConvertedFormat):
    """`ckpt.pt` and its copies."""

    name = "nanogpt"
    looks_like = "ckpt.pt and its copies"
    configuration = "model_args of the file"

    def discover(self, root: Path) -> list[Checkpoint]:
        """The checkpoints in a folder with a file of such a name or content, whatever the others are called."""
        files = [child for child in sorted(root.iterdir()) if child.suffix == ".pt" and child.is_file()]
        if not any(_NAME.fullmatch(file.name) for file in files) and not any(map(_is_sound, files[:_TRIED])):
            return []
        return [self.found(file) for file in files if _NAME.fullmatch(file.name) or _may_be_one(file)]

    def about(self, place: Path) -> Checkpoint:
        """Step and D."""
        saved = _saved(place, "meta")
        step, no_step = count_in(saved, "iter_num", "the file")
        per_step, no_batch = product_in(part_of(saved, "config"), *_BATCH, where="config of the file")
        return with_tokens(step, per_step, f"iter_num × {' × '.join(_BATCH)}", lacks=no_step or no_batch)

    def content(self, place: Path, given: Mapping[str, Any]) -> Content:
        """GPT-2's configuration and tensors."""
        saved = _saved(place)
        sizes = saved["model_args"]
        if wrong := [name for name in _SIZES if type(sizes.get(name)) is not int or sizes[name] < 1]:
            what = f"model_args of {place.name} has no valid {wrong[0]}"
            raise UnreadableCheckpointError(
                what,
                got=repr(sizes.get(wrong[0])),
                allowed="whole numbers from 1 on",
                remedy=f"store the model_args that the training ran with in {place.name}, or exclude its step",
            )
        config = {
            "model_type": "gpt2",
            "architectures": ["GPT2LMHeadModel"],
            "n_positions": sizes["block_size"],
            **{name: sizes[name] for name in _SIZES[1:]},
            "activation_function": "gelu",
            "layer_norm_epsilon": 1e-5,
            "tie_word_embeddings": True,
            "bos_token_id": None,
            "eos_token_id": None,
        }
        return Content({"config.json": json.dumps(config)}, tensors=_as_gpt2(saved["model"], place.name))


def _may_be_one(place: Path, cut: bool = True) -> bool:
    """Whether a file holds what nanoGPT saves, or may have done so before it was cut."""
    from ptq_eval.models.pickles import load_content

    try:
        return _is_one(load_content(place, "meta"))
    except UnsafeCheckpointError:
        return False
    except UnreadableCheckpointError:
        return cut


def _is_sound(place: Path) -> bool:
    return _may_be_one(place, cut=False)


def _is_one(saved: Any) -> bool:
    return isinstance(saved, dict) and all(isinstance(saved.get(name), dict) for name in ("model", "model_args"))


def _saved(place: Path, device: str = "cpu") -> dict[str, Any]:
    """The content of the file.  Raises UnreadableCheckpointError and UnsafeCheckpointError."""
    from ptq_eval.models.pickles import load_content

    saved = load_content(place, device)
    if not _is_one(saved):
        what = f"{place.name} is no checkpoint of nanoGPT"
        remedy = "for a file of another training, give its model's configuration: --architecture CONFIG"
        raise UnreadableCheckpointError(
            what, allowed="a dict with model, model_args, iter_num and config", remedy=remedy
        )
    return saved


def _as_gpt2(tensors: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    import torch

    found = renamed(
        tensors, [(r"(?:_orig_mod\.)?(transformer\..*)", r"\1")], r".*\.attn\.bias|.*lm_head\.weight", where
    )
    found = {name: tensor.T if _TRANSPOSED.fullmatch(name) else tensor for name, tensor in found.items()}
    for name in list(found):
        bias = name.removesuffix("weight") + "bias"
        embeds = name.startswith(("transformer.wte", "transformer.wpe"))
        if name.endswith(".weight") and not embeds and bias not in found:
            found[bias] = torch.zeros(found[name].shape[-1], dtype=found[name].dtype)
    return found
