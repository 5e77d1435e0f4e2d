"""The arguments of the plain functions, checked: constants, counts, precisions, formats, and shapes."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ptq_eval.errors import OptionError
from ptq_eval.laws.base import FitResult
from ptq_eval.laws.formulas.presets import OFFSETS, Preset
from ptq_eval.units import MIN_COUNT

_FORMAT = re.compile(r"E(\d+)M(\d+)", re.IGNORECASE)
FORMAT_ALIASES = {"BF16": "E8M7", "FP16": "E5M10", "FP32": "E8M23", "TF32": "E8M10"}
"""Formats with a common name; FP8 and FP4 are several formats each."""


def check_shapes(**arrays: Any) -> None:
    """Check that these arguments broadcast against each other.  Raises OptionError."""
    shapes = {name: np.shape(value) for name, value in arrays.items()}
    try:
        np.broadcast_shapes(*shapes.values())
    except ValueError:
        got = ", ".join(f"{name} {shape}" for name, shape in shapes.items() if shape)
        raise OptionError(
            "these arguments do not broadcast against each other",
            got=got,
            allowed="numbers, or arrays that broadcast",
            remedy="N[:, None] and D[None, :] give a table",
        ) from None


def format_of(value: Any) -> dict[str, float]:
    """The exponent and mantissa bits of a format such as "E4M3" or "BF16".  Raises OptionError."""
    found = _FORMAT.fullmatch(FORMAT_ALIASES.get(value.upper(), value)) if isinstance(value, str) else None
    if found is None or not int(found[1]):
        raise OptionError(
            "this law describes training in floating-point formats",
            got=repr(value),
            allowed=f"exponent bits, at least 1, and mantissa bits, or {', '.join(FORMAT_ALIASES)}",
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
    if np.any(array < MIN_COUNT):
        raise OptionError(
            f"{name} looks like a number of millions or billions",
            got=_first(array, array < MIN_COUNT),
            allowed=f"raw counts of at least {MIN_COUNT:g}",
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


Constants = Preset | FitResult | Mapping[str, float] | Sequence["Preset | FitResult | Mapping[str, float]"]
"""Whatever constants can be taken from."""


def constants_of(constants: Constants, *, offsets: bool = True) -> dict[str, float]:
    """The constants by name; without the offsets n of N_eff if asked.  Raises OptionError."""
    if isinstance(constants, Preset):
        found = dict(constants.constants)
    elif isinstance(constants, FitResult):
        found = constants.values
    elif isinstance(constants, Mapping):
        found = dict(constants)
    elif isinstance(constants, Sequence) and not isinstance(constants, str):
        found = {name: value for one in constants for name, value in constants_of(one).items()}
    else:
        raise OptionError(
            "these are not constants",
            got=repr(constants),
            allowed="a preset, a fit, a mapping of names to values, or a sequence of these",
            remedy="PRESETS[name] gives a preset by its name" if isinstance(constants, str) else "",
        )
    return {name: float(value) for name, value in found.items() if offsets or name not in OFFSETS}


def check_bits(constants: Constants, bits: object) -> None:
    """Check that presets which hold for one number of bits are asked about that one.  Raises OptionError."""
    for preset in constants if isinstance(constants, (list, tuple)) else (constants,):
        if isinstance(preset, Preset) and preset.bits is not None and not np.all(np.asarray(bits) == preset.bits):
            what = f"the constants of {preset.name} hold for one number of bits"
            raise OptionError(what, got=repr(bits), allowed=f"{preset.bits:g}")


def pick(theta: dict[str, float], names: Sequence[str], purpose: str) -> dict[str, float]:
    """The constants `names`, all there and numbers; `purpose` is what they are needed for, for the error.

    Raises OptionError.
    """
    missing = [name for name in names if name not in theta]
    if missing:
        raise OptionError(
            f"{purpose} needs constants that are missing: {', '.join(missing)}",
            got=", ".join(theta) or "none",
            remedy="take a preset or a fit that has them, or several in a list; a preset's "
            "replace(NAME=value) adds one",
        )
    if unknown := [name for name in names if np.isnan(theta[name])]:
        raise OptionError(
            f"{purpose} needs constants that this fit did not identify", got=f"NaN for {', '.join(unknown)}"
        )
    return {name: theta[name] for name in names}
