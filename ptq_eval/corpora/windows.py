"""Cutting a text into token windows: the evaluation protocols, each with a name and a digest.

The text is tokenized once, with the tokenizer's default call, so special tokens occur where the tokenizer puts them in
a text, at its very start, and not in every window.  The ids are cut into consecutive windows, the tail is dropped, and
all tokens of a window but the first are scored.

spread-seedS-v1 A seeded sample of these windows, spread over the whole text: two of each stratum of neighbouring ones
                (`sampling.spread`), in the order of the text.  Where the text holds no more windows than asked for, all
                are taken, under the next name.
nonoverlap-v1   The first windows, or all.  With all of wikitext2 and windows of 2,048 this is the protocol behind the
                tables of GPTQ (Frantar et al. 2023, arXiv 2210.17323) and AWQ (Lin et al. 2024, arXiv 2306.00978).
crops-seedS-v1  Windows at random positions of the same ids, drawn with replacement by numpy.random.default_rng(S), in
                the order drawn, as GPTQ's calibration is.  Crops may overlap.
…-bos-v1        As any of these, but the first token of each window is replaced by the beginning-of-sequence token,
                as llama.cpp and AutoGPTQ do.  The same tokens are scored.

Each window keeps the index of the document that its middle token is in, where the text has marks of documents.

Bytes are counted in the text as read, in UTF-8.  A character split over several tokens counts with the first of them,
and characters that the tokenizer drops count with the next token: sums over contiguous tokens are exact to within one
character at each end.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ptq_eval import sampling
from ptq_eval.corpora.base import Text
from ptq_eval.corpora.tokenfile import require_plausible
from ptq_eval.corpora.tokens import Tokens, encode, tokenize
from ptq_eval.errors import MissingTokenizerError, OptionError, TextTooShortError, TokenRangeError
from ptq_eval.records import Progress, Sample, Selection

RULE = "v1"
"""Increased whenever the same text and options would give other windows."""


@dataclass(frozen=True, eq=False)
class Windows:
    """Token windows of one text, read-only.

    `ids` is int32 [n, seq_len]; `n_bytes` is int64 [n], the UTF-8 bytes of each window's seq_len − 1 scored tokens (the
    first is context only), or None if the tokenizer gives no offsets or the text is a token file.  `digest` is the
    SHA-256 of ids, shape and rule; `text_digest` of the text.  `total_windows` is the number of non-overlapping
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
    """Whether the tokenizer begins a text with a beginning-of-sequence token, and not every window has it."""
    sample: Sample = field(default_factory=Sample)
    """Which windows of the text these are, and the document of each."""

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def seq_len(self) -> int:
        """Tokens per window, the first included."""
        return self.ids.shape[1]

    def describe(self) -> dict[str, Any]:
        """A text's entry in `run.json`: its protocol, digests and notes."""
        return {
            "spec": self.spec,
            "protocol": self.protocol,
            "digest": self.digest,
            "text_digest": self.text_digest,
            "windows": len(self.ids),
            "length": self.seq_len,
            "selection": self.sample.selection,
            "available": self.total_windows,
            "documents": len(set(self.sample.documents)) or None,
            "notes": list(self.notes),
        }


