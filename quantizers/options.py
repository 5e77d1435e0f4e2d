"""Options of a quantizer: dataclass fields that carry their help and their limits, and the check of a value."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from quantizers.errors import OptionValueError


def option(
    default: Any, help: str, *, choices: Sequence[str] = (), low: float | None = None, added: bool = False
) -> Any:
    """A dataclass field that is an option: its default, a sentence of help, its choices or its lowest value.

    The default's type (bool, int, float or str) is the option's type.  An option that is `added` to a published method
    is not among `Quantizer.options()` at its default, so that records keep the keys that they had without it.
    """
    kind = type(default)
    return dataclasses.field(
        default=default,
        metadata={"help": help, "choices": tuple(choices), "low": low, "type": kind, "added": added},
    )


def checked(owner: str, spec: dataclasses.Field[Any], value: Any) -> Any:
    """`value` as the type of the option `spec` of `owner`, or OptionValueError."""
    kind, choices, low = (spec.metadata[key] for key in ("type", "choices", "low"))
    if kind is float and is_int(value):
        value = float(value)  # 1 and 1.0 must give the same record key
    fits = is_int(value) if kind is int else isinstance(value, kind)
    if fits and choices:
        fits = value in choices
    if fits and low is not None:
        fits = low <= value < math.inf
    if not fits:
        allowed = " or ".join(map(repr, choices)) or kind.__name__ + (f" ≥ {low:g}" if low is not None else "")
        raise OptionValueError(f"{owner} option {spec.name!r}: allowed is {allowed}, got {value!r}")
    return value


def is_int(value: object) -> bool:
    """Whether `value` is an integer and not a bool."""
    return isinstance(value, int) and not isinstance(value, bool)
