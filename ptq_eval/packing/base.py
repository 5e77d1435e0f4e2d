"""The contract of a file format: which quantized layers it can hold, how, and how its file is read back.

`write` makes the files of a model and `read` takes the weights out of them again, written apart so that one checks the
other.  A format that cannot hold a layer exactly refuses it with the reason.  Those that are a folder of the Hugging
Face kind see one layer at a time (`folder.FolderFormat`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from ptq_eval.models.refusal import Obstacle, Refusal, refused
from quantizers import QuantizedWeight, Scheme


@dataclass(frozen=True)
class Shape:
    """What is known of a layer before it is quantized: rows (outputs), columns (inputs), whether it is a Conv1D."""

    rows: int
    columns: int
    transposed: bool = False


@dataclass(frozen=True)
class Content:
    """What is written: the quantized `layers` with their `shapes`, all other tensors (`dense`), both by name.

    `source` is the original folder, `config` the content of its `config.json`; `excluded` names the linear layers that
    are not quantized.
    """

    source: Path
    layers: Mapping[str, QuantizedWeight]
    dense: Mapping[str, Tensor]
    shapes: Mapping[str, Shape]
    config: Mapping[str, Any]
    excluded: Sequence[str]

    @property
    def distinct(self) -> dict[str, Tensor]:
        """The tensors of `dense`, a tied one under its first name alone."""
        first = {id(tensor): name for name, tensor in reversed(list(self.dense.items()))}
        return {name: self.dense[name].detach().cpu() for name in first.values()}

    @property
    def dtype(self) -> torch.dtype:
        """The type in which the checkpoint stores its weights."""
        stored = self.config.get("dtype") or self.config.get("torch_dtype") or "float32"
        return getattr(torch, str(stored), torch.float32)


class FileFormat(ABC):
    """A format of a model on disk."""

    name: ClassVar[str]
    packages: ClassVar[tuple[str, ...]] = ()
    """What transformers needs to load the format."""
    extra: ClassVar[str] = ""
    """The extra of ptq-eval, and the package, that writes the format; empty where none is needed."""
    rounds_scales: ClassVar[bool] = False
    """Whether scales are stored in float16, so that weights differ from those measured by up to 2^−11 of themselves."""

    @abstractmethod
    def refusal(self, scheme: Scheme, shape: Shape) -> Refusal | None:
        """Why the format cannot hold layers of this scheme and shape; None if it can."""

    @abstractmethod
    def refusal_of(self, layer: QuantizedWeight) -> Refusal | None:
        """Why the format cannot hold this layer, though its scheme and shape are fine; None if it can."""

    def refusal_of_mixture(self, schemes: Sequence[Scheme]) -> Refusal | None:
        """Why the format cannot hold layers of these schemes in one model; None if it can."""
        names = tuple(dict.fromkeys(f"{one.name}, groups of {one.group_size}" for one in schemes))
        return refused(Obstacle.MIXTURE, schemes=names) if len(names) > 1 else None

    def load_options(self, schemes: Sequence[Scheme]) -> dict[str, Any]:
        """What `from_pretrained` needs to load a model with layers of these schemes, beside the folder."""
        return {}

    def refusal_of_model(self, config: Mapping[str, Any]) -> Refusal | None:
        """Why the format cannot hold a model with this `config.json`; None if it can."""
        return None

    @abstractmethod
    def write(self, folder: Path, content: Content) -> None:
        """Write a model into `folder`, which does not exist yet.  Raises OSError."""

    @abstractmethod
    def read(self, folder: Path, content: Content) -> Iterator[tuple[str, Tensor]]:
        """Each layer's name and weight [out, in], float32, as those who load the folder read it."""

    @abstractmethod
    def layer_bytes(self, folder: Path, content: Content) -> int:
        """Bytes of the file that hold the quantized layers, scales included."""


def narrowed(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """`tensor` in `dtype` if every value is the same there, else as it is."""
    if not tensor.is_floating_point():
        return tensor
    small = tensor.to(dtype)
    return small if torch.equal(small.to(tensor.dtype), tensor) else tensor


def whole_groups(scheme: Scheme, shape: Shape) -> Refusal | None:
    """The refusal of formats whose groups must all have the same number of columns."""
    size = scheme.columns_per_group(shape.columns)
    if shape.columns % size:
        return refused(Obstacle.PARTIAL_GROUP, columns=shape.columns, group_size=size)
    return None


def integers_only(scheme: Scheme, widths: Sequence[int]) -> Refusal | None:
    """The refusal of formats that hold integers of these widths alone."""
    if scheme.format != "int":
        return refused(Obstacle.NOT_INTEGERS, format=scheme.name)
    if scheme.bits not in widths:
        return refused(Obstacle.NO_SUCH_BITS, bits=scheme.bits, widths=widths)
    return None


def without_input_scale(layer: QuantizedWeight) -> Refusal | None:
    """The refusal of formats that have no place for a scale of input channels."""
    return None if layer.input_scale is None else refused(Obstacle.INPUT_SCALES)


def whole_zeros(layer: QuantizedWeight) -> Refusal | None:
    """The refusal of formats whose zero points are codes."""
    return None if layer.whole_zeros else refused(Obstacle.FREE_ZEROS)


def in_order(layer: QuantizedWeight) -> Refusal | None:
    """The refusal of formats whose groups are consecutive columns."""
    reordered = layer.permutation is not None and layer.scale.shape[1] > 1
    return refused(Obstacle.REORDERED_GROUPS) if reordered else None


def fits_half(layer: QuantizedWeight) -> Refusal | None:
    """The refusal of formats that store scales in float16."""
    largest, limits = float(layer.scale.abs().max()), torch.finfo(torch.float16)
    return refused(Obstacle.LARGE_SCALE, scale=largest) if largest > limits.max else None
