"""The contract of a file format: which quantized layers it can hold, how, and how its file is read back.

A format sees one layer at a time, as codes and scales, and knows no model.  `tensors` are what a file holds in place
of a layer's `weight`; `weight` reads them back, written apart from `tensors` so that one checks the other.  A format
that cannot hold a layer exactly refuses it with the reason.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ptq_eval.errors import Obstacle, Refusal, refused
from quantizers import QuantizedWeight, Scheme


@dataclass(frozen=True)
class Shape:
    """What is known of a layer before it is quantized: rows (outputs), columns (inputs), whether it is a Conv1D."""

    rows: int
    columns: int
    transposed: bool = False


class FileFormat(ABC):
    """A format of weights on disk, beside a Hugging Face `config.json`."""

    name: ClassVar[str]
    packages: ClassVar[tuple[str, ...]] = ()
    """What transformers needs to load the format."""
    rounds_scales: ClassVar[bool] = False
    """Whether scales are stored in float16, so that weights differ from those measured by up to 2^−11 of themselves."""

    @abstractmethod
    def refusal(self, scheme: Scheme, shape: Shape) -> Refusal | None:
        """Why the format cannot hold layers of this scheme and shape; None if it can."""

    @abstractmethod
    def refusal_of(self, layer: QuantizedWeight) -> Refusal | None:
        """Why the format cannot hold this layer, though its scheme and shape are fine; None if it can."""

    @abstractmethod
    def tensors(self, layer: QuantizedWeight, shape: Shape) -> dict[str, Tensor]:
        """What a file holds in place of the layer's weight, by the last part of the name."""

    @abstractmethod
    def weight(self, tensors: Mapping[str, Tensor], scheme: Scheme, shape: Shape) -> Tensor:
        """The weight [out, in], float32, that such tensors represent to those who load the file."""

    @abstractmethod
    def config(
        self, scheme: Scheme, layers: Mapping[str, QuantizedWeight], excluded: Sequence[str]
    ) -> dict[str, Any] | None:
        """The entry `quantization_config` of `config.json`.  `excluded` names the linear layers not quantized."""


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


def in_order(layer: QuantizedWeight) -> Refusal | None:
    """The refusal of formats whose groups are consecutive columns."""
    reordered = layer.permutation is not None and layer.scale.shape[1] > 1
    return refused(Obstacle.REORDERED_GROUPS) if reordered else None


def fits_half(layer: QuantizedWeight) -> Refusal | None:
    """The refusal of formats that store scales in float16."""
    largest, limits = float(layer.scale.abs().max()), torch.finfo(torch.float16)
    return refused(Obstacle.LARGE_SCALE, scale=largest) if largest > limits.max else None
