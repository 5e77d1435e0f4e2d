"""The damage of every part of a model: embedding, head, attention and MLP, each quantized alone, and all together.

Every part carries the weights that it has when all parts are quantized, and all are evaluated on the same windows, so
the remainder, δ of all together minus the sum of the parts' own, has the standard error of a paired difference.  Bytes
saved are those against 16 bits per weight.  Norms, biases, routers and learned positions stay in full precision.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from ptq_eval.measure.evaluate import evaluate
from ptq_eval.measure.scoring import Scores
from ptq_eval.measure.variants import Variant
from ptq_eval.models.language_model import LanguageModel
from ptq_eval.sampling import Design, mean_and_error
from ptq_eval.theory import ALL, FULL_BYTES, REMAINDER

_KINDS = {"attention": re.compile("attn|attention"), "mlp": re.compile(r"mlp|ffn|feed_?forward|expert|moe|^fc\d|^fc_")}


def parts_of(model: LanguageModel) -> dict[str, tuple[str, ...]]:
    """The matrices of each part that the model has, in the model's order; every matrix is in one part.

    "embedding", "head", "attention", "mlp" and "other".  A tensor that the embedding and the head share is in
    "embedding and head".
    """
    found: dict[str, list[str]] = {}
    head: Any = model.module.get_output_embeddings()  # type: ignore[operator]
    for name, module in model.matrices().items():
        if name == model.embedding:
            part = "embedding and head" if head is not None and head.weight is module.weight else "embedding"
        else:
            part = "head" if module is head else _kind(name)
        found.setdefault(part, []).append(name)
    return {part: tuple(names) for part, names in found.items()}


def _kind(name: str) -> str:
    """Attention or MLP by the last word of a layer's name that says which."""
    for word in reversed(name.lower().split(".")):
        for kind, pattern in _KINDS.items():
            if pattern.search(word):
                return kind
    return "other"


def rows(
    model: LanguageModel,
    ids: Tensor,
    variants: Sequence[Variant],
    *,
    design: Design | None = None,
    tick: Callable[[float], None] | None = None,
) -> list[list[dict[str, Any]]]:
    """For each variant one row per part, one for all of them, and one for the remainder.

    `ids` [windows, time] were drawn by `design`.  Keys: part, weights, bits_per_weight, bytes_saved, and delta and kl
    with their standard errors (_se) in nats per token.
    """
    parts = parts_of(model)
    trials = [
        (index, part, [name for name in names if name in variant.weights])
        for index, variant in enumerate(variants)
        for part, names in {**parts, ALL: tuple(model.matrices())}.items()
    ]
    asked = [{name: variants[index].weights[name] for name in names} for index, _, names in trials]
    full, scores = evaluate(model, ids, asked, tick=tick)
    tokens = np.full(len(full.nll), ids.shape[1] - 1)
    found: list[list[dict[str, Any]]] = [[] for _ in variants]
    windows: list[dict[str, dict[str, np.ndarray]]] = [{} for _ in variants]
    for (index, part, names), score in zip(trials, scores):
        own = windows[index][part] = _differences(full, score)
        found[index].append({"part": part, **_size(variants[index], names), **_damage(own, tokens, design)})
    for own, rows in zip(windows, found):
        whole = own.pop(ALL)
        rest = {key: whole[key] - sum(one[key] for one in own.values()) for key in whole}
        rows.append({"part": REMAINDER, **_size(variants[0], ()), **_damage(rest, tokens, design)})
    return found


def _differences(full: Scores, score: Scores) -> dict[str, np.ndarray]:
    return {"delta": np.asarray(score.nll) - np.asarray(full.nll), "kl": np.asarray(score.kl)}


def _damage(sums: Mapping[str, np.ndarray], tokens: np.ndarray, design: Design | None) -> dict[str, float]:
    found = {}
    for key, values in sums.items():
        found[key], found[f"{key}_se"] = mean_and_error(values, tokens, design)
    return found


def _size(variant: Variant, names: Sequence[str]) -> dict[str, Any]:
    """How many weights these layers have, and what storing their codes takes and saves."""
    stored = [variant.stored[name] for name in names]
    bits, weights = sum(bits for bits, _ in stored), sum(weights for _, weights in stored)
    return {
        "weights": weights,
        "bits_per_weight": bits / weights if weights else None,
        "bytes_saved": weights * FULL_BYTES - bits / 8,
    }
