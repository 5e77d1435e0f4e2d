"""Tensors as frameworks store them and as transformers does: under other names, joined, rows in another order."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from ptq_eval.errors import UnreadableCheckpointError

if TYPE_CHECKING:
    from torch import Tensor

_BEFORE = r"(?:model\.)?"
_AT = _BEFORE + r"layers\.(\d+)\."
META_LLAMA = (
    (_BEFORE + r"tok_embeddings\.weight", "model.embed_tokens.weight"),
    (_BEFORE + r"norm\.weight", "model.norm.weight"),
    (_BEFORE + r"(?:output|lm_head)\.weight", "lm_head.weight"),
    (_AT + r"attention\.(?:qkv_linear\.)?w([qkv])\.weight", r"model.layers.\1.self_attn.\2_proj.weight"),
    (_AT + r"attention\.wo\.weight", r"model.layers.\1.self_attn.o_proj.weight"),
    (_AT + r"feed_forward\.w1\.weight", r"model.layers.\1.mlp.gate_proj.weight"),
    (_AT + r"feed_forward\.w2\.weight", r"model.layers.\1.mlp.down_proj.weight"),
    (_AT + r"feed_forward\.w3\.weight", r"model.layers.\1.mlp.up_proj.weight"),
    (_AT + r"attention_norm\.weight", r"model.layers.\1.input_layernorm.weight"),
    (_AT + r"ffn_norm\.weight", r"model.layers.\1.post_attention_layernorm.weight"),
)
"""Names that Meta gave the tensors of Llama, to transformers' names; torchtitan has them too.  RoPE is in pairs."""


def renamed(
    tensors: Mapping[str, Tensor], rules: Iterable[tuple[str, str]], ignored: str = r"(?!)", where: str = "the file"
) -> dict[str, Tensor]:
    """The tensors under the names that the first fitting rule (pattern, replacement) gives them.

    Those that fit `ignored` are dropped.  Raises UnreadableCheckpointError for a name that no rule fits, which would be
    a part of the model that is not understood.
    """
    rules = tuple(rules)
    kept = {name: tensor for name, tensor in tensors.items() if not re.fullmatch(ignored, name)}
    if unknown := next((name for name in kept if _new_name(name, rules) is None), None):
        what = f"{where} has a tensor that this format does not know"
        raise UnreadableCheckpointError(what, got=unknown, remedy="convert it with the library that wrote it")
    return matched(kept, rules)


def matched(tensors: Mapping[str, Tensor], rules: Iterable[tuple[str, str]]) -> dict[str, Tensor]:
    """The same for the names that a rule fits; the others are kept."""
    rules = tuple(rules)
    return {_new_name(name, rules) or name: tensor for name, tensor in tensors.items()}


def _new_name(name: str, rules: Iterable[tuple[str, str]]) -> str | None:
    for pattern, replacement in rules:
        if match := re.fullmatch(pattern, name):
            return match.expand(replacement)
    return None


def rows_apart(name: str, tensor: Tensor, rows: Mapping[str, int], where: str) -> dict[str, Tensor]:
    """A tensor [the sum of `rows`, …] of several layers in parts, by the name of each: `{part: rows}`, in order.

    A part's name replaces `*` in `name`.  Raises UnreadableCheckpointError where `where`, which says how many rows
    there are, contradicts the tensor.
    """
    if len(tensor) != sum(rows.values()):
        what = f"{name.replace('*', '+'.join(rows))} has another number of rows than {where} says"
        remedy = "fetch both again"
        raise UnreadableCheckpointError(what, got=len(tensor), allowed=str(sum(rows.values())), remedy=remedy)
    return {name.replace("*", part): own.clone() for part, own in zip(rows, tensor.split([*rows.values()]))}


def in_halves(weight: Tensor, heads: int) -> Tensor:
    """Queries' or keys' rows [heads · size, …] for a RoPE that rotates halves of a head, from one of neighbours."""
    return weight.unflatten(0, (heads, -1, 2)).transpose(1, 2).flatten(0, 2)
