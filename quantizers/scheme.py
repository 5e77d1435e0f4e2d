"""How weights are quantized: the bits or the number format, the group that shares a scale, symmetric or not."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal

from quantizers.errors import (
    BitsRangeError,
    FormatError,
    GroupSizeRangeError,
    suggestion,
)
from quantizers.formats import FORMATS, Format
from quantizers.options import is_int


@dataclass(frozen=True)
class Scheme:
    """The grid that weights are rounded to: `bits` (2–8) per code, one scale per `group_size` columns of a row.

    `group_size=None` means one scale per output row.  A last group of fewer columns (ragged) is allowed.  `format` is
    "int" or a name of `formats.FORMATS`, which fixes bits and symmetry and may fix the group size: `Scheme.of` fills
    these in.  Raises BitsRangeError, GroupSizeRangeError or FormatError.
    """

    bits: int
    group_size: int | None = 128
    symmetric: bool = False
    format: str = "int"

    def __post_init__(self) -> None:
        if not is_int(self.bits) or not 2 <= self.bits <= 8:
            raise BitsRangeError(f"bits must be an integer from 2 to 8, got {self.bits!r}")
        if self.group_size is not None and (not is_int(self.group_size) or self.group_size < 1):
            raise GroupSizeRangeError(
                f"group_size must be a positive integer, or None for one scale per row, got {self.group_size!r}"
            )
        if self.format != "int":
            self._check_format()

    def _check_format(self) -> None:
        """Raises FormatError or GroupSizeRangeError where the fields contradict the format."""
        known = _format(self.format)
        if self.bits != known.bits or self.symmetric == known.affine:
            raise FormatError(
                f"format {self.format} has {known.bits} bits and is {'asymmetric' if known.affine else 'symmetric'}, "
                f"got bits={self.bits}, symmetric={self.symmetric}; Scheme.of({self.format!r}) fills both in"
            )
        if known.blocks and self.group_size not in known.blocks:
            sizes = ", ".join(map(str, known.blocks))
            raise GroupSizeRangeError(
                f"format {self.format} has groups of {sizes} columns, got group_size {self.group_size}"
            )

    @classmethod
    def of(cls, format: str, group_size: int | Literal["default"] | None = "default") -> Scheme:
        """The scheme of a format by name; "int4" is an asymmetric grid of 4 bits, "int4_half" its symmetric form.

        The group size is the format's or, where the format leaves it free, 128.  Raises FormatError, with the
        nearest name, or GroupSizeRangeError.
        """
        integers = re.fullmatch(r"int([2-8])(_half)?", format)
        if integers:
            size = 128 if group_size == "default" else group_size
            return cls(int(integers[1]), size, symmetric=bool(integers[2]))
        known = _format(format)
        size = (known.blocks or (128,))[0] if group_size == "default" else group_size
        return cls(known.bits, size, not known.affine, format)

    @property
    def name(self) -> str:
        """The name that `Scheme.of` takes: "int4", "int4_half", "nvfp4"."""
        if self.format != "int":
            return self.format
        return f"int{self.bits}{'_half' if self.symmetric else ''}"

    def bits_stored(self, rows: int, columns: int) -> int:
        """Bits of a packed layer [rows, columns]: codes, and scales with what belongs to them.

        For integers a group has a 16-bit scale and, if asymmetric, a zero of `bits` bits.
        """
        size = self.columns_per_group(columns)
        if self.format != "int":
            return FORMATS[self.format].bits_stored(rows, columns, size)
        return rows * (columns * self.bits + self.groups(columns) * (16 + (0 if self.symmetric else self.bits)))

    def effective_bits(self, rows: int = 4096, columns: int = 4096) -> float:
        """Bits per weight of a layer [rows, columns], scales included."""
        return self.bits_stored(rows, columns) / (rows * columns)

    def columns_per_group(self, in_features: int) -> int:
        """Columns in a full group of such a row.  Raises GroupSizeRangeError if the group does not fit."""
        if self.group_size is not None and self.group_size > in_features:
            raise GroupSizeRangeError(
                f"group_size {self.group_size} is larger than a row of {in_features} inputs; "
                f"use at most {in_features}, or None for one scale per row"
            )
        return in_features if self.group_size is None else self.group_size

    def groups(self, in_features: int) -> int:
        """Number of groups in a row of `in_features`.  Raises GroupSizeRangeError if a group does not fit."""
        return math.ceil(in_features / self.columns_per_group(in_features))


def _format(name: str) -> Format:
    """The format of that name.  Raises FormatError with the nearest one."""
    if name not in FORMATS:
        integers = [f"int{bits}{kind}" for bits in range(2, 9) for kind in ("", "_half")]
        hint = suggestion(name, [*FORMATS, *integers])
        raise FormatError(f"no format {name!r}; known: int, {', '.join(FORMATS)}{hint}")
    return FORMATS[name]
