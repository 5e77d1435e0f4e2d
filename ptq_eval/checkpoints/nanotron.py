"""nanotron's checkpoints: `1000/` with `checkpoint_metadata.json`, `model_config.json` and a file for each parameter.

Below `model/`, the folders spell a parameter's name.  A parameter that tensor parallelism splits has a file for each
rank, whose header says which slices of the whole it holds, so that any number of ranks is put together alike.  D is
`consumed_tokens_total` of the metadata, before version 1.4 the samples of all stages × their length.  Read are
nanotron's Llama and its Qwen2, which is also what SmolLM3 was trained as (layers without RoPE).  Source: nanotron 0.4
and its repository at 2411b02, serialize/ and models/.
"""

from __future__ import annotations

import json
import math
import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ptq_eval.checkpoints.converted import (
    ConvertedFolders,
    is_size,
    mapping_of,
    part_of,
)
from ptq_eval.checkpoints.counts import count_in, product_in, with_count, with_tokens
from ptq_eval.checkpoints.layouts import in_halves, renamed, rows_apart
from ptq_eval.checkpoints.staging import Content
from ptq_eval.errors import UnreadableCheckpointError, UnsupportedModelError
from ptq_eval.records import Checkpoint

if TYPE_CHECKING:
    from torch import Tensor

_META, _CONFIG = "checkpoint_metadata.json", "model_config.json"
_FILE = re.compile(r"model_(weight|bias)(_pp-rank-\d+-of-\d+_tp-rank-\d+-of-\d+)?(_exp-rank-\d+-of-\d+)?\.safetensors")
_AT = r"model\.decoder\.(\d+)\.pp_block\."
_RULES = (
    (r"model\.token_position_embeddings\.pp_block\.token_embedding\.weight", "model.embed_tokens.weight"),
    (r"model\.final_layer_norm\.pp_block\.weight", "model.norm.weight"),
    (r"model\.lm_head\.pp_block\.weight", "lm_head.weight"),
    (_AT + r"(input|post_attention)_layernorm\.weight", r"model.layers.\1.\2_layernorm.weight"),
    (_AT + r"attn\.qkv_proj\.(weight|bias)", r"model.layers.\1.self_attn.*.\2"),
    (_AT + r"attn\.o_proj\.weight", r"model.layers.\1.self_attn.o_proj.weight"),
    (_AT + r"mlp\.gate_up_proj\.weight", r"model.layers.\1.mlp.*.weight"),
    (_AT + r"mlp\.down_proj\.weight", r"model.layers.\1.mlp.down_proj.weight"),
)
_PLAIN = (
    "rope_scaling", "rope_seq_len_interpolation_factor", "sliding_window_size", "moe_config", "flex_attention_mask",
)  # fmt: skip
"""Entries of a model's configuration that would change it if they were given."""


class Nanotron(ConvertedFolders):
    """`N/` with a `checkpoint_metadata.json`."""

    name = "nanotron"
    looks_like = f"N/ with {_META} and model/"
    configuration = "model_config.json"
    label = re.compile(r"(\d+)")

    def holds(self, place: Path) -> bool:
        """Whether there are nanotron's metadata and a folder of parameters."""
        return (place / _META).is_file() and (place / "model").is_dir()

    def sources(self, place: Path) -> list[Path]:
        """The parameters, configuration and tokenizer."""
        return [*_files(place), place / _CONFIG]

    def about(self, place: Path) -> Checkpoint:
        """Step and D."""
        metas = part_of(mapping_of(place / _META), "metas")
        step, reason = count_in(metas, "last_train_step", _META)
        if step is None:
            raise UnreadableCheckpointError(reason, remedy="fetch it again")
        return with_count(self._of_samples(place, metas, step), metas, "consumed_tokens_total", _META)

    def _of_samples(self, place: Path, metas: Mapping[str, Any], step: int) -> Checkpoint:
        """The checkpoint with D from the samples of all stages and their length, where both are known."""
        stages = metas.get("data_stages")
        names = ("consumed_train_samples", "sequence_length")
        counts = [product_in(stage, *names, where=_META)[0] for stage in _mappings(stages)]
        note = f"consumed_train_samples × sequence_length of the stages in {_META}"
        if not counts and (place / "config.yaml").is_file():
            options = part_of(mapping_of(place / "config.yaml"), "tokens")
            counts = [product_in({**metas, **options}, *names, where="config.yaml")[0]]
            note = f"consumed_train_samples of {_META} × sequence_length of config.yaml"
        known = [count for count in counts if count is not None]
        if not known or len(known) < len(counts):
            return with_tokens(step, None, "")
        return replace(with_tokens(step, None, ""), tokens=sum(known), tokens_source="derived", tokens_note=note)

    def content(self, place: Path, given: Mapping[str, Any]) -> Content:
        """The configuration and tensors of transformers' Llama, Qwen2 or SmolLM3."""
        stated = mapping_of(place / _CONFIG)
        found = renamed(_tensors(place), _RULES, where="model/")
        config = _configuration(stated, found)
        return Content({"config.json": json.dumps(config)}, tensors=_apart(found, stated, config))


