"""Where constants come from: a preset, a fit, a mapping, or several of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ptq_eval.errors import OptionError
from ptq_eval.laws.base import FitResult
from ptq_eval.laws.formulas.presets import OFFSETS, Preset

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
            "these are no constants",
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
            f"{purpose} needs constants that are not given: {', '.join(missing)}",
            got=", ".join(theta) or "none",
            remedy="take a preset or a fit that has them; several can be given as a list, and a preset's "
            "replace(NAME=value) adds one",
        )
    if unknown := [name for name in names if np.isnan(theta[name])]:
        raise OptionError(
            f"{purpose} needs constants that this fit did not identify", got=f"NaN for {', '.join(unknown)}"
        )
    return {name: theta[name] for name in names}
