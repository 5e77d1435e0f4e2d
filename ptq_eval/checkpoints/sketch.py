"""How far two checkpoints' weights are apart, from a few thousand numbers of each.

Of every tensor a number of entries in proportion to its size is kept, at places that depend on its name alone, so that
two checkpoints of one architecture keep the same places.  The relative distance between two sketches is that between
the whole weights to a few percent of itself, unless a difference is confined to a few entries; then both are small.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

SIZE = 8192
"""Entries kept of a checkpoint, about."""

_LEAST = 8
"""Entries kept of a tensor, if it has them."""

_FLOATS = {"F64": np.dtype("<f8"), "F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype("<u2")}


@dataclass(frozen=True, eq=False)
class Sketch:
    """Sampled entries, each scaled so that squares add up to those of all; `layout` is a digest of names and shapes."""

    layout: str
    values: np.ndarray

    def distance(self, other: Sketch) -> float | None:
        """|w − v| / |w| for the larger |w|; None where the architectures differ or the weights are all zero."""
        size = max(float(np.linalg.norm(self.values)), float(np.linalg.norm(other.values)))
        if self.layout != other.layout or not size:
            return None
        return float(np.linalg.norm(self.values - other.values)) / size


class Sampler:
    """The entries of one tensor that are kept, picked out of its bytes as they are read, a chunk at a time."""

    def __init__(self, name: str, dtype: str, size: int, total: int) -> None:
        self._type, self._begin, self._found = _FLOATS.get(dtype), 0, []
        count = min(size, max(_LEAST, round(SIZE * size / max(total, 1)))) if self._type is not None else 0
        random = np.random.default_rng(zlib.crc32(name.encode()))
        self._places = np.sort(random.integers(0, size, count)) if count else np.empty(0, dtype=np.int64)
        self._scale = (size / count) ** 0.5 if count else 0.0

    def take(self, chunk: bytes) -> None:
        """The next bytes of the tensor, a whole number of entries."""
        if self._type is None:
            return
        entries = np.frombuffer(chunk, dtype=self._type)
        first, last = np.searchsorted(self._places, (self._begin, self._begin + len(entries)))
        self._found.append(entries[self._places[first:last] - self._begin])
        self._begin += len(entries)

    def values(self) -> np.ndarray:
        """The entries kept, as float32; NaN and infinity as zero."""
        if not self._found:
            return np.empty(0, dtype=np.float32)
        found = np.concatenate(self._found)
        if found.dtype == np.dtype("<u2"):  # bfloat16 is the upper half of a float32
            found = (found.astype("<u4") << 16).view("<f4")
        return np.nan_to_num(found.astype(np.float32) * np.float32(self._scale), nan=0.0, posinf=0.0, neginf=0.0)


def sketch_of(samples: Mapping[str, np.ndarray], layout: Mapping[str, tuple[str, tuple[int, ...]]]) -> Sketch:
    """The sketch of a checkpoint: the samples of its tensors, in order of name."""
    shapes = [[name, list(layout[name][1])] for name in sorted(layout)]
    digest = hashlib.sha256(json.dumps(shapes).encode()).hexdigest()
    return Sketch(digest, np.concatenate([samples[name] for name in sorted(samples)] or [np.empty(0, np.float32)]))