def _mappings(value: Any) -> list[dict[str, Any]]:
    return [entry for entry in value if isinstance(entry, dict)] if isinstance(value, list) else []


def _files(place: Path) -> list[Path]:
    return sorted(path for path in (place / "model").rglob("*") if path.name.endswith(".safetensors"))


def _tensors(place: Path) -> dict[str, Tensor]:
    """The parameters by nanotron's names, put together.  Raises UnreadableCheckpointError and UnsupportedModelError."""
    shards: dict[str, list[Path]] = defaultdict(list)
    for path in _files(place):
        match = _FILE.fullmatch(path.name)
        if match is None or match[3]:
            what = "a file of a parameter that is not understood" if match is None else "a model with experts"
            raise UnsupportedModelError(what, got=path.name, remedy="convert it with the scripts of nanotron")
        shards[".".join((*path.parent.relative_to(place / "model").parts, match[1]))].append(path)
    if not shards:
        raise UnreadableCheckpointError("no file of a parameter below model/", remedy="fetch the folder again")
    return {name: _whole(name, paths) for name, paths in shards.items()}


def _whole(name: str, paths: list[Path]) -> Tensor:
    """One parameter from the files of all ranks."""
    import torch

    whole, filled = None, None
    read = [(path, *_read(path)) for path in paths]
    stored = sum(part.numel() for _, part, _ in read)
    for path, part, about in read:
        if "unsharded_shape" not in about:
            if len(paths) > 1:
                what = "several files of a parameter do not say how they fit together"
                raise UnreadableCheckpointError(what, got=name, remedy="fetch the folder again")
            return part
        try:
            shape = tuple(int(size) for size in re.findall(r"\d+(?=\s*[,)])", about["unsharded_shape"]))
            if math.prod(shape) > stored:  # no memory for a shape that the files cannot fill
                break
            if whole is None or filled is None:
                whole = torch.empty(shape, dtype=part.dtype)
                filled = torch.zeros(shape, dtype=torch.bool)
            if shape != tuple(whole.shape):
                raise ValueError(f"a shape of {shape} beside {tuple(whole.shape)}")
            for pair in about["local_global_slices_pairs"].split(";"):
                own, places = (_slices(text) for text in pair.split("#"))
                whole[places] = part[own]
                filled[places] = True
        except (ValueError, KeyError, IndexError, TypeError, RuntimeError) as error:  # torch's for shapes that differ
            what, got = f"the header of {path.name} does not fit its tensor", " ".join(str(error).split())[:160]
            raise UnreadableCheckpointError(what, got=f"{name}: {got}", remedy="fetch it again") from error
    if whole is None or filled is None or not filled.all():
        what, got = "a parameter is not stored whole", f"{name}: {len(paths)} files"
        raise UnreadableCheckpointError(what, got=got, remedy="fetch the files of every rank (tp-rank-…)")
    return whole


