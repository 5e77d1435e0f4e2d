"""From text to token ids: the tokens that one call on the whole text gives, with as little text tokenized as needed.

The first windows need the beginning of a text only.  The tokenizer sees at least `MARGIN` characters beyond the last
token kept, so that the cut changes none.  A long text is tokenized piece by piece, which takes a bounded amount of
memory: pieces overlap, and are joined at a place where both have a boundary between tokens and the same tokens after
it.  Where they do not agree (a run of one character longer than the overlap), the whole text goes through in one call.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ptq_eval.corpora.base import Text
from ptq_eval.errors import MissingTokenizerError
from ptq_eval.records import Progress

MARGIN = 4096
"""Characters that the tokenizer sees beyond the last token kept."""
CHARS_PER_TOKEN = 6
"""First estimate of the text needed; it is doubled until it suffices."""
PIECE = 2**18
"""Characters tokenized at once."""


@dataclass(frozen=True)
class Tokens:
    """The first ids of a text [t], and whether these are all ids.

    `ends` and `byte_ends` are the characters and UTF-8 bytes of text up to the end of each token [t]; None for token
    files and tokenizers without offsets.
    """

    ids: np.ndarray
    ends: np.ndarray | None
    byte_ends: np.ndarray | None
    complete: bool

    def up_to(self, count: int) -> Tokens:
        """The first `count` tokens, known not to be all."""
        assert self.ends is not None
        assert self.byte_ends is not None
        return Tokens(self.ids[:count], self.ends[:count], self.byte_ends[:count], complete=False)


def tokenize(text: Text, tokenizer: Any | None, needed: int | None, progress: Progress | None = None) -> Tokens:
    """At least the first `needed` tokens of `text` (None: all), or all if there are fewer.

    `progress` gets the number of characters done, and is only called where all tokens are needed.  Raises
    MissingTokenizerError.
    """
    if text.ids is not None:
        return Tokens(text.ids, None, None, complete=True)
    content = text.text or ""
    if tokenizer is None:
        raise MissingTokenizerError(
            "text needs a tokenizer, and the checkpoint has none",
            got=text.spec,
            remedy="add the tokenizer's files to the checkpoint, or use token ids (.npy or .bin)",
        )
    if not tokenizer.is_fast:  # without offsets, the tokens that a cut would change are unknown
        ids = np.asarray(encode(tokenizer, content)["input_ids"], dtype=np.int64)
        return Tokens(ids, None, None, complete=True)
    size = len(content) if needed is None else CHARS_PER_TOKEN * needed + MARGIN
    while needed is not None and size < len(content):
        part = _piece(tokenizer, content[:size])
        kept = int(np.searchsorted(part.ends, size - MARGIN, side="right"))  # type: ignore[arg-type]
        if kept >= needed:
            return part.up_to(kept)
        size *= 2
    return _all(tokenizer, content, progress)


def encode(tokenizer: Any, text: str, **options: Any) -> Any:
    """The tokenizer's default call, without a warning about a text longer than the model's context."""
    return tokenizer(text, verbose=False, return_attention_mask=False, return_token_type_ids=False, **options)


def _all(tokenizer: Any, content: str, progress: Progress | None) -> Tokens:
    """All tokens, from overlapping pieces."""
    kept: list[Tokens] = []
    start = characters = n_bytes = 0
    while True:
        stop = min(start + max(PIECE, 4 * MARGIN), len(content))
        found = _piece(tokenizer, content[start:stop], start, n_bytes, last=stop == len(content))
        if kept:
            place = _joint(kept[-1], found, start + MARGIN, start + 2 * MARGIN)
            if place is None:
                return _piece(tokenizer, content)
            before, after = (int(np.searchsorted(_ends(part), place, side="right")) for part in (kept[-1], found))
            kept[-1] = kept[-1].up_to(before)
            found = Tokens(found.ids[after:], _ends(found)[after:], found.byte_ends[after:], complete=False)  # type: ignore[index]
        kept.append(found)
        if progress is not None:
            progress("tokenizing", float(stop), float(len(content)))
        if stop == len(content):
            break
        characters, start = start, stop - 3 * MARGIN
        n_bytes += len(content[characters:start].encode())
    columns = ([getattr(part, name) for part in kept] for name in ("ids", "ends", "byte_ends"))
    return Tokens(*map(np.concatenate, columns), complete=True)


def _ends(tokens: Tokens) -> np.ndarray:
    assert tokens.ends is not None
    return tokens.ends


def _joint(before: Tokens, after: Tokens, low: int, high: int) -> int | None:
    """A character, between `low` and half-way to `high`, at which a token ends in both, followed by the same tokens up
    to `high`; None if there is none."""
    mine, own = ((_ends(part) > low) & (_ends(part) <= high) for part in (before, after))
    for place in np.intersect1d(_ends(before)[mine], _ends(after)[own]):
        if place > (low + high) / 2:
            return None
        a, b = mine & (_ends(before) > place), own & (_ends(after) > place)
        if np.array_equal(before.ids[a], after.ids[b]) and np.array_equal(_ends(before)[a], _ends(after)[b]):
            return int(place)
    return None


def _piece(tokenizer: Any, text: str, characters: int = 0, n_bytes: int = 0, last: bool = True) -> Tokens:
    """The tokens of one call, `characters` and `n_bytes` after the start of the whole text.

    Special tokens at the end belong to the end of the whole text, which only the `last` piece has.
    """
    encoding = encode(tokenizer, text, return_offsets_mapping=True)
    offsets = np.asarray(encoding["offset_mapping"], dtype=np.int64).reshape(-1, 2)
    # A special token has the offsets (0, 0): it ends where the previous token does.
    count = len(offsets) if last else len(offsets) - int(np.argmax(offsets[::-1, 1] > 0))
    ends = np.maximum.accumulate(offsets[:count, 1])
    ids = np.asarray(encoding["input_ids"], dtype=np.int64)[:count]
    return Tokens(ids, ends + characters, _byte_positions(text)[ends] + n_bytes, complete=True)


def _byte_positions(text: str) -> np.ndarray:
    """The number of UTF-8 bytes before character i, for i = 0 … len(text)."""
    points = np.frombuffer(text.encode("utf-32-le"), dtype="<u4")
    widths = 1 + (points >= 0x80).astype(np.int64) + (points >= 0x800) + (points >= 0x10000)
    return np.concatenate([[0], np.cumsum(widths)])
