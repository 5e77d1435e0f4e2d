"""Read every weight of a checkpoint once: one hash for the whole, the names of tensors that are not finite, hold
absurdly large numbers or one value throughout, and a sketch of a few hundred numbers per tensor by which near-identical
weights are found.

The hash is SHA-256 over the tensors in order of name, each by name, type, shape and bytes, so it does not
depend on how tensors are spread over files.  Safetensors are read as bytes, a chunk at a time, without torch;
NaN and infinity are found in the exponent bits, which serves bfloat16 and the 8-bit floats that numpy does
not know.  Pickles are read by `torch.load(weights_only=True)` alone, which refuses everything but tensors,
and only where there are no safetensors.

A sketch keeps a few entries of every parameter, at places that depend on its size alone, so that two checkpoints of one
architecture keep the same places, whatever else is in their files and whatever their tensors are called.  The relative
distance between two sketches is that between the whole weights to a few percent of itself, unless a difference is
confined to a few entries; then both are small.
"""

from __future__ import annotations

import hashlib
import json
import math
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ptq_eval.checkpoints.grid import Grid, grid_of
from ptq_eval.errors import UnreadableCheckpointError
from ptq_eval.models.pickles import load_pickle, telling_line

if TYPE_CHECKING:
    import torch

CHUNK = 1 << 22
"""Bytes read at a time: a multiple of every element size, small enough for the processor's cache."""

_EXPONENTS = {
    "F64": ("<u8", 0x7FF0_0000_0000_0000),
    "F32": ("<u4", 0x7F80_0000),
    "F16": ("<u2", 0x7C00),
    "BF16": ("<u2", 0x7F80),
    "F8_E5M2": ("u1", 0x7C),
    "F8_E4M3": ("u1", 0x7F),  # no infinity; NaN is the one value with all bits set
}
"""Per floating type: its bits as an integer type, and the mask that is all ones in NaN and infinity only."""

_HUGE = 63
"""Exponent of 9e18: the squares of a few such numbers overflow float32 when they are added.  No training gives them,
and a loss that comes out of them says nothing."""
_EXPONENT = {"F64": (1023, 52), "F32": (127, 23), "BF16": (127, 7)}
"""Bias and place of the exponent in the types that hold numbers beyond the range of float16."""

TORCH_TYPES = {
    "float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "float8_e5m2": "F8_E5M2",
    "float8_e4m3fn": "F8_E4M3", "int64": "I64", "int32": "I32", "int16": "I16", "int8": "I8", "uint8": "U8",
    "bool": "BOOL",
}  # fmt: skip
"""The types of torch, by the names that safetensors has for them."""


@dataclass(frozen=True)
class WeightReport:
    """What reading the weights gave: their hash; in order of name the tensors with NaN or infinity, those with finite
    numbers of at least 2^63, of less and beyond the range of float16, those that hold one value throughout, and those
    that hold zero, the matrices on a grid; type, shape, a checksum and a few entries of every tensor."""

    sha: str
    non_finite: tuple[str, ...]
    huge: tuple[str, ...]
    large: tuple[str, ...]
    constant: frozenset[str]
    zero: frozenset[str]
    coarse: Mapping[str, Grid]
    tensors: Mapping[str, tuple[str, tuple[int, ...]]]
    checksums: Mapping[str, int]
    samples: Mapping[str, np.ndarray]

    def sketch(self, names: Mapping[str, str]) -> Sketch:
        """The sketch of a model's parameters; `names` has the stored tensor of each, by a name that no file changes.

        In its contents, a tensor that is stored twice, as a tied head may be, counts once.
        """
        distinct: dict[tuple[Any, ...], str] = {}
        for name in sorted(names):
            distinct.setdefault((self.tensors[names[name]], self.checksums[names[name]]), name)
        contents = json.dumps(sorted((name, key) for key, name in distinct.items()))
        samples = {name: self.samples[stored] for name, stored in names.items()}
        return sketch_of(samples, {name: self.tensors[stored] for name, stored in names.items()}, contents)


@dataclass(frozen=True)
class _Tensor:
    dtype: str
    shape: tuple[int, ...]
    chunks: Callable[[], Iterator[bytes]]


