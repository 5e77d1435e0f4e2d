"""Files of token ids made elsewhere, as training code stores them.

FILE.npy         a one-dimensional NumPy array of integers
FILE.bin#TYPE    raw little-endian ids; TYPE is uint16, uint32, int32 or int64
FILE#any         any distribution of ids (also FILE.bin#TYPE,any), for models trained on other things than text

Without TYPE, a header of llm.c's data files or a Megatron index FILE.idx beside the file decides, else uint16 (as
nanoGPT writes them).  Bytes of text are not known, so there are no bits per byte.  Files are memory-mapped; the digest
is of the ids, so the same ids have the same digest in every type.

The ids must come from the model's own tokenizer, and no file says which one made it.  A file of another vocabulary, or
one read in the wrong type, gives a loss like any other, only a wrong one; what can be noticed from the ids alone is
refused, unless the file is called `any`.
"""

from __future__ import annotations

import hashlib
import string
from pathlib import Path

import numpy as np

from ptq_eval.corpora.base import Text, TextSource
from ptq_eval.corpora.files import first_bytes, require_file, split_spec
from ptq_eval.errors import TextSourceError, TokenRangeError

RAW_TYPES = {"uint16": "<u2", "uint32": "<u4", "int32": "<i4", "int64": "<i8"}
"""Types of raw ids by name."""

MIN_COUNT = 1000
"""Ids below which their distribution is not judged."""

LOW_SHARE = 8
"""In a text of MIN_COUNT tokens some id is above 1/8 of the vocabulary: tokenizers number frequent pieces first, but
in no text are all of MIN_COUNT pieces that frequent."""

LONG_COUNT, LONG_SHARE, MIN_VOCAB = 5000, 2, 4096
"""In a text of 5,000 tokens some id is above half of a vocabulary of MIN_VOCAB or more: of the tokens of code, manuals
and licences 2.5 to 3.8 % are, in cl100k_base and in o200k_base.  Smaller vocabularies may be of bytes alone."""

WRAPPED = 1 << 16
"""Ids of a larger vocabulary that were stored in 16 bits on their way are below this, and none is above."""

REPEATED, PADDED_SHARE = 16, 0.1
"""An id is repeated more than 16 times in padding; in the texts measured above, 10 times at most."""

ALIGNED_RUN, ALIGNED_COUNT, ALIGNED_LENGTH = 3, 8, 16
"""Shorter padding is noticed where at least 8 runs of 3 or more of one id all end, or all begin, at multiples of one
length of 16 or more: documents that were padded to that length."""

COLLISIONS, ERRORS = 100, 5
"""Ids are uniformly random if, of 100 or more pairs that chance makes equal, no more than 5 standard errors above that
are equal.  In the sources of Python and in the GPL, 6 to 7 times as many pairs of 1,024 pieces are equal as by chance,
7 to 11 times as many of bytes, and 1.7 times as many of letters."""

ANY = "any"

_SAMPLE = 1 << 20
_PRINTABLE = frozenset(string.printable.encode())

_LLMC_TYPES = {20240520: "uint16", 20240801: "uint32"}
"""First number of the header of 256 int32 that llm.c writes: for GPT-2's tokens, and for Llama 3's."""

_MEGATRON_TYPES = {4: "int32", 5: "int64", 8: "uint16"}
"""Codes of a Megatron index."""


class TokenFile(TextSource):
    """`FILE.npy` or `FILE.bin[#TYPE]`."""

    name = "tokenfile"
    help = "FILE.npy, FILE.bin[#uint16|uint32|int32|int64]: token ids from the model's own tokenizer (#any: of no text)"
    examples = ("FILE.npy", "FILE.bin")

    @classmethod
    def claims(cls, spec: str) -> bool:
        """A path with one of the two endings, whether it exists or not."""
        return _known(split_spec(spec, _known)[0])

    def read(self, spec: str, *, max_chars: int | None = None) -> Text:
        """The ids, mapped read-only; `max_chars` bounds their number, since few tokens are shorter than a character.

        Raises TextSourceError for a missing file, an unknown type, ids that were written in a wider type, and
        anything but one row of integers.
        """
        name, kind = split_spec(spec, _known)
        kind = ",".join(part for part in kind.split(",") if part != ANY)
        path = Path(name)
        require_file(path)
        try:
            ids = _npy(path, kind) if first_bytes(path).startswith(b"\x93NUMPY") else _bin(path, kind)
        except (OSError, ValueError, EOFError) as error:
            raise TextSourceError(
                "the token file cannot be read",
                got=f"{path} ({error})",
                remedy="write it again with numpy.save",
            ) from error
        wider = wider_type(ids)
        if wider is not None:
            raise TextSourceError(
                f"every second number is zero: the ids were written as {wider}, not as {ids.dtype.name}",
                got=path,
                remedy=f"name the type: {path}#{wider}" if path.suffix.lower() == ".bin" else f"save them as {wider}",
            )
        ids = ids[:max_chars]
        return Text(spec=spec, digest=_digest(ids), ids=ids, name=path.name.split(".")[0])


