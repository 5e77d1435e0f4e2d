"""The whole contract of a quantizer: Scheme, LayerStats, QuantizedWeight, Quantizer and its options.

A quantizer is a pure function of a weight matrix, a scheme, and two small tensors: statistics of the layer's inputs.
It sees no model, chooses no device and changes none of its arguments, so one calibration pass serves every method at
every bit-width, and layers that receive the same tensor share one set of statistics.

Options are dataclass fields that carry their own help and their own limits.  One declaration serves the Python
signature, the key of a record, the check of a value and the listing on the command line, so these cannot disagree.

Not done here: packing codes into bytes, quantizing activations, folding input scales into the layer before.
"""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from quantizers import grid
from quantizers.errors import (
    FormatError,
    MissingStatsError,
    QuantizationError,
    ShapeError,
)
from quantizers.formats import FORMATS
from quantizers.options import allowed_of, checked
from quantizers.scales import stored
from quantizers.scheme import Scheme
from quantizers.stats import LayerStats, Rotation, all_finite

ALL_FORMATS = ("int", *FORMATS)


@dataclass(frozen=True, eq=False)
class QuantizedWeight:
    """A weight [out, in] as codes: W ≈ scale·(codes − zero) / input_scale, or (scale·level − zero) / input_scale.

    The first applies to format "int"; in every other format `codes` are bit patterns of levels.
    `codes` [out, in] uint8 in the original order of columns; `scale` and `zero` [out, groups] float32; `outer` [out,
    blocks, 1 or 2] float32 or None: the second level of a two-level format; `scale` holds multiples of it;
    `input_scale` [in] float32 or None: the columns were multiplied by it before rounding;
    `permutation` [in] int64 or None: column `permutation[j]` belongs to group `j // group_size` (without
    it, column j does). `rotation` or None: the codes belong to the rotated weight. `group_size` is the number of
    columns in a full group.  `report` holds what the method reports (damping used, retries, dead columns, exponent
    chosen …), as plain numbers and strings.
    """

    codes: Tensor
    scale: Tensor
    zero: Tensor
    scheme: Scheme
    group_size: int
    input_scale: Tensor | None = None
    permutation: Tensor | None = None
    outer: Tensor | None = None
    rotation: Rotation | None = None
    report: Mapping[str, float | int | str] = field(default_factory=dict)

    @property
    def ragged(self) -> bool:
        """Whether the last group has fewer columns than the others."""
        return self.codes.shape[1] % self.group_size != 0

    @property
    def whole_zeros(self) -> bool:
        """Whether every zero is a code, as integer files need it."""
        return bool(((self.zero == self.zero.round()) & (self.zero >= 0) & (self.zero < 2**self.scheme.bits)).all())

    def stored_scales(self) -> dict[str, Tensor]:
        """What a file holds beside the codes, as the format stores it: see `scales.stored`."""
        if self.scheme.format == "int":
            return {"scale": self.scale, "zero": self.zero}
        known = FORMATS[self.scheme.format]
        return stored(grid.Params(self.scale, self.zero, self.outer), known.stored, known.affine)

    @property
    def bits_per_weight(self) -> float:
        """Stored bits per weight, as a packed file would need them.

        What `Scheme.bits_stored` counts; 16 bits per entry of an input scale; ceil(log2 groups) bits per column for
        its group where columns were permuted; 16 bits for each zero of an integer format where zeros are no codes.
        Scales of format "int" are kept in float32 here, and not rounded to the 16 bits counted.
        """
        out_features, in_features = self.codes.shape
        groups = self.scale.shape[1]
        total = self.scheme.bits_stored(out_features, in_features)
        total += 16 * in_features if self.input_scale is not None else 0
        total += in_features * math.ceil(math.log2(groups)) if self.permutation is not None else 0
        free = self.scheme.format == "int" and not self.whole_zeros
        stored = 0 if self.scheme.symmetric else self.scheme.bits
        total += (16 - stored) * self.zero.numel() if free else 0
        return total / self.codes.numel()

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The weight that the codes represent, [out, in], computed in float32 and returned as `dtype`."""
        codes = self.codes if self.permutation is None else self.codes[:, self.permutation]
        groups = grid.to_groups(codes, self.group_size)
        params = grid.Params(self.scale, self.zero, self.outer)
        weight = grid.from_groups(grid.weights_of(groups, params, self.scheme), codes.shape[1]).contiguous()
        if self.permutation is not None:
            weight = torch.empty_like(weight).index_copy_(1, self.permutation, weight)
        if self.input_scale is not None:
            weight = weight / self.input_scale
        if self.rotation is not None:
            weight = self.rotation.undo(weight)
        return weight.to(dtype)


@dataclass(frozen=True)
class Quantizer(ABC):
    """A method: a frozen dataclass whose fields, made with `option`, are its options.

    `version` enters the key of every record: raise it when the same options give other codes.
    `default_calibration` names the inputs that the published method uses: "shared" (of the full-precision model),
    "sequential" (of the model whose earlier layers are already quantized) or "none".
    """

    name: ClassVar[str]
    version: ClassVar[str]
    needs_stats: ClassVar[bool]
    default_calibration: ClassVar[Literal["shared", "sequential", "none"]]
    needs_mismatch: ClassVar[bool] = False
    """Whether `stats.mismatch` is used: sequential calibration then runs the full-precision model beside the other."""
    formats: ClassVar[tuple[str, ...]] = ("int",)
    """The formats that the method is defined for; `ALL_FORMATS` for a method that rounds with `grid` alone."""
    source: ClassVar[str] = ""
    """Where the method is published."""

    def __post_init__(self) -> None:
        for spec in dataclasses.fields(self):
            object.__setattr__(self, spec.name, checked(self.name, spec, getattr(self, spec.name)))

    @abstractmethod
    def quantize(self, weight: Tensor, scheme: Scheme, stats: LayerStats | None = None) -> QuantizedWeight:
        """Quantize `weight` [out, in]; pure, no argument is changed.

        Raises QuantizationError if the numbers do not allow it, and a subclass of ValueError from
        `quantizers.errors` if an argument is wrong.
        """

    def quantize_group(
        self, weights: Sequence[Tensor], scheme: Scheme, stats: LayerStats | None = None
    ) -> list[QuantizedWeight]:
        """Quantize layers that share one input, `weights[i]` [out_i, in]; a method may treat them jointly."""
        return [self.quantize(weight, scheme, stats) for weight in weights]

    def quantize_grid(
        self, weights: Sequence[Tensor], schemes: Sequence[Scheme], stats: LayerStats | None = None
    ) -> list[list[QuantizedWeight]]:
        """`quantize_group` for each of several schemes; a method may share their work.

        The results agree to the last bit for one group size if rows and columns are multiples of 16.  Otherwise
        stacked products may sum in another order: a scale may differ in its last bit, and a weight halfway between
        two codes may get the other one.
        """
        return [self.quantize_group(weights, scheme, stats) for scheme in schemes]

    def prepare(self, weight: Tensor, scheme: Scheme, stats: LayerStats | None) -> Tensor:
        """Check every argument; return `weight` in float32, possibly the same tensor: do not change it.

        Raises ShapeError, MissingStatsError, GroupSizeRangeError or FormatError, and QuantizationError for NaN or
        infinite weights.
        """
        if weight.ndim != 2 or weight.numel() == 0 or not weight.is_floating_point():
            raise ShapeError(
                f"a weight must be a non-empty floating-point matrix [out, in], "
                f"got {weight.dtype} of shape {list(weight.shape)}"
            )
        self.check_format(scheme)
        scheme.groups(weight.shape[1])
        if self.needs_stats and stats is None:
            raise MissingStatsError(f"{self.name} needs LayerStats of the layer's inputs, got None")
        if stats is not None and stats.in_features != weight.shape[1]:
            raise ShapeError(f"statistics of {stats.in_features} features do not fit a weight of {weight.shape[1]}")
        if not all_finite(weight):
            raise QuantizationError("the weight holds NaN or infinite values")
        return weight.detach().to(torch.float32)

    def prepare_grid(
        self, weights: Sequence[Tensor], schemes: Sequence[Scheme], stats: LayerStats | None
    ) -> list[Tensor]:
        """`prepare` for layers that share one input, each weight for every scheme; empty without any scheme."""
        for scheme in schemes[1:]:
            self.check_format(scheme)
            for weight in weights:
                scheme.groups(weight.shape[-1])
        return [self.prepare(weight, scheme, stats) for scheme in schemes[:1] for weight in weights]

    def check_format(self, scheme: Scheme) -> None:
        """Raises FormatError if the method is not defined for the format of `scheme`."""
        if scheme.format not in self.formats:
            raise FormatError(
                f"{self.name} is not defined for format {scheme.name}, only for {', '.join(self.formats)}"
            )

    def options(self) -> dict[str, Any]:
        """Every option with its value, defaults included but for options that were `added` later."""
        return {
            spec.name: value
            for spec in dataclasses.fields(self)
            if (value := getattr(self, spec.name)) != spec.default or not spec.metadata.get("added")
        }

    @classmethod
    def option_help(cls) -> dict[str, str]:
        """Every option with a sentence that explains it."""
        return {spec.name: spec.metadata["help"] for spec in dataclasses.fields(cls)}

    @classmethod
    def option_values(cls) -> dict[str, str]:
        """Every option with the values that it takes, in words."""
        return {spec.name: allowed_of(spec) for spec in dataclasses.fields(cls)}