def _slices(text: str) -> tuple[slice, ...]:
    """The slices that a header writes as `0,10,None|None,None,None`."""
    ends = lambda one: [None if end == "None" else int(end) for end in one.split(",")]
    return tuple(slice(*ends(one)) for one in text.split("|"))


def _read(path: Path) -> tuple[Tensor, dict[str, str]]:
    """The tensor of a file, and what its header says of it."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as content:
            return content.get_tensor("data"), content.metadata() or {}
    except (SafetensorError, OSError) as error:
        where = f"{path.parent.name}/{path.name}"
        what = f"{where} is truncated or corrupt"
        raise UnreadableCheckpointError(what, got=str(error)[:160], remedy="fetch it again") from error


def _configuration(stated: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The configuration of transformers.  Raises UnreadableCheckpointError and UnsupportedModelError."""
    special = [f"{name} = {stated[name]}" for name in _PLAIN if stated.get(name) is not None]
    if not (stated.get("is_llama_config") or stated.get("is_qwen2_config")) or special:
        got = ", ".join(special) or next((n for n in stated if n.startswith("is_") and stated[n]), "none of its names")
        remedy = "convert it with the scripts in examples/ of nanotron"
        raise UnsupportedModelError("a model of nanotron that is not like Llama", got=got[:160], remedy=remedy)
    sizes = ("hidden_size", "intermediate_size", "num_attention_heads", "num_hidden_layers", "max_position_embeddings")
    if wrong := next((name for name in sizes if not is_size(stated.get(name))), None):
        what = f"{_CONFIG} has no valid {wrong}"
        raise UnreadableCheckpointError(what, got=repr(stated.get(wrong))[:80], allowed="whole numbers from 1 on")
    if "model.embed_tokens.weight" not in tensors:
        raise UnreadableCheckpointError("no embedding below model/", remedy="fetch the folder again")
    heads, without_rope = stated["num_attention_heads"], stated.get("no_rope_layer")
    biased = any(name.endswith(".bias") for name in tensors)
    if biased and without_rope:
        raise UnsupportedModelError("biases beside layers without RoPE", got=f"no_rope_layer = {without_rope}")
    kind, name = ("qwen2", "Qwen2") if biased else ("smollm3", "SmolLM3") if without_rope else ("llama", "Llama")
    return {
        "model_type": kind,
        "architectures": [f"{name}ForCausalLM"],
        "vocab_size": len(tensors["model.embed_tokens.weight"]),
        **{size: stated[size] for size in sizes},
        "num_key_value_heads": stated.get("num_key_value_heads") or heads,
        "hidden_act": stated.get("hidden_act", "silu"),
        "rms_norm_eps": float(stated.get("rms_norm_eps", 1e-6)),
        "rope_theta": float(stated.get("rope_theta", 10_000)),
        "tie_word_embeddings": bool(stated.get("tie_word_embeddings", False)),
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
        **({"no_rope_layer_interval": without_rope} if without_rope else {}),
    }


def _apart(tensors: Mapping[str, Tensor], stated: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Tensor]:
    """With queries, keys and values, and the two halves of SwiGLU's first matrix, apart."""
    heads, keys = config["num_attention_heads"], config["num_key_value_heads"]
    size, inner = config["hidden_size"] // heads, config["intermediate_size"]
    attention = {"q_proj": heads * size, "k_proj": keys * size, "v_proj": keys * size}
    found = {}
    for name, tensor in tensors.items():
        rows = attention if ".self_attn.*" in name else {"gate_proj": inner, "up_proj": inner} if "*" in name else {}
        found |= rows_apart(name, tensor, rows, _CONFIG) if rows else {name: tensor}
    if config["tie_word_embeddings"]:
        found.pop("lm_head.weight", None)
    if stated.get("rope_interleaved", True):  # before there was such an entry, it always was
        for name, count in ((name, {"q": heads, "k": keys}.get(name.split(".")[-2][:1])) for name in list(found)):
            if count and ".self_attn." in name:
                found[name] = in_halves(found[name], count)
    return found
