"""How numbers are written for people: uncertainties, intervals, token counts.

A measured value is rounded where its standard error says so: two digits of the error are kept, and the value
stops at the same place.  0.1234(56) is 0.1234 ± 0.0056: the digits in parentheses are the error in units of the
value's last digits.  Rounding is done in decimal, so that 0.0995 never turns into three digits by accident.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from decimal import Context, Decimal
from typing import Any

from ptq_eval.units import write

MISSING = "–"
OPEN = "open"
MAX_DECIMALS = 7
_SMALL = -3
"""A value finer than that many decimals and smaller than this power of ten is written with its power of ten."""
MIN_PLAIN, MAX_PLAIN = 1e-3, 1e5
"""Sizes between which a number is written without a power of ten."""
_PLAIN_DIGITS = 4
_PRECISION = 700
"""Digits that Decimal may use: a double ranges over 632 powers of ten."""


def number(value: Any) -> float:
    """A float from whatever a table or a JSON file holds; NaN for None, text and missing values."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan


def rounded(value: float, error: float) -> tuple[Decimal, Decimal, int]:
    """Value and error rounded at the error's second digit, and the power of ten to be written after them.

    Both arguments are finite and the error is positive.
    """
    exact = Decimal(repr(float(error)))
    place = exact.adjusted() - 1
    digits = exact.quantize(Decimal((0, (1,), place)))
    if digits.adjusted() > exact.adjusted():
        place += 1
        digits = exact.quantize(Decimal((0, (1,), place)))
    short = Decimal(repr(float(value))).quantize(Decimal((0, (1,), place)), context=Context(prec=_PRECISION))
    power = max(short.adjusted() if short else place, digits.adjusted())
    power = power if place < -MAX_DECIMALS and power < _SMALL else 0
    return short.scaleb(-power, Context(prec=_PRECISION)), digits.scaleb(-power), power


def with_error(value: Any, error: Any) -> str:
    """`0.1234(56)`; without a usable error four decimals; a dash where there is no value."""
    value, error = number(value), number(error)
    if not math.isfinite(value):
        return MISSING
    if not math.isfinite(error) or error <= 0:
        return f"{value:.{_PLAIN_DIGITS}f}"
    short, digits, power = rounded(value, error)
    place = min(int(digits.as_tuple().exponent), 0)
    return f"{short:f}({int(digits.scaleb(-place))}){_times(power)}"


def plus_minus(value: Any, error: Any) -> str:
    """`0.1234 ± 0.0056`, for running text."""
    value, error = number(value), number(error)
    if not math.isfinite(value) or not math.isfinite(error) or error <= 0:
        return with_error(value, error)
    short, digits, power = rounded(value, error)
    return f"({short:f} ± {digits:f}){_times(power)}" if power else f"{short:f} ± {digits:f}"


def _times(power: int) -> str:
    return f"e{power}" if power else ""


def count(value: Any) -> str:
    """Tokens or parameters with three digits: 1.23M, 300B; a dash where unknown."""
    value = number(value)
    if not math.isfinite(value):
        return MISSING
    return write(value) if value == 0 or abs(value) >= MIN_PLAIN else f"{value:.2e}"


def _digits(value: float) -> str:
    """Three significant digits, without a power of ten unless the value is very small."""
    if value == 0:
        return "0"
    if abs(value) < MIN_PLAIN:
        return f"{value:.2e}"
    decimals = max(0, 2 - math.floor(math.log10(abs(value)) + 1e-12))
    text = f"{value:.{decimals}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def short(value: Any) -> str:
    """Three significant digits, with a power of ten where needed; a dash where unknown."""
    value = number(value)
    if not math.isfinite(value):
        return MISSING
    return _digits(value) if abs(value) < MAX_PLAIN else f"{value:.2e}"


def percent(share: Any) -> str:
    """A share as per cent, with two digits; a dash where unknown."""
    share = number(share)
    return f"{float(f'{100 * share:.2g}'):g} %" if math.isfinite(share) else MISSING


def end(tokens: Any) -> str:
    """An end of an interval of tokens: less than one token, or none known, is an open end."""
    value = number(tokens)
    return count(value) if math.isfinite(value) and value >= 1 else OPEN


def estimate(entry: Mapping[str, Any] | None, form: Callable[[Any], str] = short, *, at_bound: bool = False) -> str:
    """`value [low, high]` from {value, low, high, open}; an open end, or an unknown one beside a known one, is "open".

    A value `at_bound` of its search without a known interval is marked so instead.
    """
    value, low, high = bounds(entry)
    if not math.isfinite(value):
        return MISSING
    if at_bound and not (math.isfinite(low) and math.isfinite(high)):
        return f"{form(value)} (at bound)"
    if not math.isfinite(low) and not math.isfinite(high) and not (entry or {}).get("open"):
        return form(value)
    ends = (form(one) if math.isfinite(one) else OPEN for one in (low, high))
    return f"{form(value)} [{', '.join(ends)}]"


def tokens_estimate(entry: Mapping[str, Any] | None) -> str:
    """`estimate` of a number of tokens, in whose interval less than one token is an open end."""
    value, low, high = bounds(entry)
    known = {name: one if one >= 1 else math.nan for name, one in (("low", low), ("high", high))}
    return estimate({"value": value, **known, "open": (entry or {}).get("open")}, count)


def bounds(entry: Mapping[str, Any] | None) -> tuple[float, float, float]:
    """(value, low, high) of an estimate, NaN where unknown or open."""
    value, low, high = (number((entry or {}).get(name)) for name in ("value", "low", "high"))
    return value, low, high