def read_weights(files: tuple[Path, ...]) -> WeightReport:
    """Hash and check every tensor in `files`.

    Raises UnreadableCheckpointError for a truncated or corrupt file and UnsafeCheckpointError for a pickle
    that holds more than tensors; nothing in it is executed.
    """
    tensors: dict[str, _Tensor] = {}
    for file in files:
        found = _safetensors(file) if file.suffix == ".safetensors" else _pickled(file)
        if twice := tensors.keys() & found.keys():
            raise UnreadableCheckpointError(f"two shards hold the tensor {min(twice)}", remedy="save the model again")
        tensors |= found
    digest, bad, huge, large, constant, zero = hashlib.sha256(), [], [], [], set(), set()
    samples, checksums = {}, {}
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(json.dumps([name, tensor.dtype, tensor.shape]).encode())
        checksum, largest = 0, 0
        sampler, values = Sampler(tensor.dtype, math.prod(tensor.shape)), _Values(tensor.dtype)
        for chunk in tensor.chunks():
            digest.update(chunk)
            checksum = zlib.crc32(chunk, checksum)
            largest = max(largest, _largest_exponent(chunk, tensor.dtype))
            sampler.take(chunk)
            values.take(chunk)
        samples[name], checksums[name] = sampler.values(), checksum
        if largest == _EXPONENTS.get(tensor.dtype, ("", None))[1]:
            bad.append(name)
        elif largest >= _bits_of(_HUGE, tensor.dtype):
            huge.append(name)
        elif largest >= _bits_of(16, tensor.dtype):
            large.append(name)
        if values.constant:
            constant.add(name)
        if values.zero:
            zero.add(name)
    layout = {name: (tensor.dtype, tensor.shape) for name, tensor in tensors.items()}
    return WeightReport(
        digest.hexdigest(),
        tuple(bad),
        tuple(huge),
        tuple(large),
        frozenset(constant),
        frozenset(zero),
        {name: grid for name, tensor in tensors.items() if (grid := _grid_of(tensor)) is not None},
        layout,
        checksums,
        samples,
    )


def _grid_of(tensor: _Tensor) -> Grid | None:
    """The grid that a matrix of floats of 16 bits or more is on, by its first chunk; None for plain weights."""
    if len(tensor.shape) != 2 or tensor.dtype not in _FLOATS or not math.prod(tensor.shape):
        return None
    first = np.frombuffer(next(tensor.chunks()), dtype=_FLOATS[tensor.dtype])
    return grid_of(first, tensor.shape[1], _numbers)


def _numbers(stored: np.ndarray) -> np.ndarray:
    """Entries of a type of `_FLOATS` as float64, NaN and infinity as zero."""
    if stored.dtype == np.dtype("<u2"):  # bfloat16 is the upper half of a float32
        stored = (stored.astype("<u4") << 16).view("<f4")
    return np.nan_to_num(stored.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)


class _Values:
    """Whether a tensor, read a chunk at a time, holds one value throughout, and whether that is zero of either sign."""

    def __init__(self, dtype: str) -> None:
        self._type, mask = _EXPONENTS.get(dtype, ("u1", 0))
        self._first: Any = None
        self._magnitude = (1 << (8 * np.dtype(self._type).itemsize - 1)) - 1 if mask else 0xFF
        self._equal = self.zero = True

    def take(self, chunk: bytes) -> None:
        """The next bytes, a whole number of entries."""
        if not (self._equal or self.zero) or not chunk:
            return
        bits = np.frombuffer(chunk, dtype=self._type)
        self._first = bits[0] if self._first is None else self._first
        for part in (bits[:64], bits):  # nearly always the first few entries decide
            self._equal = self._equal and bool((part == self._first).all())
            self.zero = self.zero and not bool((part & bits.dtype.type(self._magnitude)).any())

    @property
    def constant(self) -> bool:
        """Whether there is one value."""
        return self._equal or self.zero


