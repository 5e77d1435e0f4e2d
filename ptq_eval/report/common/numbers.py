"""How numbers are written for people: uncertainties, intervals, token counts.

A measured value is rounded according to its standard error: two digits of the error are kept, and the value
ends at the same decimal.  0.1234(56) is 0.1234 ± 0.0056: the digits in parentheses are the error in units of the
value's last digits.  Rounding is done in decimal, so that 0.0995 never turns into three digits by accident.

Everything else has three digits, as people write them: 1,000, 4.86M, 2.36×10⁻⁴.  An end of an interval that is beyond
anything plausible limits nothing, and is called open.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from decimal import Context, Decimal
from typing import Any

from ptq_eval.results.points import number
from ptq_eval.units import write

MISSING = "–"
OPEN = "open"
MAX_DECIMALS = 7
_SMALL = -3
"""A value below this power of ten that needs more than `MAX_DECIMALS` is written in scientific notation."""
MIN_PLAIN, MAX_PLAIN = 1e-3, 1e6
"""Numbers between these sizes are written without a power of ten."""
MAX_COUNT = 1e18
"""An end of an interval of more tokens is open: a thousand times all text there is."""
MAX_RATIO = 1e9
"""An end of an interval that is this many times larger or smaller than its value is open."""
_PLAIN_DIGITS = 4
_PRECISION = 700
"""Digits that Decimal may use: a double ranges over 632 powers of ten."""


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


_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def _times(power: int) -> str:
    return f"×10{str(power).translate(_RAISED)}" if power else ""


def _scientific(value: float) -> str:
    """Three digits and a power of ten: 2.36×10⁻⁴."""
    digits, power = f"{value:.2e}".split("e")
    return digits + _times(int(power))


def count(value: Any) -> str:
    """Tokens or parameters with three digits: 1.23M, 300B; a dash where unknown."""
    value = number(value)
    if not math.isfinite(value):
        return MISSING
    return write(value) if value == 0 or MIN_PLAIN <= abs(value) < MAX_COUNT else _scientific(value)


def title(run: str, params: float, together: bool) -> str:
    """A trajectory's name with its N, unless it is all runs of one size together, whose N is their name."""
    return run if together else f"{run} (N = {count(params)})"


def short(value: Any) -> str:
    """Three significant digits, all of a whole number's: 0.0123, 12.3, 12,345; with a power of ten where it is very
    small or large; a dash where unknown."""
    value = number(value)
    if not math.isfinite(value):
        return MISSING
    if value == 0:
        return "0"
    if not MIN_PLAIN <= abs(value) < MAX_PLAIN:
        return _scientific(value)
    decimals = max(0, 2 - math.floor(math.log10(abs(value)) + 1e-12))
    text = f"{value:,.{decimals}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def ratio(value: Any) -> str:
    """Three significant digits, also of large values: 2,760 tokens per parameter; a dash where unknown."""
    value = number(value)
    return short(float(f"{value:.2e}")) if math.isfinite(value) else MISSING


def rough(value: Any) -> str:
    """Two significant digits, for what is not known better; a dash where unknown."""
    value = number(value)
    return short(float(f"{value:.1e}")) if math.isfinite(value) else MISSING


def percent(share: Any) -> str:
    """A share as per cent, with two digits; a dash where unknown."""
    share = number(share)
    return f"{rough(100 * share)} %" if math.isfinite(share) else MISSING


def end(tokens: Any) -> str:
    """An end of an interval of tokens; one that is unknown or not plausible is open."""
    value = number(tokens)
    return count(value) if 1 <= value < MAX_COUNT else OPEN


def estimate(entry: Mapping[str, Any] | None, form: Callable[[Any], str] = short, *, at_bound: bool = False) -> str:
    """`value [low to high]` from {value, low, high, open}; an end that is open, not plausible, or unknown beside a
    known one, is "open".

    A value `at_bound` of its search without a known interval is marked so instead.
    """
    value, low, high = bounds(entry)
    if not math.isfinite(value):
        return MISSING
    known = math.isfinite(low), math.isfinite(high)
    if at_bound and not all(known):
        return f"{form(value)} (at bound)"
    if not any(known) and not (entry or {}).get("open"):
        return form(value)
    low, high = (form(one) if _plausible(one, value) else OPEN for one in (low, high))
    return f"{form(value)} [{low} to {high}]"


def _plausible(limit: float, value: float) -> bool:
    """Whether an end of an interval limits a value: it is known, and zero or of a comparable size."""
    comparable = limit == 0 or value == 0 or abs(value) / MAX_RATIO < abs(limit) < abs(value) * MAX_RATIO
    return math.isfinite(limit) and comparable


def tokens_estimate(entry: Mapping[str, Any] | None) -> str:
    """`estimate` of a number of tokens, whose ends are plausible numbers of tokens or open."""
    value, low, high = bounds(entry)
    ends = {name: one if 1 <= one < MAX_COUNT else math.nan for name, one in (("low", low), ("high", high))}
    is_open = bool((entry or {}).get("open")) or math.isfinite(low) or math.isfinite(high)
    return estimate({"value": value, **ends, "open": is_open}, count)


def bounds(entry: Mapping[str, Any] | None) -> tuple[float, float, float]:
    """(value, low, high) of an estimate, NaN where unknown or open."""
    value, low, high = (number((entry or {}).get(name)) for name in ("value", "low", "high"))
    return value, low, high
