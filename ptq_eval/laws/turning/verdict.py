"""What is said of D_crit: which of an observation, a forecast and a prediction counts.

A turn that was observed, and passed its test, comes first.  Where a run has enough checkpoints, the forecast from
these (`laws.forecast`) comes next, with both ends or as "not before".  What a fitted law predicts counts only where no
forecast is possible: fewer checkpoints, separately trained models, tables of users, other sizes.  It is withheld
wherever the measurements refute it, because the loss still falls significantly beyond it or turns elsewhere, or where
the forecast excludes it; and one beyond `MAX_FACTOR` times the largest D seen is not believed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import numpy as np

from ptq_eval.laws.base import Estimate
from ptq_eval.laws.findings import Finding, Why, why
from ptq_eval.laws.quality import finite_or_none
from ptq_eval.laws.turning.observed import TurningPoint, checkpoint_scatter
from ptq_eval.results.points import Curve
from ptq_eval.sampling import errors_needed, freedom, independent, standard_error

LEVEL = 0.9
"""Of the intervals of an observed turn and of a forecast."""
MAX_FACTOR = 100.0
"""The multiple of the largest D seen beyond which a prediction is not believed."""
PART_SHARE, MAIN_SHARE = 0.2, 0.5
"""The shares of an observed rise from which the full-precision loss's own rise is a part of it, and its main cause."""


class VerdictKind(StrEnum):
    """What is known about D_crit."""

    OBSERVED = "observed"
    FORECAST = "forecast"
    NOT_BEFORE = "not_before"
    PREDICTED = "predicted"
    NOT_IDENTIFIED = "not_identified"


class Conflict(StrEnum):
    """How the measurements disagree with a turn that a law predicts; the last three refute it."""

    NO_SECOND_CHECKPOINT = "no_second_checkpoint"
    NOT_CONFIRMED = "not_confirmed"
    STILL_FALLS = "still_falls"
    TURNS_ELSEWHERE = "turns_elsewhere"
    FORECAST_EXCLUDES = "forecast_excludes"


class Share(StrEnum):
    """The part that the full-precision loss has in an observed rise."""

    PART = "part"
    MAIN = "main"


@dataclass(frozen=True)
class PoorFit:
    """How poorly a law describes its points: R² of the response itself, and the relative scatter (NaN if unknown)."""

    r2: float
    scatter: float

    def to_dict(self) -> dict[str, float | None]:
        """A JSON object."""
        return {"r2": finite_or_none(self.r2), "scatter": finite_or_none(self.scatter)}


@dataclass(frozen=True)
class Answer:
    """The interval of D_crit that counts, in tokens, at a level; ends and value that are open are not finite.

    Alone, the lower end has a one-sided probability of (1 + level)/2: no turn comes before it.
    """

    low: float
    value: float
    high: float
    level: float

    def to_dict(self) -> dict[str, Any]:
        """A JSON object; what is open becomes None."""
        return {name: finite_or_none(getattr(self, name)) for name in ("low", "value", "high", "level")}


@dataclass(frozen=True)
class Forecast(Answer):
    """D_crit as forecast from `n_checkpoints` of one run; `weights`: the share of each candidate by name, of "loss" and
    "delta"; `hidden`: where no delta is seen, above which one at the last checkpoint is excluded with 95 %, in nats
    per token, else NaN."""

    n_checkpoints: int
    weights: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    hidden: float = math.nan

    def to_dict(self) -> dict[str, Any]:
        """A JSON object; what is open becomes None."""
        weights = {name: dict(shares) for name, shares in self.weights.items()}
        hidden = finite_or_none(self.hidden)
        return {**super().to_dict(), "n_checkpoints": self.n_checkpoints, "weights": weights, "hidden": hidden}


@dataclass(frozen=True)
class Verdict:
    """What is known about D_crit, and what qualifies it.

    answer: the interval that counts, None where nothing is identified.  reason: why it is not or, of a forecast, why
    the law predicts nothing that is believed.  conflict: of a prediction inside the range that counts, why the
    measurement does not confirm it; withheld: why one is refuted.  share: of an observed rise, what the full-precision
    loss has to do with it.  poor_fit: the law behind a prediction describes its points poorly.
    """

    kind: VerdictKind
    answer: Answer | None = None
    reason: Finding | None = None
    conflict: Conflict | None = None
    withheld: Conflict | None = None
    share: Share | None = None
    poor_fit: PoorFit | None = None

    def to_dict(self) -> dict[str, Any]:
        """The fields of an entry of `critical_tokens` that hold it."""
        return {
            "verdict_kind": self.kind.value,
            "answer": self.answer.to_dict() if self.answer else None,
            "reason": self.reason.to_dict() if self.reason else None,
            "conflict": self.conflict.value if self.conflict else None,
            "withheld": self.withheld.value if self.withheld else None,
            "full_precision_share": self.share.value if self.share else None,
            "poor_fit": self.poor_fit.to_dict() if self.poor_fit else None,
        }


def verdict(
    predicted: Estimate | None,
    reason: Finding | None,
    largest: float,
    observed: TurningPoint | None = None,
    forecast: Forecast | None = None,
    *,
    level: float = LEVEL,
    withheld: Conflict | None = None,
    full_rises: bool = False,
    full_rise: float = math.nan,
    poor: PoorFit | None = None,
) -> Verdict:
    """The verdict on one run at one bit-width.

    predicted: what the law says, at `level`, or None and the `reason`; withheld: how it is refuted (see `refutation`).
    largest: the largest D seen.  observed: None for a table, where nothing can be tested.  full_rises: whether the
    full-precision loss itself turns upward; full_rise: by how much it rises between the checkpoints of `observed`.
    poor: how poorly the law describes the deltas.
    """
    if observed is not None and observed.interior:
        place = observed.place
        return Verdict(
            VerdictKind.OBSERVED,
            Answer(place.low, place.value, place.high, LEVEL),
            withheld=withheld,
            share=_share(observed.rise, full_rise, full_rises),
            poor_fit=poor,
        )
    if full_rises:
        return Verdict(VerdictKind.NOT_IDENTIFIED, reason=why(Why.FULL_PRECISION_RISES), withheld=withheld)
    of_law = _from_law(predicted, reason, largest, level, observed, withheld, poor)
    return of_law if forecast is None else _from_forecast(forecast, of_law)


