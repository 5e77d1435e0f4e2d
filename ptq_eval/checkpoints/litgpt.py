"""litgpt's checkpoints: `step-00001000/lit_model.pth` with a `model_config.yaml`, and `final/` beside them.

D = step × global_batch_size × max_seq_length of `hyperparameters.yaml`; the step is the folder's or, in `final`, the
file's.  Two families of its configurable model are read, those that its pretraining recipes train: Llama's (RMSNorm and
SwiGLU without biases) and GPT-NeoX's (LayerNorm and GELU with biases).  Files of a pretraining hold the state of the
data loader too, which may be an object and is then not unpickled; litgpt writes a file of tensors with
`litgpt convert_pretrained_checkpoint`.  Source: litgpt 0.5.13, litgpt/config.py and scripts/convert_lit_checkpoint.py.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ptq_eval.checkpoints.converted import (
    ConvertedFolders,
    mapping_of,
    part_of,
)
from ptq_eval.checkpoints.counts import count_in, product_in, with_tokens
from ptq_eval.checkpoints.layouts import renamed, rows_apart
from ptq_eval.checkpoints.staging import Content
from ptq_eval.errors import UnreadableCheckpointError, UnsafeCheckpointError, UnsupportedModelError
from ptq_eval.records import Checkpoint

if TYPE_CHECKING:
    from torch import Tensor

_FILE = "lit_model.pth"
_SIZES = (
    "n_embd",
    "n_layer",
    "n_head",
    "n_query_groups",
    "head_size",
    "intermediate_size",
    "padded_vocab_size",
    "block_size",
)
_AT = r"transformer\.h\.(\d+)\."
_LLAMA = (
    (r"transformer\.wte\.weight", "model.embed_tokens.weight"),
    (r"transformer\.ln_f\.weight", "model.norm.weight"),
    (r"(lm_head\.weight)", r"\1"),
    (_AT + r"norm_1\.weight", r"model.layers.\1.input_layernorm.weight"),
    (_AT + r"norm_2\.weight", r"model.layers.\1.post_attention_layernorm.weight"),
    (_AT + r"attn\.proj\.weight", r"model.layers.\1.self_attn.o_proj.weight"),
    (_AT + r"attn\.(?:qkv|attn)\.weight", r"model.layers.\1.self_attn.qkv.weight"),
    (_AT + r"mlp\.fc_1\.weight", r"model.layers.\1.mlp.gate_proj.weight"),
    (_AT + r"mlp\.fc_2\.weight", r"model.layers.\1.mlp.up_proj.weight"),
    (_AT + r"mlp\.proj\.weight", r"model.layers.\1.mlp.down_proj.weight"),
)
_NEOX = (
    (r"transformer\.wte\.weight", "gpt_neox.embed_in.weight"),
    (r"transformer\.ln_f\.(weight|bias)", r"gpt_neox.final_layer_norm.\1"),
    (r"lm_head\.weight", "embed_out.weight"),
    (_AT + r"norm_1\.(weight|bias)", r"gpt_neox.layers.\1.input_layernorm.\2"),
    (_AT + r"norm_2\.(weight|bias)", r"gpt_neox.layers.\1.post_attention_layernorm.\2"),
    (_AT + r"attn\.proj\.(weight|bias)", r"gpt_neox.layers.\1.attention.dense.\2"),
    (_AT + r"attn\.(?:qkv|attn)\.(weight|bias)", r"gpt_neox.layers.\1.attention.query_key_value.\2"),
    (_AT + r"mlp\.fc\.(weight|bias)", r"gpt_neox.layers.\1.mlp.dense_h_to_4h.\2"),
    (_AT + r"mlp\.proj\.(weight|bias)", r"gpt_neox.layers.\1.mlp.dense_4h_to_h.\2"),
)
_PLAIN = {
    "norm_qk": False, "post_attention_norm": False, "post_mlp_norm": False, "shared_attention_norm": False,
    "sliding_window_size": None, "attention_logit_softcapping": None, "rope_condense_ratio": 1,
    "rope_interleave": False, "rope_adjustments": None, "n_expert": 0, "scale_embeddings": False, "lm_head_bias": False,
    "final_logit_softcapping": None, "latent_attention": None, "attention_scores_scalar": None, "norm_1": True,
    "norm_2": True, "rope_local_base_freq": None,
}  # fmt: skip
"""Entries of a model's configuration that would change it otherwise; absent in files of earlier versions."""


