"""Read every weight of a checkpoint once: one hash for the whole, the names of tensors that are not finite, and a
sketch of a few thousand numbers by which near-identical weights are found.

The hash is SHA-256 over the tensors in order of name, each by name, type, shape and bytes, so it does not
depend on how tensors are spread over files.  Safetensors are read as bytes, a chunk at a time, without torch;
NaN and infinity are found in the exponent bits, which serves bfloat16 and the 8-bit floats that numpy does
not know.  Pickles are read by `torch.load(weights_only=True)` alone, which refuses everything but tensors,
and only where there are no safetensors.
"""

from __future__ import annotations

import hashlib
import json
import math
import pickle
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ptq_eval.checkpoints.sketch import Sampler, Sketch, sketch_of
from ptq_eval.errors import UnreadableCheckpointError, UnsafeCheckpointError

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

TORCH_TYPES = {
    "float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "float8_e5m2": "F8_E5M2",
    "float8_e4m3fn": "F8_E4M3", "int64": "I64", "int32": "I32", "int16": "I16", "int8": "I8", "uint8": "U8",
    "bool": "BOOL",
}  # fmt: skip
"""The types of torch, by the names that safetensors has for them."""


@dataclass(frozen=True)
class WeightReport:
    """What reading the weights gave: their hash, the tensors with NaN or infinity in order of name, type and shape
    of every tensor, and a sketch that tells how far these weights are from others."""

    sha: str
    non_finite: tuple[str, ...]
    tensors: Mapping[str, tuple[str, tuple[int, ...]]]
    sketch: Sketch


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
    total = sum(math.prod(tensor.shape) for tensor in tensors.values())
    digest, bad, samples = hashlib.sha256(), [], {}
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(json.dumps([name, tensor.dtype, tensor.shape]).encode())
        finite, sampler = True, Sampler(name, tensor.dtype, math.prod(tensor.shape), total)
        for chunk in tensor.chunks():
            digest.update(chunk)
            finite = finite and _is_finite(chunk, tensor.dtype)
            sampler.take(chunk)
        samples[name] = sampler.values()
        if not finite:
            bad.append(name)
    layout = {name: (tensor.dtype, tensor.shape) for name, tensor in tensors.items()}
    return WeightReport(digest.hexdigest(), tuple(bad), layout, sketch_of(samples, layout))


def _load_pickle(file: Path) -> dict[str, torch.Tensor]:
    """The tensors of a pickled state dict.  Raises as `read_weights` does."""
    import torch

    try:
        with warnings.catch_warnings():  # about the pickle's protocol, which is no concern of the reader's
            warnings.simplefilter("ignore")
            content = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UnsafeCheckpointError(
            f"{file.name} holds more than tensors, and was not unpickled",
            got=_reason(error),
            remedy="convert it to safetensors where you trust it",
        ) from error
    except Exception as error:  # torch raises a different type for each way in which a file can be cut
        raise UnreadableCheckpointError(f"{file.name} is truncated or corrupt", got=_reason(error)) from error
    if not isinstance(content, dict) or not all(isinstance(value, torch.Tensor) for value in content.values()):
        raise UnreadableCheckpointError(f"{file.name} is not a state dict", allowed="a dict of tensors by name")
    return content


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
            f"{file.name} is truncated or corrupt", got=_reason(error), remedy="fetch or save the file again"
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
    for name, tensor in _load_pickle(file).items():
        kind = str(tensor.dtype).removeprefix("torch.")
        found[name] = _Tensor(TORCH_TYPES.get(kind, kind), tuple(tensor.shape), lambda tensor=tensor: chunks(tensor))
    return found


def _is_finite(chunk: bytes, dtype: str) -> bool:
    if dtype not in _EXPONENTS:
        return True
    kind, mask = _EXPONENTS[dtype]
    bits = np.frombuffer(chunk, dtype=kind)
    mask = bits.dtype.type(mask)
    return not bool(((bits & mask) == mask).any())


def _reason(error: Exception) -> str:
    """The one telling line of an error that may be a page long."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    telling = [line for line in lines if "Unsupported" in line or "unsupported" in line]
    return (telling or lines or [type(error).__name__])[0][:200]
