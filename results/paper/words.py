"""How effects are said: their size, their direction where that is decided, and that it is not."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from ptq_eval.report.common.numbers import plus_minus, ratio
from ptq_eval.report.common.words import listed
from results.paper.study import Effect

WIDTH = 3
"""The bit-width of statements about one."""
MODEL = ["bits", "corpus", "params"]
"""Columns that identify a model at one bit-width."""
PLACES = ("tokens_per_param", "tokens_per_param_next")
"""Columns of the ends of a step along a run."""


def amount(effect: Effect) -> str:
    """The size of an effect."""
    return plus_minus(abs(effect.mean), effect.error)


def moves(effect: Effect, what: str) -> str:
    """`raises the loss by 0.1 ± 0.01`, or that this is undecided."""
    if not effect.decided:
        return f"leaves open whether {what} rises ({plus_minus(effect.mean, effect.error)})"
    return f"{'raises' if effect.mean > 0 else 'lowers'} {what} by {amount(effect)}"


def times(effect: Effect) -> str:
    """The factor of an effect of a logarithm: `1.2 ± 0.1`."""
    value = math.exp(effect.mean)
    return plus_minus(value, value * effect.error)


def sign(effect: Effect) -> int:
    """1 or -1 where the effect is decided, else 0."""
    return int(np.sign(effect.mean)) * effect.decided


def of_row(row: Mapping[str, Any], name: str) -> Effect:
    return Effect(row[name], row[f"{name}_error"], int(row["runs"]), bool(row[f"{name}_decided"]))


def ratios(values: Iterable[float]) -> str:
    """`20, 40 and 80`."""
    return listed([ratio(value) for value in values])
