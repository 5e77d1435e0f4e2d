"""GPT-NeoX's checkpoints: `global_step1000/` with a file for each layer and rank, and the options in `configs/`.

A pipeline saves `layer_02-model_00-model_states.pt`: layer 0 is the embedding, 2 to N + 1 are the blocks, N + 3 is the
last norm and N + 4 the head, each in one file for each rank of tensor parallelism.  Without a pipeline,
`mp_rank_00_model_states.pt` holds all layers of a rank.  Options may be spread over several files (YAML or JSON, names
with hyphens or underscores).  D = step × train_batch_size × seq_length, where train_batch_size is given: the number of
GPUs is not stored.  Read are models with RoPE of two families, GPT-NeoX's and Llama's (RMSNorm, SwiGLU, no biases).

Ranks are put together as they compute: columns and rows next to each other, norms averaged.  The bias after a sum over
ranks is added on every rank before the sum where attention and MLP are parallel (gpt_j_residual), otherwise once.
With `bias_gelu_fusion` GELU is the approximation by tanh, which published conversions of such models do not keep.
Source: EleutherAI/gpt-neox at ea7aefd, megatron/model/ and tools/ckpts/convert_neox_to_hf.py.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ptq_eval.checkpoints.converted import (
    ConvertedFolders,
    is_size,
    mapping_of,
)
from ptq_eval.checkpoints.counts import product_in, with_tokens
from ptq_eval.checkpoints.layouts import renamed, rows_apart
from ptq_eval.checkpoints.staging import Content
from ptq_eval.errors import UnreadableCheckpointError, UnsupportedModelError
from ptq_eval.records import Checkpoint

if TYPE_CHECKING:
    from torch import Tensor

_LAYER = re.compile(r"layer_(\d+)-model_(\d+)-model_states\.pt")
_RANK = re.compile(r"mp_rank_(\d+)_model_states\.pt")
_OPTIONS = (".yml", ".yaml", ".json")
_AT = r"layers\.(\d+)\."
_IGNORED = r".*(rotary_emb\.inv_freq|masked_bias|_extra_state)"
_NEOX = (
    (r"word_embeddings\.weight", "gpt_neox.embed_in.weight"),
    (r"norm\.(weight|bias)", r"gpt_neox.final_layer_norm.\1"),
    (r"final_linear\.weight", "embed_out.weight"),
    (_AT + r"(input|post_attention)_layernorm\.(weight|bias)", r"gpt_neox.layers.\1.\2_layernorm.\3"),
    (_AT + r"attention\.(query_key_value|dense)\.(weight|bias)", r"gpt_neox.layers.\1.attention.\2.\3"),
    (_AT + r"mlp\.(?:linear1|dense_h_to_4h)\.(weight|bias)", r"gpt_neox.layers.\1.mlp.dense_h_to_4h.\2"),
    (_AT + r"mlp\.(?:linear2|dense_4h_to_h)\.(weight|bias)", r"gpt_neox.layers.\1.mlp.dense_4h_to_h.\2"),
)
_LLAMA = (
    (r"word_embeddings\.weight", "model.embed_tokens.weight"),
    (r"norm\.scale", "model.norm.weight"),
    (r"final_linear\.weight", "lm_head.weight"),
    (_AT + r"(input|post_attention)_layernorm\.scale", r"model.layers.\1.\2_layernorm.weight"),
    (_AT + r"attention\.query_key_value\.(.)\.weight", r"model.layers.\1.self_attn.\2_proj.weight"),
    (_AT + r"attention\.dense\.weight", r"model.layers.\1.self_attn.o_proj.weight"),
    (_AT + r"mlp\.(?:linear1\.gate|w1)\.weight", r"model.layers.\1.mlp.gate_proj.weight"),
    (_AT + r"mlp\.(?:linear1\.up|w3)\.weight", r"model.layers.\1.mlp.up_proj.weight"),
    (_AT + r"mlp\.(?:linear2|w2)\.weight", r"model.layers.\1.mlp.down_proj.weight"),
)
_PARALLEL = {
    r".*(query_key_value|linear1|dense_h_to_4h|w1|w3)\b.*|(word_embeddings|final_linear)\.weight": 0,
    r".*(attention\.dense|linear2|dense_4h_to_h|w2)\.weight": 1,
}
"""The dimension along which ranks divide a tensor."""
_SUMMED = re.compile(r".*(attention\.dense|linear2|dense_4h_to_h)\.bias")
"""Biases added after the sum over ranks."""
_USUAL = {
    "pos_emb": ("rotary",), "gpt_j_tied": (False, None), "use_qk_layernorm": (False, None), "use_mup": (False, None),
    "num_unique_layers": (None,), "sliding_window_width": (None,), "moe_num_experts": (1, None),
    "use_bias_in_norms": (True, False, None), "te_layernorm_mlp": (False, None),
}  # fmt: skip
"""Options without which a model is not one of the two, and those of their values that are."""
_ACTIVATIONS = {"gelu": "gelu", "relu": "relu", "silu": "silu", "swish": "silu"}


class NeoX(ConvertedFolders):
    """`global_stepN/` with `configs/`."""

    name = "neox"
    looks_like = "global_stepN/layer_00-model_00-model_states.pt and configs/"
    configuration = "the files in configs/"
    label = re.compile(r"global_step(\d+)")

    def holds(self, place: Path) -> bool:
        """Whether there are layers or ranks of a model, and its options."""
        return place.is_dir() and bool(_options_files(place)) and bool(_files(place))

    def sources(self, place: Path) -> list[Path]:
        """Layers, options and tokenizer."""
        return [*_files(place), *_options_files(place)]

    def about(self, place: Path) -> Checkpoint:
        """Step and D."""
        names = ("train_batch_size", "seq_length")
        per_step, lacks = product_in(_options(place), *names, where="configs/")
        return with_tokens(self.step_of(place), per_step, f"step × {' × '.join(names)}", lacks=lacks)

    def content(self, place: Path, given: Mapping[str, Any]) -> Content:
        """The configuration and tensors of GPT-NeoX or Llama."""
        options = _options(place)
        kind = _family(options)
        layers = _layers(place, options)
        found = {name: tensor for own in layers for name, tensor in _together(own, options, kind).items()}
        if not options.get("no_weight_tying", False):
            found.pop("final_linear.weight", None)
        found = renamed(found, _NEOX if kind == "gpt_neox" else _LLAMA, _IGNORED, "the checkpoint")
        return Content({"config.json": json.dumps(_config(kind, options, found))}, tensors=found)


def _files(place: Path) -> list[Path]:
    """The files of layers, or those of whole ranks where there are none."""
    names = sorted(place.iterdir())
    layers = [path for path in names if _LAYER.fullmatch(path.name)]
    return layers or [path for path in names if _RANK.fullmatch(path.name)]


def _options_files(place: Path) -> list[Path]:
    folder = place / "configs"
    return sorted(path for path in folder.iterdir() if path.suffix in _OPTIONS) if folder.is_dir() else []


def _options(place: Path) -> dict[str, Any]:
    """All options, by names with underscores.  Raises UnreadableCheckpointError."""
    files = _options_files(place)
    return {name.replace("-", "_"): value for path in files for name, value in _named(mapping_of(path))}


def _named(content: Mapping[Any, Any]) -> list[tuple[str, Any]]:
    return [(name, value) for name, value in content.items() if isinstance(name, str)]


def _layers(place: Path, options: Mapping[str, Any]) -> Iterator[list[dict[str, Tensor]]]:
    """The state of each layer on every rank, or of all layers together; tensors are called `layers.0.…` in blocks.

    Raises UnreadableCheckpointError, also where a file is missing, and UnsafeCheckpointError.
    """
    files, count = _files(place), options["num_layers"]
    ranks = range(options.get("model_parallel_size") or 1)
    if _RANK.fullmatch(files[0].name):
        _require(place, [f"mp_rank_{rank:02}_model_states.pt" for rank in ranks])
        states = [_tensors(place / f"mp_rank_{rank:02}_model_states.pt", "module") for rank in ranks]
        yield [_flat(state, count) for state in states]
        return
    last = count + 3 + bool(options.get("no_weight_tying", False))
    for layer in (0, *range(2, count + 2), *range(count + 3, last + 1)):
        names = [f"layer_{layer:02}-model_{rank:02}-model_states.pt" for rank in ranks]
        _require(place, names)
        prefix = f"layers.{layer - 2}." if 2 <= layer < count + 2 else ""
        yield [{prefix + name: tensor for name, tensor in _tensors(place / own).items()} for own in names]


def _require(place: Path, names: list[str]) -> None:
    if missing := [name for name in names if not (place / name).is_file()]:
        what, allowed = "a file of the checkpoint is missing", "a file for each layer and rank that configs/ says"
        raise UnreadableCheckpointError(what, got=missing[0], allowed=allowed, remedy="fetch the folder again")


def _tensors(path: Path, key: str = "") -> dict[str, Tensor]:
    """The tensors in a file, those under `key` if it is given."""
    import torch

    from ptq_eval.models.pickles import load_content

    content = load_content(path)
    state = content.get(key) if key and isinstance(content, dict) else content
    if not isinstance(state, dict) or not state or not all(isinstance(own, torch.Tensor) for own in state.values()):
        what = f"{path.name} is no state of a layer or rank"
        raise UnreadableCheckpointError(what, got=type(state).__name__, remedy="fetch it again")
    return state


def _flat(state: Mapping[str, Tensor], count: int) -> dict[str, Tensor]:
    """The state of a rank without a pipeline, whose layers are called `sequential.0` and so on."""
    found = {}
    for name, tensor in state.items():
        match = re.fullmatch(r"sequential\.(\d+)\.(.+)", name)
        if match is None:
            remedy = "tools/ckpts/convert_neox_to_hf.py of GPT-NeoX"
            raise UnreadableCheckpointError("a tensor that this format does not know", got=name, remedy=remedy)
        layer = int(match[1])
        found[f"layers.{layer - 2}.{match[2]}" if 2 <= layer < count + 2 else match[2]] = tensor
    return found


def _together(ranks: list[dict[str, Tensor]], options: Mapping[str, Any], kind: str) -> dict[str, Tensor]:
    """The tensors of a layer from those of every rank, for Llama with what is joined apart."""
    if len({frozenset(rank) for rank in ranks}) > 1:
        raise UnreadableCheckpointError("ranks hold different tensors", got=min(ranks[0]), remedy="fetch them again")
    parts = [_apart(rank, options) for rank in ranks] if kind == "llama" else ranks
    found = {}
    for name in parts[0]:
        own = [rank[name] for rank in parts]
        try:
            found[name] = _joined(name, own, bool(options.get("gpt_j_residual", False)))
        except (RuntimeError, IndexError) as error:
            got = f"{name}: {[tuple(part.shape) for part in own]}"
            raise UnreadableCheckpointError("shapes of ranks do not fit together", got=got) from error
    return found


def _joined(name: str, parts: list[Tensor], parallel: bool) -> Tensor:
    import torch

    if len(parts) == 1:
        return parts[0]
    bare = re.sub(r"layers\.\d+\.", "", name)
    for pattern, dimension in _PARALLEL.items():
        if re.fullmatch(pattern, bare):
            return torch.cat(parts, dimension)
    total = torch.stack(parts).sum(0)
    return total if parallel and _SUMMED.fullmatch(name) else total / len(parts)


def _apart(rank: Mapping[str, Tensor], options: Mapping[str, Any]) -> dict[str, Tensor]:
    """A rank's tensors with queries, keys and values, and SwiGLU's joined matrices, apart."""
    heads, ranks = options["num_attention_heads"], options.get("model_parallel_size") or 1
    keys = options.get("num_kv_heads") or heads
    found: dict[str, Tensor] = {}
    for name, tensor in rank.items():
        if name.endswith("query_key_value.weight") and keys == heads:
            by_head = _rows_in(name, tensor, heads // ranks, 3)
            found |= {name.replace(".weight", f".{part}.weight"): own for part, own in zip("qkv", by_head)}
        elif name.endswith("query_key_value.weight"):
            size = options["hidden_size"] // heads
            rows = {"q": heads // ranks * size, "k": keys // ranks * size, "v": keys // ranks * size}
            found |= rows_apart(name.replace(".weight", ".*.weight"), tensor, rows, "configs/")
        elif name.endswith("linear1.weight"):
            half = len(tensor) // 2
            found |= rows_apart(name.replace(".weight", ".*.weight"), tensor, {"up": half, "gate": half}, "configs/")
        else:
            found[name] = tensor
    return found


def _rows_in(name: str, tensor: Tensor, heads: int, parts: int) -> list[Tensor]:
    """The parts of a matrix whose rows are [heads, parts, size]."""
    if len(tensor) % (heads * parts):
        what = f"{name} has another number of rows than configs/ says"
        raise UnreadableCheckpointError(what, got=len(tensor), allowed=f"multiples of {heads * parts}")
    by_head = tensor.unflatten(0, (heads, parts, -1))
    return [by_head[:, part].flatten(0, 1) for part in range(parts)]


def _family(options: Mapping[str, Any]) -> str:
    """The type of transformers' model.  Raises UnreadableCheckpointError and UnsupportedModelError."""
    sizes = ("num_layers", "hidden_size", "num_attention_heads", "max_position_embeddings")
    if wrong := next((name for name in sizes if not is_size(options.get(name))), None):
        what = f"the files in configs/ have no valid {wrong}"
        raise UnreadableCheckpointError(what, got=repr(options.get(wrong))[:80], allowed="whole numbers from 1 on")
    special = [f"{name} = {options.get(name)}" for name, usual in _USUAL.items() if options.get(name) not in usual]
    layers = json.dumps(options.get("attention_config") or [])
    special += [kind for kind in re.findall(r'"(\w+)"', layers) if kind not in ("global", "flash")][:1]
    norm, activation = options.get("norm", "layernorm"), options.get("activation", "gelu")
    biases = options.get("use_bias_in_attn_linear", True), options.get("use_bias_in_mlp", True)
    every_head = options.get("num_kv_heads") in (None, options["num_attention_heads"])
    if not special and norm == "layernorm" and activation in _ACTIVATIONS and biases[1] and every_head:
        return "gpt_neox"
    plain = options.get("rotary_pct", 1) == 1 and not options.get("gpt_j_residual", False) and not any(biases)
    if not special and norm == "rmsnorm" and activation == "swiglu" and plain:
        return "llama"
    raise UnsupportedModelError(
        "a model of GPT-NeoX that is neither like GPT-NeoX nor like Llama",
        got=", ".join(special) or f"{norm}, {activation}, biases {biases[0]} and {biases[1]}",
        remedy="tools/ckpts/convert_neox_to_hf.py of GPT-NeoX, where it knows such models",
    )


