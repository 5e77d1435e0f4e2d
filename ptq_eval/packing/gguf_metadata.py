"""What a GGUF file says of its model beside the weights: architecture and tokenizer, from a Hugging Face folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ptq_eval.models.refusal import Obstacle, Refusal, refused

ARCHITECTURES = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}
"""llama.cpp's names by `model_type`."""

REORDERED = ("llama", "mistral")
"""Those whose query and key rows are in another order there."""

_FILE_TYPES = {"q2_k": "Q2_K", "q3_k": "Q3_K_S", "q4_k": "Q4_K_S", "q5_k": "Q5_K_S", "mxfp4": "MXFP4_MOE"}

_SPLITS = {
    "llama-bpe": r"\p{N}{1,3}",
    "qwen2": r"\p{N}|",
}
"""What the expression that splits a text before BPE contains, by its name in llama.cpp."""


def refusal_of_config(config: Mapping[str, Any]) -> Refusal | None:
    """Why a model cannot be described in a file; None if it can."""
    kind = config.get("model_type")
    if kind not in ARCHITECTURES:
        return refused(Obstacle.ARCHITECTURE, model_type=kind, known=tuple(ARCHITECTURES))
    if (activation := config.get("hidden_act", "silu")) != "silu":
        return refused(Obstacle.ACTIVATION, activation=activation)
    if (rope := _rope(config).get("rope_type", "default")) != "default":
        return refused(Obstacle.ROTARY_EMBEDDING, type=rope)
    window = config.get("sliding_window")
    if window and config.get("use_sliding_window", True) and window < config.get("max_position_embeddings", 0):
        return refused(Obstacle.SLIDING_WINDOW, window=window)
    return None


def describe(writer: Any, source: Path, config: Mapping[str, Any], number_format: str) -> None:
    """Add the architecture and the tokenizer of the folder `source` to a `gguf.GGUFWriter`."""
    import gguf

    heads = config["num_attention_heads"]
    width = config.get("head_dim") or config["hidden_size"] // heads
    writer.add_name(source.resolve().name)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config.get("num_key_value_heads") or heads)
    writer.add_key_length(width)
    writer.add_value_length(width)
    writer.add_rope_dimension_count(width)
    writer.add_rope_freq_base(float(_rope(config).get("rope_theta", 10000.0)))
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    name = _FILE_TYPES.get(number_format, number_format.upper())
    writer.add_file_type(gguf.LlamaFileType[f"MOSTLY_{name}"])
    _tokenizer(writer, source, config["vocab_size"])


def _rope(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of rotary embeddings, wherever this version of transformers kept them."""
    scaling = config.get("rope_scaling") or {}
    found = {"rope_theta": config["rope_theta"]} if "rope_theta" in config else {}
    if "type" in scaling:
        found["rope_type"] = scaling["type"]
    return found | scaling | (config.get("rope_parameters") or {})


def _tokenizer(writer: Any, source: Path, size: int) -> None:
    """Add a tokenizer of byte pairs; without one of a known kind the file has none and takes token ids alone."""
    import gguf

    try:
        content = json.loads((source / "tokenizer.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        content = {}
    model = content.get("model", {})
    if model.get("type") != "BPE" or not _of_bytes(content):
        writer.add_tokenizer_model("no_vocab")
        return
    tokens, kinds = [f"[PAD{i}]" for i in range(size)], [gguf.TokenType.UNUSED] * size
    for token, place in model["vocab"].items():
        tokens[place], kinds[place] = token, gguf.TokenType.NORMAL
    for added in content.get("added_tokens", ()):
        tokens[added["id"]] = added["content"]
        kinds[added["id"]] = gguf.TokenType.CONTROL if added["special"] else gguf.TokenType.USER_DEFINED
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(_split(content))
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    gguf.SpecialVocab(source, load_merges=True, n_vocab=size).add_to_gguf(writer, quiet=True)


def _of_bytes(content: Mapping[str, Any]) -> bool:
    """Whether the tokens are pairs of bytes written as GPT-2 writes them."""
    return "ByteLevel" in json.dumps(content.get("pre_tokenizer")) and bool(content["model"].get("merges"))


def _split(content: Mapping[str, Any]) -> str:
    """llama.cpp's name of how a text is split before BPE."""
    expression = json.dumps(content["pre_tokenizer"]).replace("\\\\", "\\")
    return next((name for name, part in _SPLITS.items() if part in expression), "gpt-2")
