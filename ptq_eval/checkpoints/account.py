"""How the tensors of a file fit an architecture: which parameters they are, which are absent, which no parameter takes.

transformers itself is asked, which is handed names, types and shapes as tensors without content.  A buffer is no
parameter: causal masks and rotary tables that older versions stored are neither surplus nor a reason to exclude a
checkpoint, whatever is in them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from ptq_eval.models.blueprint import Blueprint
from ptq_eval.models.weight_files import Recipe, dequantizing

Layout = Mapping[str, tuple[str, tuple[int, ...]]]
"""Type (as safetensors names it) and shape of each tensor, by name."""

_HISTORIC = re.compile(
    r"(^|[._])(masked_bias|causal_mask|attn_mask|attention_mask|bias_mask|inv_freq|original_inv_freq|rope\.freqs|freqs_cis"
    r"|cos_cached|sin_cached|cos_sin_cache|position_ids|token_type_ids|alibi|embed_positions\._float_tensor|_extra_state)$"
    r"|(^|\.)(rope|rotary\w*)\.(cache|scale|scale_base|freqs|cos|sin)$"
    r"|(^|\.)((k|v|key|value|rope|cos|sin|mask)_cache|cache_(k|v|pos)|kv_cache\.[kv]|tril|(freqs_)?(cos|sin)"
    r"|(alibi_)?slopes)$"
)
"""Buffers that some version of some library stored beside the weights: masks, rotary tables, positions, caches of keys
and values, and the state of TransformerEngine's layers."""

_MASK = re.compile(r"(^|\.)(attn|attention|self_attn|self_attention)\.(bias|\w*mask)$|^(model\.)?\w*mask$")
"""The causal mask, as of GPT-2, GPT-Neo and GPT-NeoX: a buffer with a row for each position."""


@dataclass(frozen=True)
class Account:
    """What loading would say: parameters `missing`, `mismatched` in shape, `surplus` tensors; and those used.

    mismatched: (name, shape found, shape expected) of each.
    """

    missing: tuple[str, ...]
    mismatched: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...]
    surplus: tuple[str, ...]
    parameters: frozenset[str]


def load_account(plan: Blueprint, tensors: Layout, recipe: Recipe | None = None) -> Account:
    """How `tensors` fit the architecture; nothing is read, and the same question is asked once.

    `recipe`: how weights that are dequantized on loading were quantized.  Raises whatever stops transformers.
    """
    return _load_account(
        plan, tuple(sorted((name, kind, tuple(shape)) for name, (kind, shape) in tensors.items())), recipe
    )


@lru_cache(maxsize=64)
def _load_account(
    plan: Blueprint, tensors: tuple[tuple[str, str, tuple[int, ...]], ...], recipe: Recipe | None
) -> Account:
    import torch

    from ptq_eval.checkpoints.weights import TORCH_TYPES

    types = {ours: getattr(torch, name, torch.float32) for name, ours in TORCH_TYPES.items()}
    empty = {n: torch.empty(shape, dtype=types.get(k, torch.float32), device="meta") for n, k, shape in tensors}
    info = plan.loaded(empty, **(dequantizing(plan.content) if recipe else {}))
    unexpected = set(info["unexpected_keys"])
    buffers = _buffers(plan.module, tensors)
    return Account(
        missing=tuple(sorted(info["missing_keys"])),
        mismatched=tuple(sorted((key[0], tuple(key[1]), tuple(key[2])) for key in info["mismatched_keys"])),
        surplus=tuple(sorted(unexpected - buffers)),
        parameters=frozenset(name for name, *_ in tensors) - unexpected - buffers,
    )


def was_buffer(name: str, shape: tuple[int, ...]) -> bool:
    """Whether a tensor is no parameter of any model, by its name: what is in it does not matter."""
    return _HISTORIC.search(name) is not None or (_MASK.search(name) is not None and len(shape) != 1)


def _buffers(module: Any, tensors: Iterable[tuple[str, str, tuple[int, ...]]]) -> set[str]:
    """The stored tensors that are buffers of this architecture, were some once, or are ignored when it is loaded.

    Names count with or without the prefix of the model's body.
    """
    prefix = f"{module.base_model_prefix}."
    parameters = {name.removeprefix(prefix) for name, _ in module.named_parameters(remove_duplicate=False)}
    buffers = {name.removeprefix(prefix) for name, _ in module.named_buffers()}
    ignored = [re.compile(pattern) for pattern in module._keys_to_ignore_on_load_unexpected or ()]
    found = set()
    for name, _, shape in tensors:
        bare = name.removeprefix(prefix)
        historic = was_buffer(name, shape) or any(pattern.search(name) for pattern in ignored)
        if bare not in parameters and (bare in buffers or historic):
            found.add(name)
    return found
