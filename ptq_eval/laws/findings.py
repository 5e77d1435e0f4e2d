"""What the laws find beside numbers, as values: a kind with its facts, from which `report/` makes a sentence.

Nothing here is prose.  A `Finding` says why something is not known (`Why`) or what to beware of (`Caution`); its facts
are the numbers and names that the sentence needs, listed beside each kind.  In `fit.json` it is the object
`{"kind": ..., **facts}`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


class Why(StrEnum):
    """Why a fit has no constants, or a run no critical number of tokens; behind each kind, its facts."""

    TOO_FEW_POINTS = "too_few_points"  # points, constants
    TOO_FEW_VALUES = "too_few_values"  # variable, distinct, needed
    TOO_FEW_CLEAR_DELTAS = "too_few_clear_deltas"  # clear, deltas, needed
    LOSS_DOES_NOT_FALL = "loss_does_not_fall"
    GROUP_SIZE_ONE = "group_size_one"
    CONFOUNDED = "confounded"  # variables (two), constants (two lists)
    NOT_SEPARABLE = "not_separable"  # constants, variable ("P", "G" or none), one_value (whether one would do)
    NOT_FINITE = "not_finite"
    FEW_SIZES = "few_sizes"  # sizes, needed
    COLUMN_MISSING = "column_missing"  # variable
    NOTHING_HELD_OUT = "nothing_held_out"  # variable, distinct
    UNSEEN_VALUE = "unseen_value"  # variable

    NO_LOSS_CURVE = "no_loss_curve"
    DELTA_NOT_FITTED = "delta_not_fitted"  # fit (why)
    LOSS_NOT_FITTED = "loss_not_fitted"  # fit (why)
    LAW_NOT_FITTED = "law_not_fitted"  # law, fit (why)
    BITS_AT_BOUND = "bits_at_bound"  # constants
    CONSTANT_AT_BOUND = "constant_at_bound"  # constants
    NOT_CONVERGED = "not_converged"
    LOSS_NO_POWER_LAW = "loss_no_power_law"  # constants
    DELTA_DOES_NOT_GROW = "delta_does_not_grow"  # constant, value, low, high
    LAW_HAS_NO_TURN = "law_has_no_turn"  # law
    NO_TURN = "no_turn"
    WIDE_INTERVAL = "wide_interval"  # low, high
    SHORT_RANGE = "short_range"  # low, high, factor
    DELTA_NOT_SIGNIFICANT = "delta_not_significant"  # bits
    DELTA_HIDDEN = "delta_hidden"  # most (nats per token; more are excluded)
    LAW_MISSES_DELTAS = "law_misses_deltas"  # bits, clear, deltas
    FULL_PRECISION_RISES = "full_precision_rises"
    TOO_FAR = "too_far"  # factor
    REFUTED = "refuted"  # conflict
    FORECAST_OPEN = "forecast_open"  # checkpoints


class Caution(StrEnum):
    """What to beware of in the fits of a folder or a table; behind each kind, its facts."""

    NOTHING_TO_FIT = "nothing_to_fit"
    FULL_PRECISION_RISES = "full_precision_rises"  # run, tokens, rise, error, scatter ("unknown", "within", "beyond")
    SCHEDULE = "schedule"  # schedule ("decaying", "constant", "annealed", "unknown"), runs
    MIXED_PHASES = "mixed_phases"
    FEW_RUNS = "few_runs"  # runs, needed
    NO_TREND = "no_trend"  # trajectory, points, needed
    SCATTER_UNSURE = "scatter_unsure"  # trajectory, points, needed
    RUNS_OF_SIZES = "runs_of_sizes"  # sizes
    NEGATIVE_DELTAS = "negative_deltas"  # quantizer, negative, deltas
    EXTRAPOLATED = "extrapolated"  # extrapolated, critical_tokens, largest, too_far, limit
    POOR_FIT = "poor_fit"  # quantizer, group_size, calibration, r2, scatter


@dataclass(frozen=True)
class Finding:
    """A kind (`Why`, `Caution`, or another enumeration of texts) with its facts."""

    kind: StrEnum
    facts: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.kind} ({', '.join(f'{name} {value}' for name, value in self.facts.items())})"

    def to_dict(self) -> dict[str, Any]:
        """A JSON object; numbers that are not finite become None."""
        return {"kind": self.kind.value, **{name: _plain(value) for name, value in self.facts.items()}}


def why(kind: Why, **facts: Any) -> Finding:
    """A reason."""
    return Finding(kind, facts)


def caution(kind: Caution, **facts: Any) -> Finding:
    """A caution."""
    return Finding(kind, facts)


def why_from(stored: Mapping[str, Any] | None) -> Finding | None:
    """The reason behind an object of `fit.json`; None for null.  Raises ValueError for a kind that is not known."""
    if not stored:
        return None
    return Finding(Why(stored["kind"]), {name: value for name, value in stored.items() if name != "kind"})


def _plain(value: Any) -> Any:
    if isinstance(value, Finding):
        return value.to_dict()
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    return value
