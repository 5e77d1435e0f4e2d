"""Counts and sizes as people write them: 2M, 2e6, 2_000_000, 8GB, 8GiB.

One grammar reads every number of tokens, parameters, steps, windows, operations and bytes, on the command line, in
Python and in `trajectory.yaml`; one function writes them.  Both compute in decimal, so 1.1B is exactly 1100000000.
A comma separates the entries of a list and never the digits of a number: 1_000, not 1,000.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Context, Decimal
from fractions import Fraction
from numbers import Integral, Real
from typing import Any

from ptq_eval.errors import OptionError, PtqEvalError

_DIGITS = r"\d+(?:_\d+)*"
_NUMBER = re.compile(
    rf"([+-]?(?:{_DIGITS}(?:\.(?:{_DIGITS})?)?|\.{_DIGITS})(?:e[+-]?\d{{1,3}})?)\s*([a-z]*)", re.IGNORECASE
)
_GROUPED = re.compile(r"[+-]?[1-9]\d{0,2}(,\d{3})+")
_BINARY = re.compile(r"(\d+)\s*([kmgt])i", re.IGNORECASE)
_PRODUCT = re.compile(r"(\d{1,9})\s*([*x×]|\*\*|\^)\s*(\d{1,9})", re.IGNORECASE)
_LIMIT = 10**300
MIN_COUNT = 1e3
"""No model has fewer parameters than this, and no checkpoint fewer tokens: smaller counts are of another unit."""
_EXACT = Context(prec=700)
"""More digits than a double has."""


@dataclass(frozen=True)
class Unit:
    """What is counted: the factor of each suffix that is read (in lower case), the suffixes of 1000⁰ to 1000⁴ that are
    written, and whether a fraction of one is an error."""

    noun: str
    example: str
    suffixes: Mapping[str, int]
    written: tuple[str, ...] = ("",)
    whole: bool = True


_POWERS = {letter: power for power, letter in enumerate(("", "k", "m", "g", "t"))}
COUNT = Unit(
    "a whole number",
    "2_000_000, 2e6 or 2M",
    {**{letter: 1000**power for letter, power in _POWERS.items()}, "b": 10**9},
    ("", "k", "M", "B", "T"),
)
BYTES = Unit(
    "a number of bytes",
    "8GB, 8GiB or 8e9",
    {
        **{letter + end: 1000**power for letter, power in _POWERS.items() for end in ("", "b")},
        **{letter + end: 1024**power for letter, power in _POWERS.items() if letter for end in ("i", "ib")},
    },
    (" B", " kB", " MB", " GB", " TB"),
    whole=False,
)
BITS = Unit("a whole number of bits", "2, 3, 4 or 8", {"": 1})
PLAIN = Unit("a number", "0.0003 or 3e-4", {"": 1}, whole=False)


def read(value: Any, unit: Unit = COUNT, *, name: str = "the value", error: type[PtqEvalError] = OptionError) -> int:
    """The number that `value` means: text such as "2M" or "8GB", or a number (2e6 counts as 2000000).

    A fraction of a byte is dropped; a fraction of anything else is refused.  The sign is kept: bounds are the caller's.
    Raises `error`, whose line calls the value `name`.
    """
    number = _exact(value, unit)
    if number is None or (unit.whole and number.denominator > 1):
        raise _wrong(value, unit.noun, unit, name, error)
    return int(number)


def read_number(
    value: Any, unit: Unit = PLAIN, *, name: str = "the value", error: type[PtqEvalError] = OptionError
) -> float:
    """A finite float, such as 0.02 or "3e-4", or with the suffixes of `unit`.  Raises `error`, see `read`."""
    number = _exact(value, unit)
    if number is None:
        raise _wrong(value, "a number of bytes" if unit is BYTES else "a number", unit, name, error)
    return float(number)


def write(value: float, unit: Unit = COUNT, *, digits: int | None = 3) -> str:
    """`1.23M`, or `1.5 GB` for bytes: `digits` significant digits, or all of them for None.  `value` is finite.

    What is written is read back as the same number, up to the digits that were dropped.
    """
    for power in reversed(range(len(unit.written))):
        scaled = Decimal(value).scaleb(-3 * power, _EXACT)
        if digits is not None and scaled:
            places = max(0, digits - 1 - scaled.adjusted())
            scaled = scaled.quantize(Decimal((0, (1,), -places)), context=_EXACT)
        if abs(scaled) >= 1:
            break
    text = f"{scaled:f}"  # pyrefly: ignore[unbound-name]  # every unit has a first power
    return (text.rstrip("0").rstrip(".") if "." in text else text) + unit.written[power]


def _wrong(value: Any, noun: str, unit: Unit, name: str, error: type[PtqEvalError]) -> PtqEvalError:
    text = value.strip() if isinstance(value, str) else ""
    remedy = f"write it without the comma: {text.replace(',', '')}" if _GROUPED.fullmatch(text) else ""
    if unit is COUNT and (result := _computed(text)):
        remedy = f"write the number itself: {result}"
    return error(f"{name} is not {noun}", got=repr(value), allowed=f"written as {unit.example}", remedy=remedy)


def _computed(text: str) -> int | None:
    """The value of 2Mi, 4096*512 or 2^21, which are no numbers in this grammar; None for anything else."""
    if found := _BINARY.fullmatch(text):
        return int(found[1]) * 1024 ** _POWERS[found[2].lower()]
    found = _PRODUCT.fullmatch(text)
    if found is None:
        return None
    one, other = int(found[1]), int(found[3])
    if found[2] in ("**", "^"):
        return one**other if one.bit_length() * other < 100 else None
    return one * other


def _exact(value: Any, unit: Unit) -> Fraction | None:
    """The value of a number or of text in this grammar; None for anything else."""
    if isinstance(value, Real) and not isinstance(value, bool):
        exact = int(value) if isinstance(value, Integral) else float(value)
        return Fraction(exact) if abs(exact) < _LIMIT else None
    found = _NUMBER.fullmatch(value.strip()) if isinstance(value, str) else None
    factor = unit.suffixes.get(found[2].lower(), 0) if found else 0
    number = Fraction(found[1].replace("_", "")) * factor if found else Fraction(0)
    return number if factor and abs(number) < _LIMIT else None