def make_windows(
    text: Text,
    tokenizer: Any | None,
    *,
    seq_len: int,
    count: int | None = None,
    selection: Selection = "first",
    seed: int = 0,
    vocab_size: int | None = None,
    bos: bool = False,
    separator: int | None = None,
    progress: Progress | None = None,
) -> Windows:
    """`count` windows of `seq_len` tokens (None: all), chosen by `selection` and, unless the first, `seed`.

    `tokenizer` is a transformers tokenizer; it may be None for token ids unless `bos` is set.  `separator` is the id
    between the documents of token ids.  If the text holds fewer windows than `count`, all are used and a note says so.
    Raises OptionError (seq_len below 2, count below 1), MissingTokenizerError, TextTooShortError, and TokenRangeError
    for ids outside [0, vocab_size) or token files that are implausible for it.
    """
    _require_sizes(seq_len, count)
    needed = count * seq_len if count is not None and selection == "first" else None
    tokens = tokenize(text, tokenizer, needed, progress)
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
    if selection == "spread" and (count is None or count >= available):
        selection = "first"
    starts = _starts(selection, len(tokens.ids), seq_len, count, seed)
    rule = ("nonoverlap" if selection == "first" else f"{selection}-seed{seed}") + ("-bos" if bos else "") + f"-{RULE}"
    ids = tokens.ids[starts[:, None] + np.arange(seq_len)].astype(np.int64)
    if bos:
        ids[:, 0] = _bos_id(tokenizer, text.spec)
    ids = _checked(ids, vocab_size, text.spec)
    notes = text.notes
    if count is not None and len(ids) < count:
        notes = (*notes, f"{count} windows were requested, {text.spec} holds {len(ids)}")
    total = available if tokens.complete else None
    return Windows(
        ids=ids,
        n_bytes=_scored_bytes(tokens.byte_ends, starts, seq_len),
        spec=text.spec,
        name=text.name,
        protocol=f"{text.name}-{seq_len}-{rule}-n{len(ids)}",
        digest=hashlib.sha256(f"{rule} {ids.shape} ".encode() + ids.astype("<i4").tobytes()).hexdigest(),
        text_digest=text.digest,
        total_windows=total,
        notes=notes,
        lacks_bos=not bos and _adds_bos(tokenizer) and (text.ids is None or _begin_otherwise(ids, tokenizer)),
        sample=Sample(selection, total, _documents(text, tokens, starts + seq_len // 2, separator)),
    )


def _require_sizes(seq_len: int, count: int | None) -> None:
    if seq_len < 2:
        what = "a window needs one token of context and one to score"
        raise OptionError(what, got=seq_len, allowed="--seq-len of 2 or more")
    if count is not None and count < 1:
        raise OptionError("at least one window is needed", got=count, allowed="1 or more")


def _starts(selection: Selection, length: int, seq_len: int, count: int | None, seed: int) -> np.ndarray:
    """The first token of each window, [n]."""
    available = length // seq_len
    if selection == "crops":
        return np.random.default_rng(seed).integers(0, length - seq_len, size=count or available, endpoint=True)
    if selection == "spread" and count is not None:
        return sampling.spread(available, count, seed) * seq_len
    return np.arange(min(count or available, available)) * seq_len


def _documents(text: Text, tokens: Tokens, middles: np.ndarray, separator: int | None) -> tuple[int, ...]:
    """The document that each token in `middles` [n] is in, counted from zero; empty where there are no marks."""
    if text.ids is not None:
        starts, places = _after(text.ids, separator), middles
    elif text.documents is None or tokens.ends is None:
        return ()
    else:
        starts, places = text.documents, tokens.ends[middles] - 1
    if text.ids is not None and len(starts) < 2:  # no separator: where documents end is not known
        return ()
    return tuple((np.searchsorted(starts, places, side="right") - 1).tolist())


def _after(ids: np.ndarray, separator: int | None) -> np.ndarray:
    """Where the documents of token ids start: at the first, and after each separator."""
    if separator is None:
        return np.zeros(0, int)
    ends = [np.flatnonzero(ids[i : i + 2**20] == separator) + i + 1 for i in range(0, len(ids), 2**20)]
    starts = np.concatenate([[0], *ends])
    return starts[starts < len(ids)]


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
    return bos is not None and list(encode(tokenizer, "a")["input_ids"][:1]) == [bos]


def _begin_otherwise(ids: np.ndarray, tokenizer: Any) -> bool:
    """Whether any of the windows `ids` [n, t] begins with another token than the beginning-of-sequence token."""
    return bool(np.any(ids[:, 0] != tokenizer.bos_token_id))


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