def _config(kind: str, options: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    first, inner = {
        "gpt_neox": ("gpt_neox.embed_in.weight", "gpt_neox.layers.0.mlp.dense_h_to_4h.weight"),
        "llama": ("model.embed_tokens.weight", "model.layers.0.mlp.up_proj.weight"),
    }[kind]
    if absent := [name for name in (first, inner) if name not in tensors]:
        raise UnreadableCheckpointError("a tensor is missing", got=absent[0], remedy="fetch the folder again")
    common = {
        "model_type": kind,
        "vocab_size": len(tensors[first]),
        "hidden_size": options["hidden_size"],
        "num_hidden_layers": options["num_layers"],
        "num_attention_heads": options["num_attention_heads"],
        "intermediate_size": len(tensors[inner]),
        "max_position_embeddings": options["max_position_embeddings"],
        "tie_word_embeddings": not options.get("no_weight_tying", False),
        "rope_theta": float(options.get("rotary_emb_base", 10_000)),
        "bos_token_id": None,
        "eos_token_id": None,
    }
    if kind == "llama":
        keys = options.get("num_kv_heads") or options["num_attention_heads"]
        eps = float(options.get("rms_norm_epsilon", 1e-8))
        return {**common, "num_key_value_heads": keys, "rms_norm_eps": eps, "architectures": ["LlamaForCausalLM"]}
    activation = _ACTIVATIONS[options.get("activation", "gelu")]
    fused = activation == "gelu" and options.get("bias_gelu_fusion", False)
    return {
        **common,
        "rotary_pct": float(options.get("rotary_pct", 1)),
        "use_parallel_residual": bool(options.get("gpt_j_residual", False)),
        "layer_norm_eps": float(options.get("layernorm_epsilon", 1e-5)),
        "hidden_act": "gelu_pytorch_tanh" if fused else activation,
        "attention_bias": bool(options.get("use_bias_in_attn_linear", True)),
        "architectures": ["GPTNeoXForCausalLM"],
    }
