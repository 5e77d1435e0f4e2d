"""Where a loss curve turns upward, as observed: no law is assumed.

The lowest checkpoint of a noisy curve is nearly always somewhere inside the range, also when nothing turns.
A minimum therefore counts as interior only if it is neither the first nor the last checkpoint and the loss rises
significantly after it, beyond two kinds of error.

* evaluation: the variance of the rise over evaluation windows, paired between checkpoints, and over draws of the
  calibration windows where several were made, or from the errors of the checkpoints where no windows are known.  Where
  neither is, nothing is claimed;
* training: checkpoints scatter about a smooth curve by more than the windows can tell (`significance`).  With fewer
  than `MIN_TO_TEST` checkpoints that scatter is unknown, and nothing is claimed.

A curve that is not called interior may still turn: `detectable_rise` says which rise would have been seen.

The interval of the place comes from drawing windows and scatter anew, with the same scatter as the test.  A curve that
has its lowest checkpoint somewhere turns anywhere between the two neighbours of that checkpoint, because nothing was
measured between them; so a draw counts as the neighbour before its lowest for the lower end and as the one after for
the upper end.  (The vertex of a parabola, which serves as the value, is on the wrong side where a loss has become flat
and then rises abruptly.)  The interval is open on the right where the rise is not significant.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, TypeVar

import numpy as np
from scipy import stats

from ptq_eval.laws.base import Estimate
from ptq_eval.laws.fit.bootstrap import window_noise
from ptq_eval.laws.quality import finite_or_none
from ptq_eval.laws.turning import significance
from ptq_eval.laws.turning.significance import MIN_TO_TEST, POWER, SIGNIFICANCE
from ptq_eval.sampling import Design, standard_error

MIN_FOR_SCATTER = 4
MIN_FOR_MEDIAN = 6


class Untested(StrEnum):
    """Why a line was not tested for a turn."""

    FEW_CHECKPOINTS = "few_checkpoints"
    NO_ERRORS = "no_errors"


Line = TypeVar("Line", bound=Hashable)
"""What names a line: a run, a quantizer and a bit-width, in whatever form."""


@dataclass(frozen=True)
class TurningPoint:
    """The observed minimum of a loss curve over D.

    `tokens` is the D of the lowest checkpoint; `place` the vertex of the parabola in log D through it and its
    neighbours, with its interval; `interior` whether the lowest is neither the first nor the last and the rise is
    significant; `rise` the loss at the last checkpoint minus the lowest, with its standard error (NaN where no windows
    are known or too few checkpoints), in nats per token; `evaluation_se` the part of that error that the windows
    explain, with its degrees of freedom `evaluation_df`; `n_checkpoints` how many losses were known.  `p_value` is that
    of "the loss never rises", `adjusted_p` the same after control over many lines (see `controlled`); NaN where
    `untested` says why.  `detectable_rise`, in
    nats per token, is the rise that would have been significant, alone, with probability 0.8; infinite where none is.
    """

    tokens: float
    place: Estimate
    interior: bool
    rise: float
    rise_se: float
    evaluation_se: float = math.nan
    n_checkpoints: int = 0
    p_value: float = math.nan
    adjusted_p: float = math.nan
    detectable_rise: float = math.nan
    untested: Untested | None = None
    evaluation_df: float = math.nan

    def test_to_dict(self) -> dict[str, Any]:
        """What the test found, as the fields of a JSON object."""
        return {
            "p_value": finite_or_none(self.p_value),
            "adjusted_p": finite_or_none(self.adjusted_p),
            "detectable_rise": finite_or_none(self.detectable_rise),
            "untested": self.untested.value if self.untested else None,
        }


def turning_point(
    tokens: np.ndarray,
    loss: np.ndarray,
    windows: np.ndarray | None,
    design: Design | None = None,
    calibration_se: np.ndarray | None = None,
    *,
    errors: np.ndarray | None = None,
    seed: int = 0,
    n_boot: int = 200,
    level: float = 0.9,
) -> TurningPoint:
    """The minimum of `loss` [n] (nats per token) over `tokens` [n], with `windows` [n, n_windows] where known, drawn by
    `design` (None: as if independently) and `calibration_se` [n], the errors that the draw of calibration windows adds
    (None: not known); or else the standard errors [n] of the losses.

    Losses that are not finite are excluded; if none remains, everything is NaN.  Alone, a line's adjusted p-value is
    its p-value.
    """
    known = np.flatnonzero(np.isfinite(loss))
    if not len(known):
        return TurningPoint(math.nan, Estimate(math.nan), False, math.nan, math.nan)
    tokens, first = np.unique(np.asarray(tokens, float)[known], return_index=True)
    rows = known[first]
    loss, x = np.asarray(loss, float)[rows], np.log(tokens)
    noise = _Evaluation(
        windows[rows] if windows is not None and windows.shape[1] > 1 else None,
        None if errors is None else np.asarray(errors, float)[rows],
        design,
        None if calibration_se is None else calibration_se[rows],
    )
    i, last = int(np.argmin(loss)), len(loss) - 1
    scatter = significance.scatter(loss) if len(loss) >= MIN_TO_TEST else checkpoint_scatter(x, loss)
    pair = np.zeros(len(loss))
    pair[last] += 1
    pair[i] -= 1
    evaluation_se = math.sqrt(noise.variance(pair))
    tested = rise_test(loss, evaluation_se)
    interior = bool(0 < i < last and tested.get("p_value", math.nan) <= SIGNIFICANCE)
    drawn = significance.autocorrelated(np.random.default_rng([seed, 1]), n_boot, len(loss))
    begin, end = _extremes(loss + np.nan_to_num(scatter) * drawn + noise.draws(n_boot, seed), i, level)
    low = float(tokens[max(begin - 1, 0)]) if i else 0.0
    high = float(tokens[min(end + 1, last)]) if interior else math.inf
    value = float(np.exp(vertices(x, loss[None])[0])) if 0 < i < last else float(tokens[i])
    return TurningPoint(
        tokens=float(tokens[i]),
        place=Estimate(value, min(float(low), value), max(float(high), value)),
        interior=interior,
        rise=float(loss[last] - loss[i]),
        rise_se=math.hypot(evaluation_se, math.sqrt(2) * scatter),
        evaluation_se=evaluation_se,
        evaluation_df=noise.freedom,
        n_checkpoints=len(loss),
        **tested,
    )


def _extremes(curves: np.ndarray, lowest: int, level: float) -> tuple[int, int]:
    """Between which checkpoints the lowest of curves [replicates, n] is, with probability `level`; `lowest`, which is
    that of the measurement, included."""
    if not len(curves):
        return lowest, lowest
    tail, places = (1 - level) / 2, np.argmin(curves, axis=1)
    first = np.quantile(places, tail, method="lower")
    final = np.quantile(places, 1 - tail, method="higher")
    return min(int(first), lowest), max(int(final), lowest)


@dataclass(frozen=True)
class _Evaluation:
    """What is known of the evaluation error of losses: windows [n, n_windows], with what the draw of calibration
    windows adds [n], or standard errors [n] of both, or neither."""

    windows: np.ndarray | None
    errors: np.ndarray | None
    design: Design | None = None
    calibration: np.ndarray | None = None

    @property
    def freedom(self) -> float:
        """Degrees of freedom of a variance; NaN where windows are not known."""
        if self.windows is None:
            return math.nan
        return self.design.freedom if self.design is not None else self.windows.shape[1] - 1

    def variance(self, weights: np.ndarray) -> float:
        """That of the sum of the losses times `weights` [n]; NaN if nothing is known."""
        if self.windows is not None:
            drawn = 0.0 if self.calibration is None else float(np.sum(np.square(weights * self.calibration)))
            return standard_error(weights @ self.windows, self.design) ** 2 + drawn
        return math.nan if self.errors is None else float(np.sum(np.square(weights * self.errors)))

    def draws(self, n_boot: int, seed: int) -> np.ndarray | float:
        """Changes of the losses [n_boot, n] when the evaluation is drawn anew; 0 if nothing is known."""
        own = self.errors if self.windows is None else self.calibration
        normal = 0.0 if own is None else own * np.random.default_rng([seed, 0]).standard_normal((n_boot, len(own)))
        return normal if self.windows is None else normal + window_noise(self.windows, n_boot, seed, self.design)


def rise_test(loss: np.ndarray, evaluation_se: float, *, replicates: int = significance.REPLICATES) -> dict[str, Any]:
    """The fields of a `TurningPoint` that the test gives; evaluation_se: of the rise, NaN if nothing is known.

    Evaluation errors that change smoothly from one checkpoint to the next raise the loss without any scatter, so the
    rise must also exceed its whole standard error.
    """
    if len(loss) < MIN_TO_TEST:
        return {"untested": Untested.FEW_CHECKPOINTS}
    if math.isnan(evaluation_se):
        return {"untested": Untested.NO_ERRORS}
    rise = float(loss[-1] - loss.min())
    scatter = significance.scatter(loss)
    error = max(math.hypot(evaluation_se, math.sqrt(2) * scatter), np.finfo(float).tiny)
    p = max(significance.p_value(loss, replicates=replicates), float(stats.norm.sf(rise / error)))
    windows = evaluation_se * float(stats.norm.isf(SIGNIFICANCE) + stats.norm.isf(1 - POWER))
    detectable = math.hypot(significance.detectable(len(loss)) * scatter, windows)
    return {"p_value": p, "adjusted_p": p, "detectable_rise": detectable}


def controlled(
    points: Mapping[Line, TurningPoint], places: Mapping[Line, tuple[Hashable, float]]
) -> dict[Line, TurningPoint]:
    """The turning points of a report with control over all of them: what is no longer significant is not interior.

    places: by the same names, the run with its quantizer, and the bit-width.
    """
    found = significance.adjusted({name: (*places[name], point.p_value) for name, point in points.items()})
    return {name: _adjusted(point, found[name]) for name, point in points.items()}


def _adjusted(point: TurningPoint, p: float) -> TurningPoint:
    interior = point.interior and p <= SIGNIFICANCE
    place = point.place if interior else replace(point.place, high=math.inf)
    return replace(point, adjusted_p=p, interior=interior, place=place)


def vertices(x: np.ndarray, curves: np.ndarray) -> np.ndarray:
    """For each curve [replicates, n] over x [n]: the vertex of the parabola around its lowest point, in x.

    Where the lowest point is the first or the last, that point.
    """
    lowest = np.argmin(curves, axis=1)
    if len(x) < 3:
        return x[lowest]
    middle = np.clip(lowest, 1, len(x) - 2)
    rows = np.arange(len(curves))
    left, right = x[middle - 1] - x[middle], x[middle + 1] - x[middle]
    fall, climb = (curves[rows, middle + s] - curves[rows, middle] for s in (-1, 1))
    curvature = fall * right - climb * left
    shift = 0.5 * (fall * right**2 - climb * left**2) / np.where(curvature > 0, curvature, np.inf)
    return np.where(lowest == middle, x[middle] + np.clip(shift, left, right), x[lowest])


def checkpoint_scatter(x: np.ndarray, loss: np.ndarray) -> float:
    """Standard deviation of checkpoints about a smooth curve, from normalised third differences over x [n].

    These vanish for any parabola (in the manner of Gasser, Sroka and Jennen-Steinmetz 1986), and their median counts;
    NaN where there are none.
    """
    if len(x) < MIN_FOR_SCATTER:
        return math.nan
    differences = []
    for start in range(len(x) - 3):
        nodes = x[start : start + 4]
        gaps = nodes[:, None] - nodes[None, :] + np.eye(4)
        weights = 1 / np.prod(gaps, axis=1)
        differences.append(weights @ loss[start : start + 4] / np.linalg.norm(weights))
    if len(x) < MIN_FOR_MEDIAN:
        return float(np.sqrt(np.mean(np.square(differences))))
    return float(np.median(np.abs(differences)) / 0.6745)
