"""Files of token ids made elsewhere, as training code keeps them.

FILE.npy         a one-dimensional NumPy array of integers
FILE.bin#TYPE    raw little-endian ids; TYPE is uint16 (the default), uint32, int32 or int64

The ids must come from the model's own tokenizer: no file says which one made it, only ids outside the
vocabulary can be noticed.  Bytes of text are not known, so there are no bits per byte.  Files are mapped, not
loaded; the digest is of the ids, so the same ids have the same digest in every type.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from ptq_eval.corpora.base import Text, TextSource
from ptq_eval.corpora.textfile import require_file, split_spec
from ptq_eval.errors import TextSourceError

RAW_TYPES = {"uint16": "<u2", "uint32": "<u4", "int32": "<i4", "int64": "<i8"}


class TokenFile(TextSource):
    """`FILE.npy` or `FILE.bin[#TYPE]`."""

    name = "tokenfile"
    help = "FILE.npy, FILE.bin[#uint16|uint32|int32|int64]: token ids from the model's own tokenizer"
    examples = ("FILE.npy", "FILE.bin")

    @classmethod
    def claims(cls, spec: str) -> bool:
        """A path with one of the two endings, whether it exists or not."""
        return split_spec(spec)[0].lower().endswith((".npy", ".bin"))

    def read(self, spec: str, *, max_chars: int | None = None) -> Text:
        """The ids, mapped read-only; `max_chars` bounds their number, since a token is seldom under a
        character.

        Raises TextSourceError for a missing file, an unknown type, and anything but a row of integers.
        """
        name, kind = split_spec(spec)
        path = Path(name)
        require_file(path)
        try:
            ids = _npy(path) if path.suffix.lower() == ".npy" else _bin(path, kind or "uint16")
        except (OSError, ValueError, EOFError) as error:
            raise TextSourceError(
                "the token file cannot be read",
                got=f"{path} ({error})",
                remedy="write it again with numpy.save",
            ) from error
        ids = ids[:max_chars]
        return Text(spec=spec, digest=_digest(ids), ids=ids, name=path.name.split(".")[0])


def _npy(path: Path) -> np.ndarray:
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
    if kind not in RAW_TYPES:
        raise TextSourceError("unknown type of token ids", got=kind, allowed=", ".join(RAW_TYPES))
    dtype, size = np.dtype(RAW_TYPES[kind]), path.stat().st_size
    if size == 0 or size % dtype.itemsize:
        raise TextSourceError(
            f"the file is not a row of {kind} ids",
            got=f"{path} of {size} bytes",
            allowed=f"a multiple of {dtype.itemsize} bytes",
            remedy=f"name the type: {path}#TYPE with TYPE one of {', '.join(RAW_TYPES)}",
        )
    return np.memmap(path, dtype=dtype, mode="r")


def _digest(ids: np.ndarray, chunk: int = 1 << 20) -> str:
    digest = hashlib.sha256()
    for start in range(0, len(ids), chunk):
        digest.update(ids[start : start + chunk].astype("<i8").tobytes())
    return digest.hexdigest()
