"""The arguments of the plain functions, checked: counts, precisions, floating-point formats, and shapes that fit."""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from ptq_eval.errors import OptionError

LEAST_COUNT = 1e3
"""Counts below this are taken for millions or billions."""
_FORMAT = re.compile(r"E(\d+)M(\d+)", re.IGNORECASE)
USUAL_FORMATS = {"BF16": "E8M7", "FP16": "E5M10", "FP32": "E8M23", "TF32": "E8M10"}
"""Formats that go by a name of their own; FP8 and FP4 are several formats each."""


def together(**arrays: Any) -> None:
    """Check that these arguments have shapes that go together.  Raises OptionError."""
    shapes = {name: np.shape(value) for name, value in arrays.items()}
    try:
        np.broadcast_shapes(*shapes.values())
    except ValueError:
        got = ", ".join(f"{name} {shape}" for name, shape in shapes.items() if shape)
        raise OptionError(
            "these arguments have shapes that do not go together",
            got=got,
            allowed="numbers, or arrays that broadcast",
            remedy="N[:, None] and D[None, :] give a table",
        ) from None


def format_of(value: Any) -> dict[str, float]:
    """The exponent and mantissa bits of a format such as "E4M3" or "BF16".  Raises OptionError."""
    found = _FORMAT.fullmatch(USUAL_FORMATS.get(value.upper(), value)) if isinstance(value, str) else None
    if found is None or not int(found[1]):
        raise OptionError(
            "this law describes training in floating-point formats",
            got=repr(value),
            allowed=f"exponent bits, at least 1, and mantissa bits, or {', '.join(USUAL_FORMATS)}",
            remedy='give the format instead of bits: "E4M3"',
        )
    return {"E_bits": float(found[1]), "M_bits": float(found[2])}


def group(value: Any) -> np.ndarray:
    """How many numbers share one scale, as an array, checked."""
    if value is None:
        raise OptionError("this law needs the group size", remedy="group_size=128")
    array = _numbers("group_size", value)
    if not np.all(np.isfinite(array) & (array > 1)):
        raise OptionError("group_size must be a number above 1", got=_first(array, ~(np.isfinite(array) & (array > 1))))
    return array


def count(name: str, value: Any) -> np.ndarray:
    """N or D as an array, checked."""
    array = _numbers(name, value)
    if not np.all(np.isfinite(array) & (array > 0)):
        raise OptionError(f"{name} must be positive and finite", got=_first(array, ~(np.isfinite(array) & (array > 0))))
    if np.any(array < LEAST_COUNT):
        raise OptionError(
            f"{name} looks like a number of millions or billions",
            got=_first(array, array < LEAST_COUNT),
            allowed=f"raw counts of at least {LEAST_COUNT:g}",
            remedy=f"7 billion is {name} = 7e9",
        )
    return array


def bits_of(name: str, value: Any) -> np.ndarray:
    """A precision as an array, checked; infinity is allowed and means no rounding at all."""
    array = _numbers(name, value)
    if not np.all(array > 0):
        raise OptionError(f"{name} must be a positive number of bits", got=_first(array, ~(array > 0)))
    return array


def _numbers(name: str, value: Any) -> np.ndarray:
    try:
        return np.asarray(value, float)
    except (TypeError, ValueError):
        raise OptionError(f"{name} must be a number or an array of numbers", got=repr(value)) from None


def _first(array: np.ndarray, wrong: np.ndarray) -> str:
    return f"{float(array[wrong].flat[0]):g}"


def plain(value: Any) -> Any:
    """A float for scalars, an array for arrays."""
    array = np.asarray(value, float)
    return array if array.ndim else float(array)