class LitGPT(ConvertedFolders):
    """`step-N/lit_model.pth`."""

    name = "litgpt"
    looks_like = "step-N/lit_model.pth"
    configuration = "model_config.yaml"
    label = re.compile(r"step-(\d+)")

    def holds(self, place: Path) -> bool:
        """Whether there is a file of litgpt's weights."""
        return (place / _FILE).is_file()

    def sources(self, place: Path) -> list[Path]:
        """Weights and configuration; the tokenizer, which may be with the run."""
        return [place / _FILE, place / "model_config.yaml"]

    def about(self, place: Path) -> Checkpoint:
        """Step and D."""
        step, no_step = self.step_of(place), ""
        if step is None:
            step, no_step = count_in(_saved(place, "meta"), "step_count", _FILE)
        path = place / "hyperparameters.yaml"
        options = part_of(mapping_of(path), "train") if path.is_file() else {}
        if options.get("max_seq_length") is None:
            options = {**options, "max_seq_length": mapping_of(place / "model_config.yaml").get("block_size")}
        per_step, no_batch = product_in(options, "global_batch_size", "max_seq_length", where=path.name)
        note = "step × global_batch_size × max_seq_length"
        return with_tokens(step, per_step, note, lacks=no_step or no_batch)

    def content(self, place: Path, given: Mapping[str, Any]) -> Content:
        """The configuration and tensors of Llama or GPT-NeoX."""
        stated = mapping_of(place / "model_config.yaml")
        if wrong := [name for name in _SIZES if type(stated.get(name)) is not int or stated[name] < 1]:
            what = f"model_config.yaml has no valid {wrong[0]}"
            raise UnreadableCheckpointError(what, got=repr(stated.get(wrong[0])), allowed="whole numbers from 1 on")
        kind = _family(stated)
        saved = _saved(place)
        tensors = {name.removeprefix("_orig_mod."): tensor for name, tensor in saved.get("model", saved).items()}
        found = renamed(tensors, _LLAMA if kind == "llama" else _NEOX, where=_FILE)
        found = _as_llama(found, stated) if kind == "llama" else _as_neox(found, stated)
        return Content({"config.json": json.dumps(_config(kind, stated))}, tensors=found)


def _saved(place: Path, device: str = "cpu") -> dict[str, Any]:
    """The content of the weights' file.  Raises UnreadableCheckpointError and UnsafeCheckpointError."""
    from ptq_eval.models.pickles import load_content

    try:
        saved = load_content(place / _FILE, device)
    except UnsafeCheckpointError as error:
        remedy = f"litgpt convert_pretrained_checkpoint {place} NEW, which keeps the tensors alone"
        raise UnsafeCheckpointError(error.fault, got=error.got, remedy=remedy) from error
    if not isinstance(saved, dict) or not isinstance(saved.get("model", saved), dict):
        raise UnreadableCheckpointError(f"{_FILE} is no state dict", got=type(saved).__name__)
    return saved


def _family(stated: Mapping[str, Any]) -> str:
    """The type of transformers' model that computes the same.  Raises UnsupportedModelError."""
    kind = stated.get("norm_class_name"), stated.get("mlp_class_name")
    special = [name for name, usual in _PLAIN.items() if stated.get(name, usual) != usual]
    biased, parallel = stated.get("bias") or stated.get("attn_bias"), stated.get("parallel_residual")
    if kind == ("RMSNorm", "LLaMAMLP") and not (special or biased or parallel or stated.get("rotary_percentage") != 1):
        return "llama"
    every_head = stated["n_query_groups"] == stated["n_head"]
    if kind == ("LayerNorm", "GptNeoxMLP") and not special and stated.get("bias") and every_head:
        return "gpt_neox"
    raise UnsupportedModelError(
        "a model of litgpt that is neither like Llama nor like GPT-NeoX",
        got=", ".join(special) or f"{kind[0]}, {kind[1]}",
        remedy="litgpt convert_from_litgpt FOLDER NEW; rename NEW/model.pth to pytorch_model.bin and add a config.json",
    )


def _config(kind: str, stated: Mapping[str, Any]) -> dict[str, Any]:
    common = {
        "model_type": kind,
        "vocab_size": stated["padded_vocab_size"],
        "hidden_size": stated["n_embd"],
        "num_hidden_layers": stated["n_layer"],
        "num_attention_heads": stated["n_head"],
        "intermediate_size": stated["intermediate_size"],
        "max_position_embeddings": stated["block_size"],
        "tie_word_embeddings": False,
        "rope_theta": float(stated.get("rope_base", 10000)),
    }
    eps = float(stated.get("norm_eps", 1e-5))
    if kind == "llama":
        heads = {"num_key_value_heads": stated["n_query_groups"], "head_dim": stated["head_size"]}
        return {**common, **heads, "rms_norm_eps": eps, "architectures": ["LlamaForCausalLM"]}
    gelu = {"none": "gelu", "tanh": "gelu_pytorch_tanh"}[stated.get("gelu_approximate", "none")]
    parallel = bool(stated.get("parallel_residual", True))
    return {
        **common, "layer_norm_eps": eps, "hidden_act": gelu, "use_parallel_residual": parallel,
        "rotary_pct": stated.get("rotary_percentage", 0.25), "architectures": ["GPTNeoXForCausalLM"],
    }  # fmt: skip


def _as_llama(tensors: dict[str, Tensor], stated: Mapping[str, Any]) -> dict[str, Tensor]:
    """With queries, keys and values apart."""
    size = stated["head_size"]
    keys = stated["n_query_groups"] * size
    rows = {"q_proj": stated["n_head"] * size, "k_proj": keys, "v_proj": keys}
    found = {}
    for name, tensor in tensors.items():
        if name.endswith("qkv.weight"):
            found |= rows_apart(name.replace("qkv", "*"), tensor, rows, "model_config.yaml")
        else:
            found[name] = tensor
    return found


def _as_neox(tensors: dict[str, Tensor], stated: Mapping[str, Any]) -> dict[str, Tensor]:
    """With queries, keys and values of each head together."""
    import torch

    heads, size = stated["n_head"], stated["head_size"]
    rows = {part: heads * size for part in "qkv"}
    found = {}
    for name, tensor in tensors.items():
        if ".query_key_value." in name:
            parts = rows_apart(name.replace("query_key_value", "*"), tensor, rows, "model_config.yaml").values()
            tensor = torch.stack([part.unflatten(0, (heads, size)) for part in parts], dim=1).flatten(0, 2)
        found[name] = tensor
    return found
