"""Checkpoints of OLMo's first library: `step1000-unsharded/` with `config.yaml`, `model.pt` or `model.safetensors`.

D is `global_train_tokens_seen` of `train.pt`, where that holds plain values, else step × global_train_batch_size ×
max_sequence_length of `config.yaml`.  Read are the models of OLMo 1: sequential blocks, SwiGLU, RoPE, layer norms
without parameters and no biases.  OLMo 2 and 3 were trained with OLMo-core.  Source: ai2-olmo 0.6.0, olmo/config.py and
olmo/model.py.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ptq_eval.checkpoints.converted import (
    ConvertedFolders,
    is_size,
    mapping_of,
    part_of,
    with_tokens_seen,
)
from ptq_eval.checkpoints.counts import product_in, with_tokens
from ptq_eval.checkpoints.layouts import renamed, rows_apart
from ptq_eval.checkpoints.staging import Content
from ptq_eval.errors import UnreadableCheckpointError, UnsupportedModelError
from ptq_eval.records import Checkpoint

if TYPE_CHECKING:
    from torch import Tensor

_WEIGHTS = ("model.safetensors", "model.pt")
_AT = r"transformer\.blocks\.(\d+)\."
_RULES = (
    (r"transformer\.wte\.weight", "model.embed_tokens.weight"),
    (r"transformer\.ff_out\.weight", "lm_head.weight"),
    (_AT + r"attn_out\.weight", r"model.layers.\1.self_attn.o_proj.weight"),
    (_AT + r"ff_out\.weight", r"model.layers.\1.mlp.down_proj.weight"),
    (_AT + r"att_proj\.weight", r"model.layers.\1.self_attn.qkv"),
    (_AT + r"ff_proj\.weight", r"model.layers.\1.mlp.both"),
)
_USUAL = {
    "block_type": ("sequential",), "activation_type": ("swiglu",), "rope": (True,), "include_bias": (False,),
    "layer_norm_with_affine": (False,), "layer_norm_type": ("default", "low_precision"), "alibi": (False, None),
    "attention_layer_norm": (False, None), "multi_query_attention": (False, None), "norm_after": (False, None),
    "bias_for_layer_norm": (False, None), "scale_logits": (False, None), "scale_emb_init": (False, None),
}  # fmt: skip


class OLMo(ConvertedFolders):
    """`stepN-unsharded/` with a `config.yaml`."""

    name = "olmo"
    looks_like = "stepN-unsharded/ with a config.yaml"
    configuration = "`model` of config.yaml"
    label = re.compile(r"step(\d+)(?:-unsharded)?")

    def holds(self, place: Path) -> bool:
        """Whether there are weights and a configuration."""
        return (place / "config.yaml").is_file() and any((place / name).is_file() for name in _WEIGHTS)

    def sources(self, place: Path) -> list[Path]:
        """Weights, configuration and tokenizer."""
        return [_weights(place), place / "config.yaml"]

    def about(self, place: Path) -> Checkpoint:
        """Step and D."""
        config = mapping_of(place / "config.yaml")
        names = ("global_train_batch_size", "max_sequence_length")
        per_step, lacks = product_in({**part_of(config, "model"), **config}, *names, where="config.yaml")
        checkpoint = with_tokens(self.step_of(place), per_step, f"step × {' × '.join(names)}", lacks=lacks)
        return with_tokens_seen(checkpoint, place / "train.pt")

    def content(self, place: Path, given: Mapping[str, Any]) -> Content:
        """The configuration and tensors of transformers' Olmo."""
        config = _configuration(part_of(mapping_of(place / "config.yaml"), "model"))
        found = renamed(_tensors(_weights(place)), _RULES, r"_extra_state", _weights(place).name)
        if config["tie_word_embeddings"]:
            found.pop("lm_head.weight", None)
        return Content({"config.json": json.dumps(config)}, tensors=_split(found, config))


def _weights(place: Path) -> Path:
    return next(place / name for name in _WEIGHTS if (place / name).is_file())


def _tensors(path: Path) -> dict[str, Tensor]:
    from ptq_eval.models.pickles import load_pickle

    if path.suffix == ".pt":
        return load_pickle(path)
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        what = f"{path.name} is truncated or corrupt"
        raise UnreadableCheckpointError(what, got=error, remedy="fetch it again") from error


def _configuration(model: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration of transformers' Olmo.  Raises UnreadableCheckpointError and UnsupportedModelError."""
    if special := [
        f"{name} = {model[name]}" for name, usual in _USUAL.items() if model.get(name, usual[0]) not in usual
    ]:
        remedy = "scripts/convert_olmo_to_hf_new.py of OLMo"
        raise UnsupportedModelError("a model unlike OLMo 1", got=", ".join(special), remedy=remedy)
    if not all(map(is_size, map(model.get, ("d_model", "n_heads", "n_layers", "vocab_size", "max_sequence_length")))):
        raise UnreadableCheckpointError("`model` of config.yaml lacks a size", remedy="fetch it again")
    width, hidden = model["d_model"], model.get("mlp_hidden_size")
    tied = bool(model.get("weight_tying", True))
    return {
        "model_type": "olmo",
        "architectures": ["OlmoForCausalLM"],
        "vocab_size": model.get("embedding_size") or model["vocab_size"],
        "hidden_size": width,
        "num_hidden_layers": model["n_layers"],
        "num_attention_heads": model["n_heads"],
        "num_key_value_heads": model.get("n_kv_heads") or model["n_heads"],
        "intermediate_size": (hidden if hidden is not None else model.get("mlp_ratio", 4) * width) // 2,
        "max_position_embeddings": model["max_sequence_length"],
        "clip_qkv": model.get("clip_qkv"),
        "rope_theta": float(model.get("rope_theta") or 10_000),
        "tie_word_embeddings": tied,
    }


def _split(tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Tensor]:
    """With queries, keys and values, and the two halves of SwiGLU's first matrix, apart."""
    width, size = config["hidden_size"], config["hidden_size"] // config["num_attention_heads"]
    keys, inner = config["num_key_value_heads"] * size, config["intermediate_size"]
    parts = {
        "qkv": {"q_proj": width, "k_proj": keys, "v_proj": keys},
        "both": {"up_proj": inner, "gate_proj": inner},
    }
    found = {}
    for name, tensor in tensors.items():
        stem, _, last = name.rpartition(".")
        if last in parts:
            found |= rows_apart(f"{stem}.*.weight", tensor, parts[last], "config.yaml")
        else:
            found[name] = tensor
    return found
