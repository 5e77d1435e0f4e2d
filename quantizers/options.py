"""Options of a quantizer: dataclass fields that carry their help and their limits, and the check of a value."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from quantizers.errors import OptionValueError


def option(
    default: Any,
    help: str,
    *,
    choices: Sequence[str] = (),
    low: float | None = None,
    high: float | None = None,
    added: bool = False,
) -> Any:
    """A dataclass field that is an option: its default, a sentence of help, its choices or its range.

    The default's type (bool, int, float or str) is the option's type.  An option that is `added` to a published method
    is not among `Quantizer.options()` at its default, so that records keep the keys that they had without it.
    """
    kind = type(default)
    return dataclasses.field(
        default=default,
        metadata={"help": help, "choices": tuple(choices), "low": low, "high": high, "type": kind, "added": added},
    )


def checked(owner: str, spec: dataclasses.Field[Any], value: Any) -> Any:
    """`value` as the type of the option `spec` of `owner`, or OptionValueError."""
    kind, choices, low, high = (spec.metadata[key] for key in ("type", "choices", "low", "high"))
    if kind is float and is_int(value):
        value = float(value)  # 1 and 1.0 must give the same record key
    fits = is_int(value) if kind is int else isinstance(value, kind)
    if fits and choices:
        fits = value in choices
    if fits and kind in (int, float):
        fits = (-math.inf if low is None else low) <= value <= (math.inf if high is None else high)
        fits = fits and abs(value) < math.inf
    if not fits:
        raise OptionValueError(f"{owner} option {spec.name!r}: allowed is {allowed_of(spec)}, got {value!r}")
    return value


def allowed_of(spec: dataclasses.Field[Any]) -> str:
    """The values of an option in words: its choices, or its type and range."""
    kind, choices, low, high = (spec.metadata[key] for key in ("type", "choices", "low", "high"))
    if choices:
        return " or ".join(map(repr, choices))
    if low is not None and high is not None:
        return f"{kind.__name__} from {low:.9g} to {high:.9g}"
    ends = [f"{sign} {end:.9g}" for sign, end in (("≥", low), ("≤", high)) if end is not None]
    return " ".join([kind.__name__, *ends])


def is_int(value: object) -> bool:
    """Whether `value` is an integer and not a bool."""
    return isinstance(value, int) and not isinstance(value, bool)