def _from_forecast(forecast: Forecast, of_law: Verdict) -> Verdict:
    """The forecast, with what is known of the law's prediction."""
    about: dict[str, Any] = {"reason": of_law.reason, "withheld": of_law.withheld}
    if math.isfinite(forecast.high):
        answer = Answer(forecast.low, forecast.value, forecast.high, forecast.level)
        return Verdict(VerdictKind.FORECAST, answer, **about)
    if math.isfinite(forecast.low):
        answer = Answer(forecast.low, math.nan, math.nan, forecast.level)
        return Verdict(VerdictKind.NOT_BEFORE, answer, **about)
    about["reason"] = why(Why.FORECAST_OPEN, checkpoints=forecast.n_checkpoints)
    if math.isfinite(forecast.hidden):
        about["reason"] = why(Why.DELTA_HIDDEN, most=forecast.hidden)
    return Verdict(VerdictKind.NOT_IDENTIFIED, **about)


def _from_law(
    predicted: Estimate | None,
    reason: Finding | None,
    largest: float,
    level: float,
    observed: TurningPoint | None,
    withheld: Conflict | None,
    poor: PoorFit | None,
) -> Verdict:
    if predicted is None:
        return Verdict(VerdictKind.NOT_IDENTIFIED, reason=reason)
    if withheld:
        return Verdict(VerdictKind.NOT_IDENTIFIED, reason=why(Why.REFUTED, conflict=withheld.value), withheld=withheld)
    if (factor := predicted.value / largest) > MAX_FACTOR:
        return Verdict(VerdictKind.NOT_IDENTIFIED, reason=why(Why.TOO_FAR, factor=factor))
    inside = observed is not None and predicted.value < largest
    return Verdict(
        VerdictKind.PREDICTED,
        Answer(predicted.low, predicted.value, predicted.high, level),
        conflict=_unconfirmed(observed) if observed and inside else None,
        poor_fit=poor,
    )


def _unconfirmed(observed: TurningPoint) -> Conflict:
    return Conflict.NO_SECOND_CHECKPOINT if observed.n_checkpoints < 2 else Conflict.NOT_CONFIRMED


def refutation(
    predicted: Estimate | None, curve: Curve, observed: TurningPoint, forecast: Forecast | None = None
) -> Conflict | None:
    """How the measurements refute a predicted turn; None if they do not, or there is none.

    A turn is observed elsewhere if the interval of its place excludes the predicted one.
    """
    if predicted is None:
        return None
    if observed.interior and not observed.place.low <= predicted.value <= observed.place.high:
        return Conflict.TURNS_ELSEWHERE
    if falls_beyond(curve, predicted.value):
        return Conflict.STILL_FALLS
    if forecast is not None and not observed.interior:
        ends = [end if math.isfinite(end) else other for end, other in ((forecast.low, 0), (forecast.high, math.inf))]
        if not ends[0] <= predicted.value <= ends[1]:
            return Conflict.FORECAST_EXCLUDES
    return None


def falls_beyond(curve: Curve, tokens: float) -> bool:
    """Whether the loss falls significantly from the first checkpoint beyond D = `tokens` to a later one.

    A loss that turns at D cannot.  It may well be lower at the first checkpoint beyond D than at the last before.  The
    error is that of the paired difference over evaluation windows and draws of the calibration windows, with the
    scatter of checkpoints where there are enough of them; where neither windows nor scatter are known no fall is
    significant.
    """
    known = np.isfinite(curve.loss)
    order = np.flatnonzero(known)[np.argsort(curve.tokens[known], kind="stable")]
    D, loss = np.asarray(curve.tokens, float)[order], np.asarray(curve.loss, float)[order]
    split = int(np.searchsorted(D, tokens, side="right"))
    if split >= len(D) - 1:
        return False
    before, after = split, split + int(np.argmin(loss[split:]))
    scatter = checkpoint_scatter(*_one_each(D, loss))
    variances, degrees = ([2 * scatter**2], [len(np.unique(D)) - 3]) if math.isfinite(scatter) else ([], [])
    if curve.windows is not None and curve.windows.shape[1] > 1:
        design = curve.design or independent(curve.windows.shape[1])
        difference = curve.windows[order[before]] - curve.windows[order[after]]
        variances.append(standard_error(difference, design) ** 2)
        degrees.append(design.freedom)
    if not variances:
        return False
    error = math.sqrt(math.fsum(variances))
    if curve.calibration_se is not None:
        error = math.hypot(error, *curve.calibration_se[order[[before, after]]])
    return bool(loss[before] - loss[after] > errors_needed(freedom(variances, degrees)) * error)


def _one_each(tokens: np.ndarray, loss: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    found, first = np.unique(tokens, return_index=True)
    return np.log(found), loss[first]


def _share(rise: float, full_rise: float, full_rises: bool) -> Share | None:
    if full_rise > MAIN_SHARE * rise or full_rises:
        return Share.MAIN
    return Share.PART if full_rise > PART_SHARE * rise else None