def _safetensors(file: Path) -> dict[str, _Tensor]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="np"):  # checks the header, and that offsets and file size agree
            pass
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            header: dict[str, Any] = json.loads(stream.read(length))
    except (SafetensorError, OSError, ValueError) as error:
        raise UnreadableCheckpointError(
            f"{file.name} is truncated or corrupt", got=telling_line(error), remedy="fetch or save the file again"
        ) from error
    header.pop("__metadata__", None)
    return {
        name: _Tensor(
            entry["dtype"],
            tuple(entry["shape"]),
            lambda span=entry["data_offsets"]: _bytes(file, 8 + length + span[0], span[1] - span[0]),
        )
        for name, entry in header.items()
    }


def _bytes(file: Path, start: int, count: int) -> Iterator[bytes]:
    with file.open("rb") as stream:
        stream.seek(start)
        for done in range(0, count, CHUNK):
            yield stream.read(min(CHUNK, count - done))


def _pickled(file: Path) -> dict[str, _Tensor]:
    import torch

    def chunks(tensor: torch.Tensor) -> Iterator[bytes]:
        raw = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy()
        return (raw[done : done + CHUNK].tobytes() for done in range(0, raw.size, CHUNK))

    found = {}
    for name, tensor in load_pickle(file).items():
        kind = str(tensor.dtype).removeprefix("torch.")
        found[name] = _Tensor(TORCH_TYPES.get(kind, kind), tuple(tensor.shape), lambda tensor=tensor: chunks(tensor))
    return found


def _bits_of(exponent: int, dtype: str) -> float:
    """The bits of 2^exponent; infinity where the type does not reach it."""
    bias, place = _EXPONENT.get(dtype, (0, 0))
    return bias + exponent << place if place else math.inf


def _largest_exponent(chunk: bytes, dtype: str) -> int:
    """The largest exponent of the numbers in `chunk`, as its bits are stored; for NaN and infinity it is the mask."""
    if dtype not in _EXPONENTS or not chunk:
        return 0
    kind, mask = _EXPONENTS[dtype]
    bits = np.frombuffer(chunk, dtype=kind)
    return int((bits & bits.dtype.type(mask)).max())


ENTRIES = 256
"""Entries kept of a tensor, if it has them."""

_FLOATS = {"F64": np.dtype("<f8"), "F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype("<u2")}


@dataclass(frozen=True, eq=False)
class Sketch:
    """Sampled entries, each scaled so that their squares add up to the sum over all entries.

    `layout` is a digest of names, shapes and numbers of entries, `contents` a digest of all that is stored, which equal
    weights share.
    """

    layout: str
    values: np.ndarray
    contents: str = ""

    def distance(self, other: Sketch) -> float | None:
        """|w − v| / |w| for the larger |w|; None where architectures or sampled tensors differ, or all are zero."""
        if self.layout != other.layout:
            return None
        mine, theirs = self.values.astype(np.float64), other.values.astype(np.float64)
        size = max(float(np.linalg.norm(mine)), float(np.linalg.norm(theirs)))
        return float(np.linalg.norm(mine - theirs)) / size if size else None


class Sampler:
    """The entries of one tensor that are kept, picked out of its bytes as they are read, a chunk at a time."""

    def __init__(self, dtype: str, size: int) -> None:
        self._type, self._begin, self._found = _FLOATS.get(dtype), 0, []
        count = min(size, ENTRIES) if self._type is not None else 0
        random = np.random.default_rng(size)
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
        with np.errstate(over="ignore"):  # what is too large for float32 is named as huge
            found = found.astype(np.float32) * np.float32(self._scale)
        return np.nan_to_num(found, nan=0.0, posinf=0.0, neginf=0.0)


def sketch_of(
    samples: Mapping[str, np.ndarray], layout: Mapping[str, tuple[str, tuple[int, ...]]], contents: str = ""
) -> Sketch:
    """The sketch of a checkpoint: the samples of its tensors, in order of name, and what they hold in words."""
    # The number of entries too: of types that are not sampled none are kept, and such sketches do not compare.
    shapes = [[name, list(layout[name][1]), len(samples.get(name, ()))] for name in sorted(layout)]
    digests = (hashlib.sha256(text.encode()).hexdigest() for text in (json.dumps(shapes), contents))
    values = np.concatenate([samples[name] for name in sorted(samples)] or [np.empty(0, np.float32)])
    return Sketch(next(digests), values, next(digests) if contents else "")
