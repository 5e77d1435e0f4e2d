"""Codes and what they represent: the levels of a number format, and rounding to the nearest one.

A format of b bits has up to 2^b levels; a code is the bit pattern of a level.  Rounding is a search among
the midpoints of neighbouring levels.  A number halfway between two levels goes to the level with the even code, as in
IEEE 754, or to the lower one (`ties="lower"`, as bitsandbytes rounds its tables); a number beyond the last level goes
to the last level (saturates).  Zero has the code of +0, so a small negative number becomes +0 and not −0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Levels:
    """The n levels of a format, ascending: `values` [n] float32, `codes` [n] uint8, `bounds` [n − 1] float32.

    x belongs to level i where bounds[i − 1] < x <= bounds[i]: a bound is the midpoint of two levels or, where the
    midpoint itself belongs to the upper one, the number just below it.
    """

    values: Tensor
    codes: Tensor
    bounds: Tensor

    @property
    def lowest(self) -> float:
        """The lowest level, which may be further from zero than the highest."""
        return float(self.values[0])

    @property
    def highest(self) -> float:
        """The highest level."""
        return float(self.values[-1])

    def to(self, device: torch.device) -> Levels:
        """The same levels on a device."""
        if self.values.device == device:
            return self
        return Levels(self.values.to(device), self.codes.to(device), self.bounds.to(device))

    def nearest(self, x: Tensor) -> Tensor:
        """Codes of the nearest levels, uint8, of the shape of `x`."""
        return self.codes[torch.bucketize(x.contiguous(), self.bounds, out_int32=True)]

    def rounded(self, x: Tensor) -> Tensor:
        """The nearest levels themselves, float32, of the shape of `x`."""
        return self.values[torch.bucketize(x.contiguous(), self.bounds, out_int32=True)]

    def of_codes(self, codes: Tensor) -> Tensor:
        """The levels of `codes`, float32; NaN for a bit pattern that is not a number."""
        return self.table()[codes.long()]

    def table(self) -> Tensor:
        """The level of every bit pattern, [256] float32, NaN where there is none."""
        table = torch.full((256,), torch.nan, device=self.values.device)
        table[self.codes.long()] = self.values
        return table

    def cell_variance(self) -> Tensor:
        """Mean squared distance to every level of numbers spread evenly over its cell, [256] float32 by code.

        A cell reaches halfway to both neighbours, and beyond the last level as far as before it.  With equal steps Δ it
        is Δ²/12.
        """
        gaps = self.values.double().diff() / 2
        left, right = torch.cat([gaps[:1], gaps]), torch.cat([gaps, gaps[-1:]])
        table = torch.full((256,), torch.nan, device=self.values.device)
        table[self.codes.long()] = ((left**3 + right**3) / (3 * (left + right))).float()
        return table


def levels(values: Sequence[float], codes: Sequence[int], ties: Literal["even", "lower"] = "even") -> Levels:
    """The levels of a format from its `values` and their `codes`, in any order."""
    ordered = sorted(zip(values, codes))
    numbers = torch.tensor([value for value, _ in ordered], dtype=torch.float64)
    patterns = torch.tensor([code for _, code in ordered], dtype=torch.uint8)
    middle = ((numbers[:-1] + numbers[1:]) / 2).float()
    if ties == "even":
        below = torch.nextafter(middle, torch.full_like(middle, -torch.inf))
        middle = torch.where(patterns[1:] % 2 == 0, below, middle)
    return Levels(numbers.float(), patterns, middle)


@cache
def floating(exponent_bits: int, mantissa_bits: int, special: Literal["none", "nan", "ieee"] = "none") -> Levels:
    """A sign, an exponent biased by 2^(e−1) − 1, and a mantissa, with subnormals.

    `special` says which patterns are not numbers: none (FP4, FP6), only all ones ("nan", E4M3FN), or every
    one with the largest exponent ("ieee", E5M2).  Source: OCP 8-bit Floating Point Specification 1.0, tables 1 and 2;
    OCP Microscaling Formats 1.0, section 5.3.
    """
    bias, sign = 2 ** (exponent_bits - 1) - 1, 2 ** (exponent_bits + mantissa_bits)
    last = {"none": sign, "nan": sign - 1, "ieee": sign - 2**mantissa_bits}[special]
    magnitudes = []
    for code in range(last):
        exponent, mantissa = divmod(code, 2**mantissa_bits)
        fraction = mantissa / 2**mantissa_bits + (exponent > 0)
        magnitudes.append(fraction * 2.0 ** (max(exponent, 1) - bias))
    negative = [-value for value in magnitudes[1:]]
    return levels([*magnitudes, *negative], [*range(last), *range(sign + 1, sign + last)])


@cache
def integers(low: int, high: int, offset: int = 0) -> Levels:
    """Whole numbers from `low` to `high`, with code level + `offset`, in two's complement of 8 bits if negative."""
    return levels(range(low, high + 1), [(level + offset) % 256 for level in range(low, high + 1)])


NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
"""Levels by code: QLoRA (Dettmers et al. 2023, arXiv 2305.14314), appendix E; the numbers of bitsandbytes."""

BNB_FP4 = (0.0, 0.0625, 8.0, 12.0, 4.0, 6.0, 2.0, 3.0)
"""Twelve times the positive levels by code of bitsandbytes' FP4, which is not E2M1."""


@cache
def nf4() -> Levels:
    """The sixteen levels of NF4."""
    return levels(NF4, range(16), ties="lower")


@cache
def bnb_fp4() -> Levels:
    """The fifteen levels of bitsandbytes' FP4; the sign is the fourth bit."""
    positive = [value / 12 for value in BNB_FP4]
    return levels([*positive, *(-v for v in positive[1:])], [*range(8), *range(9, 16)], ties="lower")
