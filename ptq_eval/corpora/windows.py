"""Cutting a text into token windows: the evaluation protocols, each with a name and a digest.

nonoverlap-v1   The text is tokenized once, with the tokenizer's default call, so special tokens occur where the
                tokenizer puts them in a text, at its very start, and not in every window.  The ids are cut into
                consecutive windows, the tail is dropped, and all tokens of a window but the first are scored.  With
                wikitext2 and windows of 2,048 this is the protocol behind the tables of GPTQ (Frantar et al. 2023,
                arXiv 2210.17323) and AWQ (Lin et al. 2024, arXiv 2306.00978).
crops-seedS-v1  Windows at random positions of the same ids, drawn with replacement by numpy.random.default_rng(S), in
                the order drawn.  Crops may overlap, so their losses are not independent.
…-bos-v1        As either of these, but the first token of each window is replaced by the beginning-of-sequence token,
                as llama.cpp and AutoGPTQ do.  The same tokens are scored.

Only as much text is tokenized as the windows need; they are those of the whole text, because the tokenizer sees at
least 4,096 characters beyond the last token kept.  Crops need all of the text, which `max_chars` of `read` bounds.

Bytes are those of the text as read, in UTF-8.  A character split over several tokens counts with the first of them,
and characters that the tokenizer drops count with the next token: sums over contiguous tokens are exact to within one
character at each end.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np

from ptq_eval.corpora.base import Text
from ptq_eval.corpora.tokenfile import require_plausible
from ptq_eval.errors import MissingTokenizerError, OptionError, TextTooShortError, TokenRangeError

RULE = "v1"
"""Increased whenever the same text and options would give other windows."""
MARGIN = 4096
"""Characters that the tokenizer sees beyond the last token kept."""
CHARS_PER_TOKEN = 6
"""First estimate of the text needed; it is doubled until it suffices."""


@dataclass(frozen=True, eq=False)
class Windows:
    """Token windows of one text, read-only.

    `ids` is int32 [n, seq_len]; `n_bytes` is int64 [n], the UTF-8 bytes of each window's seq_len − 1 scored tokens (the
    first is context only), or None if the tokenizer gives no offsets or the text is a token file.  `digest` is the
    SHA-256 of ids, shape and rule; `text_digest` that of the text.  `total_windows` is the number of non-overlapping
    windows in the text, or None if only a part of it was tokenized.
    """

    ids: np.ndarray
    n_bytes: np.ndarray | None
    spec: str
    name: str
    protocol: str
    digest: str
    text_digest: str
    total_windows: int | None
    notes: tuple[str, ...] = ()
    lacks_bos: bool = False
    """Whether the tokenizer begins a text with a beginning-of-sequence token, and only the first window has it."""

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def seq_len(self) -> int:
        """Tokens per window, the first included."""
        return self.ids.shape[1]


@dataclass(frozen=True)
class _Tokens:
    """The first ids of a text [t], the bytes of text up to the end of each [t], and whether these are all ids."""

    ids: np.ndarray
    byte_ends: np.ndarray | None
    complete: bool


def make_windows(
    text: Text,
    tokenizer: Any | None,
    *,
    seq_len: int,
    count: int | None = None,
    seed: int | None = None,
    vocab_size: int | None = None,
    bos: bool = False,
) -> Windows:
    """The first `count` windows of `seq_len` tokens (None: all), or random ones with `seed`.

    `tokenizer` is a transformers tokenizer; it may be None for token ids unless `bos` is set.  If the text holds fewer
    windows than `count`, all are used and a note says so.  Raises OptionError (seq_len below 2, count below 1),
    MissingTokenizerError, TextTooShortError, and TokenRangeError for ids outside [0, vocab_size) or token files that
    are implausible for it.
    """
    if seq_len < 2:
        what = "a window needs one token of context and one to score"
        raise OptionError(what, got=seq_len, allowed="--seq-len of 2 or more")
    if count is not None and count < 1:
        raise OptionError("at least one window is needed", got=count, allowed="1 or more")
    tokens = _tokenize(text, tokenizer, count * seq_len if count is not None and seed is None else None)
    if text.ids is not None and vocab_size is not None and len(text.ids):
        require_plausible(text.ids, vocab_size, text.spec)
    available = len(tokens.ids) // seq_len
    if available == 0:
        raise TextTooShortError(
            "the text does not fill one window",
            got=f"{len(tokens.ids)} tokens in {text.spec}",
            allowed=f"at least {seq_len}",
            remedy="use a longer text or a smaller --seq-len",
        )
    rule = ("nonoverlap" if seed is None else f"crops-seed{seed}") + ("-bos" if bos else "") + f"-{RULE}"
    if seed is None:
        starts = np.arange(min(count or available, available)) * seq_len
    else:
        last = len(tokens.ids) - seq_len
        starts = np.random.default_rng(seed).integers(0, last, size=count or available, endpoint=True)
    ids = tokens.ids[starts[:, None] + np.arange(seq_len)].astype(np.int64)
    if bos:
        ids[:, 0] = _bos_id(tokenizer, text.spec)
    ids = _checked(ids, vocab_size, text.spec)
    notes = text.notes
    if count is not None and len(ids) < count:
        notes = (*notes, f"{count} windows were requested, {text.spec} holds {len(ids)}")
    return Windows(
        ids=ids,
        n_bytes=_scored_bytes(tokens.byte_ends, starts, seq_len),
        spec=text.spec,
        name=text.name,
        protocol=f"{text.name}-{seq_len}-{rule}-n{len(ids)}",
        digest=hashlib.sha256(f"{rule} {ids.shape} ".encode() + ids.astype("<i4").tobytes()).hexdigest(),
        text_digest=text.digest,
        total_windows=available if tokens.complete else None,
        notes=notes,
        lacks_bos=not bos and text.ids is None and _adds_bos(tokenizer),
    )


def _bos_id(tokenizer: Any | None, spec: str) -> int:
    if tokenizer is None:
        raise MissingTokenizerError("--bos needs a tokenizer", got=f"token ids alone, {spec}")
    if tokenizer.bos_token_id is None:
        raise MissingTokenizerError(
            "--bos needs a beginning-of-sequence token, and the tokenizer has none",
            got=type(tokenizer).__name__,
            remedy="run without --bos, or set bos_token in tokenizer_config.json",
        )
    return tokenizer.bos_token_id


def _adds_bos(tokenizer: Any) -> bool:
    bos = getattr(tokenizer, "bos_token_id", None)
    return bos is not None and list(_encode(tokenizer, "a")["input_ids"][:1]) == [bos]


def _scored_bytes(byte_ends: np.ndarray | None, starts: np.ndarray, seq_len: int) -> np.ndarray | None:
    """Bytes [n] of all tokens but the first in the windows that begin at `starts` [n]."""
    if byte_ends is None:
        return None
    n_bytes = byte_ends[starts + seq_len - 1] - byte_ends[starts]
    n_bytes.flags.writeable = False
    return n_bytes


def _checked(ids: np.ndarray, vocab_size: int | None, spec: str) -> np.ndarray:
    """`ids` as read-only int32.  Raises TokenRangeError for ids outside the vocabulary."""
    limit = 2**31 if vocab_size is None else vocab_size
    low, high = int(ids.min()), int(ids.max())
    if low < 0 or high >= limit:
        raise TokenRangeError(
            "a token id is outside the model's vocabulary",
            got=f"id {high if high >= limit else low} in {spec}",
            allowed=f"0 to {limit - 1}",
            remedy="use the tokenizer that the model was trained with",
        )
    ids = np.ascontiguousarray(ids, dtype=np.int32)
    ids.flags.writeable = False
    return ids


def _tokenize(text: Text, tokenizer: Any | None, needed: int | None) -> _Tokens:
    """At least the first `needed` tokens of `text` (None: all), or all if there are fewer."""
    if text.ids is not None:
        return _Tokens(text.ids, None, complete=True)
    content = text.text or ""
    if tokenizer is None:
        raise MissingTokenizerError(
            "text needs a tokenizer, and the checkpoint has none",
            got=text.spec,
            remedy="add the tokenizer's files to the checkpoint, or use token ids (.npy or .bin)",
        )
    if not tokenizer.is_fast:  # without offsets, the tokens that a cut would change are unknown
        ids = np.asarray(_encode(tokenizer, content)["input_ids"], dtype=np.int64)
        return _Tokens(ids, None, complete=True)
    size = len(content) if needed is None else CHARS_PER_TOKEN * needed + MARGIN
    while size < len(content):
        ids, ends = _ids_and_ends(tokenizer, content[:size])
        kept = int(np.searchsorted(ends, size - MARGIN, side="right"))
        if needed is not None and kept >= needed:
            return _Tokens(ids[:kept], _byte_positions(content[:size])[ends[:kept]], complete=False)
        size *= 2
    ids, ends = _ids_and_ends(tokenizer, content)
    return _Tokens(ids, _byte_positions(content)[ends], complete=True)


def _ids_and_ends(tokenizer: Any, text: str) -> tuple[np.ndarray, np.ndarray]:
    """Token ids [t], and the number of characters of `text` up to the end of each [t], non-decreasing."""
    encoding = _encode(tokenizer, text, return_offsets_mapping=True)
    offsets = np.asarray(encoding["offset_mapping"], dtype=np.int64).reshape(-1, 2)
    # A special token has the offsets (0, 0): it ends where the previous token does.
    return np.asarray(encoding["input_ids"], dtype=np.int64), np.maximum.accumulate(offsets[:, 1])


def _encode(tokenizer: Any, text: str, **options: Any) -> Any:
    # verbose=False: no warning about a text longer than the model's context.
    return tokenizer(text, verbose=False, return_attention_mask=False, return_token_type_ids=False, **options)


def _byte_positions(text: str) -> np.ndarray:
    """The number of UTF-8 bytes before character i, for i = 0 … len(text)."""
    points = np.frombuffer(text.encode("utf-32-le"), dtype="<u4")
    widths = 1 + (points >= 0x80).astype(np.int64) + (points >= 0x800) + (points >= 0x10000)
    return np.concatenate([[0], np.cumsum(widths)])