def _known(name: str) -> bool:
    return name.lower().endswith((".npy", ".bin"))


def _npy(path: Path, kind: str) -> np.ndarray:
    if kind:
        raise TextSourceError("a NumPy file states its own type", got=f"#{kind}", remedy=f"name the file alone: {path}")
    # Unlike numpy.load, this reads neither pickles nor archives.
    ids = np.lib.format.open_memmap(path, mode="r")
    if ids.ndim != 1 or not np.issubdtype(ids.dtype, np.integer):
        raise TextSourceError(
            "token ids are one row of integers",
            got=f"{path}: {ids.dtype} of shape {ids.shape}",
            remedy="save numpy.concatenate of the documents' ids",
        )
    return ids


def _bin(path: Path, kind: str) -> np.ndarray:
    start = first_bytes(path, 4096)
    if path.suffix.lower() == ".npy":
        raise TextSourceError(
            "the token file cannot be read", got=f"{path}, not a NumPy file", remedy="write it again with numpy.save"
        )
    if len(start) >= 64 and set(start) <= _PRINTABLE:
        raise TextSourceError("the file holds text, not token ids", got=path, remedy="rename it to .txt")
    stated, offset = _header(path, start)
    kind = kind or stated or "uint16"
    if kind not in RAW_TYPES:
        raise TextSourceError("unknown type of token ids", got=kind, allowed=", ".join((*RAW_TYPES, ANY)))
    dtype, size = np.dtype(RAW_TYPES[kind]), path.stat().st_size - offset
    if size <= 0:
        raise TextSourceError("the token file is empty", got=path, remedy="tokenize the text again")
    if size % dtype.itemsize:
        raise TextSourceError(
            f"the file is not a row of {kind} ids",
            got=f"{path} of {size} bytes",
            allowed=f"a multiple of {dtype.itemsize} bytes",
            remedy=f"name the type: {path}#TYPE with TYPE one of {', '.join(RAW_TYPES)}",
        )
    return np.memmap(path, dtype=dtype, mode="r", offset=offset)


def _header(path: Path, start: bytes) -> tuple[str, int]:
    """(type, bytes before the first id) as the file's header or its Megatron index states them; ("", 0) without."""
    if len(start) >= 1024 and int.from_bytes(start[:4], "little") in _LLMC_TYPES:
        return _LLMC_TYPES[int.from_bytes(start[:4], "little")], 1024
    index = path.with_suffix(".idx")
    if index.is_file():
        head = first_bytes(index, 18)
        if head.startswith(b"MMIDIDX") and len(head) == 18:  # 9 bytes of name, 8 of version, 1 of type
            return _MEGATRON_TYPES.get(head[17], ""), 0
    return "", 0


def _digest(ids: np.ndarray, chunk: int = 1 << 20) -> str:
    digest = hashlib.sha256()
    for start in range(0, len(ids), chunk):
        digest.update(ids[start : start + chunk].astype("<i8").tobytes())
    return digest.hexdigest()


