"""OLMo-core's checkpoints: `step1000/` with `model_and_optim/` (DCP), `config.json` and `train/rank0.pt`.

D is `global_train_tokens_seen` of `train/rank0.pt`, where that holds plain values, else step × global_batch_size of
config.json, which counts tokens.  Read are dense transformers whose blocks are Llama's (norms before attention and MLP)
or OLMo 2's (norms after them, and of queries and keys).  Source: OLMo-core 3.0.0, nn/transformer/config.py and
nn/hf/convert.py.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ptq_eval.checkpoints.converted import (
    ConvertedFolders,
    mapping_of,
    part_of,
    with_tokens_seen,
)
from ptq_eval.checkpoints.counts import product_in, with_tokens
from ptq_eval.checkpoints.dcp import METADATA, read_tensors
from ptq_eval.checkpoints.layouts import renamed
from ptq_eval.checkpoints.staging import Content
from ptq_eval.errors import UnreadableCheckpointError, UnsupportedModelError
from ptq_eval.records import Checkpoint

_MODEL = "model_and_optim"
_AT = r"model\.blocks\.(\d+)\."
_COMMON = (
    (r"model\.embeddings\.weight", "model.embed_tokens.weight"),
    (r"model\.lm_head\.norm\.weight", "model.norm.weight"),
    (r"model\.lm_head\.w_out\.weight", "lm_head.weight"),
    (_AT + r"attention\.w_([qkv])\.weight", r"model.layers.\1.self_attn.\2_proj.weight"),
    (_AT + r"attention\.w_out\.weight", r"model.layers.\1.self_attn.o_proj.weight"),
    (_AT + r"attention\.([qk])_norm\.weight", r"model.layers.\1.self_attn.\2_norm.weight"),
    (_AT + r"feed_forward\.w1\.weight", r"model.layers.\1.mlp.gate_proj.weight"),
    (_AT + r"feed_forward\.w2\.weight", r"model.layers.\1.mlp.down_proj.weight"),
    (_AT + r"feed_forward\.w3\.weight", r"model.layers.\1.mlp.up_proj.weight"),
)
_LLAMA = (
    *_COMMON,
    (_AT + r"attention_norm\.weight", r"model.layers.\1.input_layernorm.weight"),
    (_AT + r"feed_forward_norm\.weight", r"model.layers.\1.post_attention_layernorm.weight"),
)
_OLMO2 = (
    *_COMMON,
    (_AT + r"attention_norm\.weight", r"model.layers.\1.post_attention_layernorm.weight"),
    (_AT + r"feed_forward_norm\.weight", r"model.layers.\1.post_feedforward_layernorm.weight"),
)


class OLMoCore(ConvertedFolders):
    """`stepN/model_and_optim/`."""

    name = "olmo_core"
    looks_like = "stepN/model_and_optim/"
    label = re.compile(r"step(\d+)")

    def holds(self, place: Path) -> bool:
        """Whether there are a model in DCP and its configuration."""
        return (place / _MODEL / METADATA).is_file() and (place / "config.json").is_file()

    def sources(self, place: Path) -> list[Path]:
        """The model's files, configuration and tokenizer."""
        own = [place / "config.json"]
        return [path for path in (*sorted((place / _MODEL).iterdir()), *own) if path.is_file()]

    def about(self, place: Path) -> Checkpoint:
        """Step and D."""
        loader = part_of(mapping_of(place / "config.json"), "data_loader")
        per_step, lacks = product_in(loader, "global_batch_size", where="data_loader of config.json")
        checkpoint = with_tokens(self.step_of(place), per_step, "step × global_batch_size", lacks=lacks)
        return with_tokens_seen(checkpoint, place / "train" / "rank0.pt")

    def content(self, place: Path, given: Mapping[str, Any]) -> Content:
        """The configuration and tensors of Llama or OLMo 2."""
        kind, config = _configuration(part_of(mapping_of(place / "config.json"), "model"))
        tensors = read_tensors(place / _MODEL, lambda name: name.startswith("model."))
        found = renamed(tensors, _LLAMA if kind == "llama" else _OLMO2, where=_MODEL)
        return Content({"config.json": json.dumps(config)}, tensors=found)


def _configuration(model: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """(type of transformers' model, its configuration).  Raises UnsupportedModelError."""
    try:
        block, head = model["block"], model["lm_head"]
        attention = block.get("sequence_mixer") or block["attention"]
        norm, mlp, rope = block["layer_norm"], block["feed_forward"], attention["rope"]
        kind = {"default": "llama", "reordered_norm": "olmo2"}.get(block.get("name", "default"), "")
        normed = attention.get("qk_norm") is not None
        special = [
            name
            for name, is_usual in (
                (f"blocks {block.get('name')}", kind and normed == (kind == "olmo2")),
                ("biases", not (attention.get("bias") or mlp.get("bias") or norm.get("bias") or head.get("bias"))),
                ("sliding windows", attention.get("sliding_window") is None),
                ("scaled RoPE", rope.get("scaling") is None),
                ("blocks that differ", not model.get("block_overrides")),
                (f"norm {norm.get('name')}", norm.get("name") in ("rms", "fused_rms", "cute_rms")),
                ("experts", block.get("feed_forward_moe") is None),
                ("attention sinks", not attention.get("attention_sinks")),
            )
            if not is_usual
        ]
        if special:
            raise UnsupportedModelError(
                "a model of OLMo-core that is neither like Llama nor like OLMo 2",
                got=", ".join(special),
                remedy="src/examples/huggingface/convert_checkpoint_to_hf.py of OLMo-core, -i FOLDER -o NEW",
            )
        heads = attention["n_heads"]
        return kind, {
            "model_type": kind,
            "architectures": [{"llama": "LlamaForCausalLM", "olmo2": "Olmo2ForCausalLM"}[kind]],
            "vocab_size": model["vocab_size"],
            "hidden_size": model["d_model"],
            "num_hidden_layers": model["n_layers"],
            "num_attention_heads": heads,
            "num_key_value_heads": attention.get("n_kv_heads") or heads,
            "intermediate_size": mlp["hidden_size"],
            "rms_norm_eps": norm.get("eps", 1e-5),
            "rope_theta": float(rope.get("theta", 500_000)),
            "tie_word_embeddings": bool(model.get("tie_word_embeddings", False)),
            **({"head_dim": attention["head_dim"]} if attention.get("head_dim") else {}),
        }
    except (KeyError, TypeError, AttributeError) as error:
        what, got = (
            "`model` of config.json is not one of a transformer of OLMo-core",
            f"{type(error).__name__}: {error}",
        )
        raise UnreadableCheckpointError(what, got=got, remedy="fetch it again") from error
