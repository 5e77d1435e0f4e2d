"""Distributed checkpoints of PyTorch (DCP): `.metadata` and `__0_0.distcp` …, read without running what is in them.

`.metadata` is a pickle of torch's own records: which tensors there are, in which pieces, at which places of which
files.  torch reads it with an unrestricted unpickler; here only those records are allowed.  Each piece is a small file
of `torch.save` within a larger one and holds one tensor.  Pieces are read one at a time and put together, and what is
not asked for, such as the optimizer's state, is not read.
"""

from __future__ import annotations

import io
import math
import pickle
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ptq_eval.errors import UnreadableCheckpointError, UnsafeCheckpointError

if TYPE_CHECKING:
    from torch import Tensor

METADATA = ".metadata"
_RECORDS = ("torch.distributed.checkpoint.metadata", "torch.distributed.checkpoint.filesystem")
_OF_OTHERS = {("olmo_core.distributed.checkpoint.filesystem", "_StorageInfo")}
"""A library's copy of a record of torch's."""
_TORCH = {"Size", "device", "strided", "preserve_format", "contiguous_format"}
_OTHERS = {
    ("collections", "OrderedDict"),
    ("torch.serialization", "_get_layout"),
    ("torch.distributed.tensor._dtensor_spec", "TensorMeta"),
    ("pathlib", "PosixPath"),
    ("pathlib", "PurePosixPath"),
}


class _RefusedError(pickle.UnpicklingError):
    """A pickle asks for something that is no record of tensors."""


class _Unpickler(pickle.Unpickler):
    """Reads torch's records of a distributed checkpoint and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        import torch

        if (module, name) in _OF_OTHERS:
            module = _RECORDS[1]
        of_torch = module == "torch" and (name in _TORCH or isinstance(getattr(torch, name, None), torch.dtype))
        if module in _RECORDS or (module, name) in _OTHERS or of_torch:
            return super().find_class(module, name)
        raise _RefusedError(f"it asks for {module}.{name}")


@dataclass(frozen=True)
class _Piece:
    """Where a piece of a tensor is: in the tensor, and in a file."""

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    file: str
    start: int
    length: int


@dataclass(frozen=True)
class Stored:
    """A tensor of a checkpoint: its shape, type and pieces."""

    shape: tuple[int, ...]
    dtype: Any
    pieces: tuple[_Piece, ...]


def read_index(folder: Path) -> dict[str, Stored]:
    """The tensors of a checkpoint by name.  Raises UnreadableCheckpointError and UnsafeCheckpointError."""
    path = folder / METADATA
    try:
        with path.open("rb") as stream:
            content = _Unpickler(stream).load()
        return {
            name: Stored(tuple(own.size), own.properties.dtype, tuple(_pieces(name, own, content.storage_data)))
            for name, own in content.state_dict_metadata.items()
            if hasattr(own, "chunks")
        }
    except _RefusedError as error:
        what = f"{METADATA} holds more than records of tensors, and was not unpickled"
        raise UnsafeCheckpointError(what, got=error, remedy="fetch it again") from error
    except Exception as error:  # a damaged pickle can fail in any way
        got = " ".join(str(error).split())[:200] or type(error).__name__
        raise UnreadableCheckpointError(f"{METADATA} cannot be read", got=got, remedy="fetch it again") from error


def _pieces(name: str, stored: Any, places: Mapping[Any, Any]) -> Iterator[_Piece]:
    by_offset = {tuple(index.offset or ()): info for index, info in places.items() if index.fqn == name}
    for chunk in stored.chunks:
        info = by_offset[tuple(chunk.offsets)]
        if Path(info.relative_path).name != info.relative_path:
            raise ValueError(f"{info.relative_path} is outside the folder")
        yield _Piece(tuple(chunk.offsets), tuple(chunk.sizes), info.relative_path, info.offset, info.length)


def read_tensors(folder: Path, wanted: Callable[[str], bool]) -> dict[str, Tensor]:
    """The tensors whose names are wanted, put together.  Raises as `read_index`."""
    import torch

    found = {}
    for name, stored in read_index(folder).items():
        if not wanted(name):
            continue
        entries, size = sum(math.prod(piece.sizes) for piece in stored.pieces), math.prod(stored.shape)
        if entries != size:
            raise UnreadableCheckpointError(f"{name} is not stored whole", got=f"{entries} of {size} entries")
        whole = torch.empty(stored.shape, dtype=stored.dtype)
        for piece in stored.pieces:
            places = tuple(slice(at, at + length) for at, length in zip(piece.offsets, piece.sizes))
            whole[places] = _read(folder, name, piece)
        found[name] = whole
    return found


def _read(folder: Path, name: str, piece: _Piece) -> Tensor:
    import torch

    try:
        with (folder / piece.file).open("rb") as stream:
            stream.seek(piece.start)
            part = torch.load(io.BytesIO(stream.read(piece.length)), map_location="cpu", weights_only=True)
        if tuple(part.shape) != piece.sizes:
            raise ValueError(f"a piece of shape {tuple(part.shape)}, not {piece.sizes}")
        return part
    except FileNotFoundError as error:
        what = f"a file of {METADATA} is missing"
        raise UnreadableCheckpointError(what, got=piece.file, remedy="fetch it") from error
    except pickle.UnpicklingError as error:
        what = f"{piece.file} holds more than tensors, and was not unpickled"
        raise UnsafeCheckpointError(what, got=name, remedy="fetch it again, or exclude the step") from error
    except Exception as error:  # torch raises a different type for each way in which a file can be cut
        what = f"{piece.file} is truncated or corrupt"
        raise UnreadableCheckpointError(what, got=name, remedy="fetch it again") from error
