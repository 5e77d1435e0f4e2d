"""Whether token ids can be what a model's own tokenizer made of a text.

A file of ids states neither its tokenizer nor, where it is raw, its type.  A file of another vocabulary, or one read
in the wrong type, gives a loss like any other, only a wrong one; what can be noticed from the ids alone is refused
here.
"""

from __future__ import annotations

import numpy as np

from ptq_eval.errors import TokenRangeError

RAW_TYPES = {"uint16": "<u2", "uint32": "<u4", "int32": "<i4", "int64": "<i8"}
"""Types of raw ids by name."""

MIN_COUNT = 1000
"""Ids below which their distribution is not judged."""

LOW_SHARE = 8
"""In a text of MIN_COUNT tokens some id is above 1/8 of the vocabulary: tokenizers number frequent pieces first, but
in no text are all of MIN_COUNT pieces that frequent."""

_SAMPLE = 1 << 20


def require_plausible(ids: np.ndarray, vocab_size: int, spec: str) -> None:
    """Raise TokenRangeError for ids [t] that cannot come from the tokenizer of a model with `vocab_size` tokens.

    Refused: a type too narrow for the vocabulary, ids outside it, and 1,000 or more ids that are all low.
    """
    if np.iinfo(ids.dtype).max < vocab_size - 1:
        raise TokenRangeError(
            f"the token file's type {ids.dtype.name} cannot hold the model's vocabulary of {vocab_size} tokens",
            got=spec,
            allowed=f"a type that holds 0 to {vocab_size - 1}",
            remedy=_remedy(ids, vocab_size, spec) or "write the ids again as uint32",
        )
    low, high = int(ids.min()), int(ids.max())
    if low < 0 or high >= vocab_size:
        raise TokenRangeError(
            "a token id lies outside the model's vocabulary",
            got=f"id {high if high >= vocab_size else low} in {spec}",
            allowed=f"0 to {vocab_size - 1}",
            remedy=_remedy(ids, vocab_size, spec) or "use the tokenizer that the model was trained with",
        )
    if len(ids) >= MIN_COUNT and high < vocab_size // LOW_SHARE:
        raise TokenRangeError(
            f"the token ids are implausibly low for a vocabulary of {vocab_size} tokens: another tokenizer made them",
            got=f"{len(ids)} ids, none above {high}, in {spec}",
            remedy=_remedy(ids, vocab_size, spec) or "use the tokenizer that the model was trained with",
        )


def wider_type(ids: np.ndarray) -> str | None:
    """The type that `ids` [t] were written in, where every second one is zero because they were read in half of it."""
    sample = ids[:_SAMPLE]
    if ids.dtype.itemsize not in (2, 4) or len(sample) < 64:
        return None
    even, odd = _zeros(sample[::2]), _zeros(sample[1::2])
    if odd < 0.95 or even > 0.9:
        return None
    return "uint32" if ids.dtype.itemsize == 2 and _zeros(sample[2::4]) < 0.95 else "int64"


def _zeros(ids: np.ndarray) -> float:
    return float(np.mean(ids == 0))


def _remedy(ids: np.ndarray, vocab_size: int, spec: str) -> str:
    """Another type that the bytes of a raw file are plausible ids in, as advice; empty where there is none."""
    name = spec[: spec.lower().rfind(".bin") + 4]
    raw = np.ascontiguousarray(ids[: _SAMPLE - _SAMPLE % 4]).view(np.uint8)
    raw = raw[: len(raw) - len(raw) % 8]
    for kind, code in RAW_TYPES.items():
        other = raw.view(code)
        fits = len(other) and other.min() >= 0 and vocab_size // LOW_SHARE <= other.max() < vocab_size
        if name.lower().endswith(".bin") and other.dtype.itemsize != ids.dtype.itemsize and fits:
            return f"name the type that the file was written in, perhaps {name}#{kind}"
    return ""
