"""Whether two tokenizers are one: whether they make the same ids of every text.

Versions of the tokenizers library write merges as "a b" or as ["a", "b"], add fields and order keys anew; trainings
save their state of padding, add a token for it, and change how ids are turned back into text.  None of that changes a
loss.  So the library itself reads both files and writes them out again, and where that differs too, or a setting beside
them (another class, a space before the text), what counts is

* the ids of a text that holds every piece of both vocabularies, which notices another normalizer, pre-tokenizer or
  post-processor, and
* the vocabulary, and the merges or scores in their order: a text alone would miss two merges that changed places.

A token that one of the two adds by name counts in neither if no text holds it by chance: `<pad>`, but not `hello`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from ptq_eval.models.configuration import quiet_transformers
from ptq_eval.models.loading import PARTS, load_tokenizer, tokenizer_settings

_PROBE = (
    "The quick brown fox doesn't jump;  it's 3.14159 (or 1,000,000)?\r\n\tdef f(x_1): return x_1**2 - 0x1F\n\n    "
    "caf\u00e9 cafe\u0301 na\u00efve \ufb01ne \u00bd \u0391\u0392 \u041f\u0440\u0438 \u4f60\u597d\uff0c\u65e5 "
    "\ud55c\uad6d \u0645\u0631 \u0939\u093f \u0e44\u0e17 \U0001f469\u200d\U0001f467 \u00a0\u200b "
)
"""Spaces, numbers, code, composed and decomposed accents, other scripts, an emoji."""

_PIECES = 20_000
"""The number of pieces of a vocabulary that are encoded beside the text above."""

_MARKUP = re.compile(r"[<\[{|].*\S.*[>\]}|]", re.DOTALL)
"""Names chosen so that no text holds them."""
_TAG = re.compile(r"</?(?!(?:s|pad|unk|mask|bos|eos|cls|sep|eot|eod)>)[a-z][a-z0-9]*>", re.IGNORECASE)
"""Tags of HTML, which texts do hold."""


def same_tokenizer(one: Path, other: Path, trust_remote_code: bool = False) -> bool:
    """Whether the tokenizers in two folders make the same ids of every text."""
    first, second = _canonical(one), _canonical(other)
    if first is not None and first == second and tokenizer_settings(one) == tokenizer_settings(other):
        return True
    try:
        with quiet_transformers():
            return _alike(_loaded(one, trust_remote_code), _loaded(other, trust_remote_code))
    except Exception:  # a tokenizer that cannot be loaded is reported when it is needed
        return False


@dataclass(frozen=True)
class _Tokenizer:
    """A tokenizer with its vocabulary, the tokens added to it that no text holds by chance, and what decides between
    two ways to cut a word (None for a tokenizer in Python): the kind of model, its merges and its scores, in order."""

    encode: Any
    text: str
    vocabulary: Mapping[str, int]
    markup: frozenset[str]
    ranks: tuple[str, Any, Any] | None

    def without(self, names: Collection[str]) -> tuple[Any, ...]:
        """All that decides on ids, but for these tokens."""
        kept = {piece: index for piece, index in self.vocabulary.items() if piece not in names}
        if self.ranks is None:
            return kept, None
        kind, merges, scores = self.ranks
        return kept, kind, merges, scores and [entry for entry in scores if entry[0] not in names]


def _alike(one: _Tokenizer, other: _Tokenizer) -> bool:
    # What both add under one id is the same token in both, and may be compared as any other piece is.
    names = {n for n in one.markup | other.markup if one.vocabulary.get(n) != other.vocabulary.get(n)}
    if one.without(names) != other.without(names):
        return False
    text = one.text + other.text
    for name in names:
        text = text.replace(name, " ")
    return one.encode(text) == other.encode(text)


@lru_cache(maxsize=8)
def _canonical(folder: Path) -> dict[str, Any] | None:
    """The content of `tokenizer.json` as the tokenizers library writes it, without padding and version."""
    from tokenizers import Tokenizer

    try:
        content = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
        tokenizer = Tokenizer.from_str(json.dumps({key: content[key] for key in PARTS if key in content}))
    except Exception:  # the library raises bare Exception
        return None
    return json.loads(tokenizer.to_str())


@lru_cache(maxsize=8)
def _loaded(folder: Path, trust_remote_code: bool) -> _Tokenizer:
    tokenizer: Any = load_tokenizer(folder, trust_remote_code, folder.name)
    vocabulary = tokenizer.get_vocab()
    added = {str(token) for token in getattr(tokenizer, "added_tokens_decoder", {}).values()}
    markup = frozenset(name for name in added if _MARKUP.fullmatch(name) and not _TAG.fullmatch(name))
    pieces = sorted(vocabulary, key=vocabulary.__getitem__)
    pieces = pieces[:: max(1, len(pieces) // _PIECES)]
    return _Tokenizer(
        encode=lambda text: list(tokenizer(text, verbose=False)["input_ids"]),
        text=_PROBE + tokenizer.convert_tokens_to_string(pieces) + " ".join(pieces),
        vocabulary=vocabulary,
        markup=markup,
        ranks=_ranks(tokenizer),
    )


def _ranks(tokenizer: Any) -> tuple[str, Any, Any] | None:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return None
    model = json.loads(backend.to_str())["model"]
    return model["type"], model.get("merges"), model["vocab"] if isinstance(model["vocab"], list) else None
