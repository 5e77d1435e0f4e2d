"""Counts as people write them, and guards against counts in the wrong unit.

Every formula here takes raw parameters, raw tokens, operations and bytes.  "1B", "300M" and "1e9" are read as such;
a bare "1" for a billion is the commonest mistake of all, would be answered with nonsense, and is refused.
"""

from __future__ import annotations

import math
import re

from ptq_eval.errors import NotPositiveError, OptionError, UnitsError
from ptq_eval.laws.arguments import LEAST_COUNT

_COUNTS = {"": 1.0, "k": 1e3, "m": 1e6, "b": 1e9, "g": 1e9, "t": 1e12}
_BYTES = {"": 1.0, "b": 1.0}
for _power, _letter in enumerate("kmgt", start=1):
    _BYTES |= {_letter: 1e3**_power, f"{_letter}b": 1e3**_power, f"{_letter}ib": 1024.0**_power}
_NUMBER = re.compile(r"([+-]?[\d_]*\.?\d+(?:e[+-]?\d+)?)\s*([a-z]*)", re.IGNORECASE)

FEWEST = {
    "--params": LEAST_COUNT, "--tokens": LEAST_COUNT, "--served-tokens": LEAST_COUNT, "--memory": 1e3, "--budget": 1e6,
}  # fmt: skip
"""Below this a count is none of raw parameters, tokens, bytes or operations."""
NONE_ALLOWED = ("--served-tokens",)
"""Counts that may be zero."""
MOST = {"--params": 1e16, "--tokens": 1e19, "--served-tokens": 1e22, "--memory": 1e18, "--budget": 1e40}
_WHAT = {
    "--params": ("parameters", "1B or 1e9", "a number of millions or billions"),
    "--tokens": ("tokens", "20B or 2e10", "a number of billions"),
    "--served-tokens": ("tokens", "1T or 1e12", "a number of billions"),
    "--memory": ("bytes", "8GB or 8e9", "a number of gigabytes"),
    "--budget": ("FLOPs at 16 bits (6·N·D)", "1e21", "an exponent or a number of petaflop/s-days"),
}


def read(flag: str, text: str) -> float:
    """A count from "1e9", "1B", "300M" or, for --memory, "8GB" and "16GiB".

    Raises OptionError for what is no number, NotPositiveError and UnitsError for numbers that cannot be meant.
    """
    what, example, _ = _WHAT[flag]
    units = _BYTES if flag == "--memory" else _COUNTS
    found = _NUMBER.fullmatch(text.strip())
    if found is None or found[2].lower() not in units:
        allowed = f"a number of {what}, with k, M, B or T" if units is _COUNTS else "bytes, with kB, MB, GB, GiB or TB"
        raise OptionError(f"{flag} is not a number", got=repr(text), allowed=allowed, remedy=f"{flag} {example}")
    value = float(found[1].replace("_", "")) * units[found[2].lower()]
    return value if flag in NONE_ALLOWED and value == 0 else check(flag, value, text)


def check(flag: str, value: float, text: object = None) -> float:
    """`value`, if it can be meant as what `flag` asks for.  Raises NotPositiveError and UnitsError."""
    what, example, mistaken = _WHAT[flag]
    got = f"{value:g}" if text is None else text
    if not value > 0:
        raise NotPositiveError(f"{flag} must be positive", got=got, remedy=f"{flag} {example}")
    if value < FEWEST[flag] or not value <= MOST[flag] or not math.isfinite(value):
        why = f"looks like {mistaken}" if value < FEWEST[flag] else "is more than there can be"
        allowed = f"{what}, {FEWEST[flag]:.0e} to {MOST[flag]:.0e}"
        raise UnitsError(f"{flag} {why}", got=got, allowed=allowed, remedy=f"{flag} {example}")
    return value