def require_plausible(ids: np.ndarray, vocab_size: int, spec: str) -> None:
    """Raise TokenRangeError for ids [t] that cannot come from the tokenizer of a model with `vocab_size` tokens.

    Refused: a type too narrow for the vocabulary and ids outside it; and, unless the file is called `any`, padding, ids
    that are all low, and ids that are uniformly random.
    """
    low, high = int(ids.min()), int(ids.max())
    what, allowed, remedy = "", "", "use the tokenizer that the model was trained with"
    got = f"{len(ids)} ids, none above {high}, in {spec}"
    if np.iinfo(ids.dtype).max < vocab_size - 1:
        what = f"the token file's type {ids.dtype.name} cannot hold the model's vocabulary of {vocab_size} tokens"
        got, allowed = spec, f"a type that holds 0 to {vocab_size - 1}"
        remedy = "write the ids again as uint32"
    elif low < 0 or high >= vocab_size:
        what, allowed = "a token id is outside the model's vocabulary", f"0 to {vocab_size - 1}"
        got = f"id {high if high >= vocab_size else low} in {spec}"
    elif ANY in split_spec(spec, _known)[1].split(","):
        return
    elif high < _least_of_highest(len(ids), vocab_size):
        what = f"the token ids are implausibly low for a vocabulary of {vocab_size} tokens: another tokenizer made them"
        if WRAPPED - WRAPPED // 16 <= high < WRAPPED:
            what += ", or they were stored in 16 bits"
            remedy += ", and write the ids as uint32"
    elif padding := _padding(ids):
        raise TokenRangeError(
            "the token file holds padding, which is not text",
            got=f"{spec}: {padding}",
            remedy=f"join the documents without padding; for a text with such runs, {_as_any(spec)}",
        )
    elif _uniform(ids):
        raise TokenRangeError(
            "the token ids are uniformly random, which no text is: every id is as frequent as any other",
            got=got,
            remedy=f"check how the file was written; for a model that was trained on such ids, {_as_any(spec)}",
        )
    if what:
        raise TokenRangeError(what, got=got, allowed=allowed, remedy=_remedy(ids, vocab_size, spec) or remedy)


def _least_of_highest(count: int, vocab_size: int) -> int:
    """What the highest of `count` ids of a text is at least; 0 for few ids."""
    if count < MIN_COUNT:
        return 0
    if count < LONG_COUNT or vocab_size < MIN_VOCAB:
        return vocab_size // LOW_SHARE
    return max(vocab_size // LONG_SHARE, WRAPPED if vocab_size >= WRAPPED + WRAPPED // 4 else 0)


def _pieces(ids: np.ndarray) -> list[np.ndarray]:
    """All ids; of a large file, 64 pieces spread over it."""
    size = _SAMPLE // 64
    if len(ids) <= _SAMPLE:
        return [ids]
    return [ids[start : start + size] for start in np.linspace(0, len(ids) - size, 64).astype(int)]


def _uniform(ids: np.ndarray) -> bool:
    """Whether no more of `ids` [t] are equal than if all between the lowest and the highest were equally likely."""
    sample = np.concatenate(_pieces(ids)).astype(np.int64)
    counts = np.bincount(sample - sample.min())
    expected = len(sample) * (len(sample) - 1) / 2 / len(counts)
    found = float((counts * (counts - 1) / 2).sum())
    return len(sample) >= MIN_COUNT and expected >= COLLISIONS and found <= expected + ERRORS * expected**0.5


def _as_any(spec: str) -> str:
    """The spec under which any distribution is read."""
    return f"{spec},{ANY}" if split_spec(spec, _known)[1] else f"{spec}#{ANY}"


def _padding(ids: np.ndarray) -> str:
    """What shows that `ids` [t] hold padding; empty where nothing does."""
    long, lengths = 0.0, []
    pieces = _pieces(ids)
    for piece in pieces:
        edges = np.flatnonzero(np.concatenate([[True], piece[1:] != piece[:-1], [True]]))
        runs = np.diff(edges)
        long += float(runs[runs > REPEATED].sum()) / len(piece) / len(pieces)
        lengths.append(_aligned(piece[edges[:-1]], edges, runs))
    if long > PADDED_SHARE:
        return f"{long:.0%} of the ids are in runs of more than {REPEATED} times the same id"
    if min(lengths) >= ALIGNED_LENGTH:
        return f"all runs of one id end or begin at multiples of {min(lengths)}"
    return ""


def _aligned(values: np.ndarray, edges: np.ndarray, runs: np.ndarray) -> int:
    """The length of which the runs of the most repeated id all end, or all begin, at multiples; 0 for no such length.

    values, runs: the id and the length of each run [r].  edges: where the runs begin, and the end [r + 1].
    """
    repeated = runs >= ALIGNED_RUN
    kinds, counts = np.unique(values[repeated], return_counts=True)
    if not len(kinds):
        return 0
    own = np.flatnonzero(repeated & (values == kinds[counts.argmax()]))
    if len(own) < ALIGNED_COUNT:
        return 0
    return max(int(np.gcd.reduce(np.diff(edges[own + side]))) for side in (0, 1))


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
