"""Every law on the same points, scored by what it says of points that were held out.

Three questions, each an answer of its own: the largest D of each run ("last"), the largest N, and each bit-width in
turn.  A law may answer one and be unable to answer another, so there is no rank over all of them.

The score of a law is the root mean square of log f − log y over the held-out points whose response exceeds its noise
(`sampling.errors_needed` standard errors), since the logarithm of noise says nothing; all laws are scored on the same
points.  A prediction further than a factor of `MAX_FACTOR` from the response counts as that far.  Where the fit has a
scatter, the prediction is a distribution: log y is normal about log f, with that scatter and the point's own error;
its mean continuous ranked probability score (Gneiting and Raftery 2007) rewards a law that knows how sure it is.  The
uncertainty of constants is not part of that distribution.

Errors are over runs: points of a run share its seed, so squared errors are summed by run.  With fewer than three runs
among the held-out points a score has no error.  Squared errors of two laws are compared on the same points in the same
way, by Student's t; p-values are adjusted by Holm's procedure over all pairs of laws under one question, because
the best law is the one that happened to be first.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import combinations
from typing import Any

import numpy as np
from scipy import stats

from ptq_eval.laws.base import Data, Law, n_distinct
from ptq_eval.laws.compare.candidate import undetermined
from ptq_eval.laws.compare.crossval import held_out_rows
from ptq_eval.laws.compare.predictors import Prediction, Predictor, by_law, power_per_bits, staying, unseen
from ptq_eval.laws.compare.ranking import Excluded, Exclusion, clustered_error, common_points
from ptq_eval.laws.findings import Finding
from ptq_eval.laws.fit.bootstrap import MIN_RUNS
from ptq_eval.laws.fit.requirements import standard_errors
from ptq_eval.laws.quality import finite_or_none
from ptq_eval.laws.turning.significance import SIGNIFICANCE
from ptq_eval.results.over_rounding import holm
from ptq_eval.sampling import errors_needed

QUESTIONS = ("last", "N", "P")
"""What is held out: see `crossval.held_out_rows`."""
MAX_FACTOR = 100.0
"""A prediction is at most this factor off."""
STAYING, POWER = "staying", "power_per_bits"
BASELINES = (STAYING, POWER)


class Place(StrEnum):
    """How a law compares with the best one under one question."""

    BEST = "best"
    ALIKE = "not_different"
    WORSE = "worse"
    UNKNOWN = "no_error"  # too few runs for an error


@dataclass(frozen=True)
class Score:
    """One law under one question.  `score` and `crps` are in units of log response, `error` is the standard error of
    the score; `difference` is that of mean squared errors from the best law's, with its standard error and adjusted p.
    NaN where unknown; `beyond` counts predictions further off than `MAX_FACTOR`."""

    law: str
    score: float
    error: float
    crps: float
    beyond: int
    difference: float
    difference_error: float
    p: float
    place: Place

    def to_dict(self) -> dict[str, Any]:
        """A JSON object; what is not finite becomes None."""
        numbers = ("score", "error", "crps", "difference", "difference_error", "p")
        return {
            "law": self.law,
            **{name: finite_or_none(getattr(self, name)) for name in numbers},
            "beyond": self.beyond,
            "place": self.place.value,
        }


@dataclass(frozen=True)
class Question:
    """What was held out, the scores, the best first, and what cannot be answered: by one law, or (`reason`) by any."""

    held_out: str
    scores: tuple[Score, ...] = ()
    not_identified: Mapping[str, Finding] = field(default_factory=dict)
    n_points: int = 0
    n_unclear: int = 0
    n_runs: int = 0
    reason: Finding | None = None

    def to_dict(self) -> dict[str, Any]:
        """A JSON object."""
        return {
            "held_out": self.held_out,
            "n_points": self.n_points,
            "n_unclear": self.n_unclear,
            "n_runs": self.n_runs,
            "reason": self.reason.to_dict() if self.reason else None,
            "scores": [score.to_dict() for score in self.scores],
            "not_identified": {law: reason.to_dict() for law, reason in self.not_identified.items()},
        }


@dataclass(frozen=True)
class Contest:
    """All questions on the same points; `held`: the constants fixed for a law because their variable has one value."""

    response: str
    questions: tuple[Question, ...]
    excluded: Excluded
    held: Mapping[str, Mapping[str, float]]
    n_points: int
    n_runs: int
    distinct: Mapping[str, int]

    def to_dict(self) -> dict[str, Any]:
        """A JSON object."""
        return {
            "response": self.response,
            "n_points": self.n_points,
            "n_runs": self.n_runs,
            "distinct": dict(self.distinct),
            "held": {law: dict(given) for law, given in self.held.items()},
            "excluded": {law: dict(reason) for law, reason in self.excluded.items()},
            "questions": [question.to_dict() for question in self.questions],
        }


def contest(laws: Mapping[str, Law], data: Data, *, seed: int = 0) -> Contest:
    """Score `laws`, of one response, and the baselines on the points that all of them can read.

    A law that lacks a variable, or that all points together cannot identify, is excluded with the reason.
    """
    response = next(iter(laws.values())).response
    points, excluded = common_points(laws, data, response)
    points["se"] = standard_errors(points.get("se", np.zeros(len(points[response]))))
    excluded, held, predictors = dict(excluded), {}, dict[str, Predictor]()
    for name, law in laws.items():
        if name in excluded:
            continue
        given = undetermined(law, points)
        if reason := unseen(law, points, given):
            excluded[name] = {"kind": Exclusion.NOT_FITTED.value, "reason": reason.to_dict()}
            continue
        predictors[name] = by_law(law, given, seed)
        held |= {name: given} if given else {}
    predictors[STAYING] = staying(response)
    if response == "delta" and "P" in points:
        predictors[POWER] = power_per_bits(points, seed)
    return Contest(
        response=response,
        questions=tuple(_question(name, predictors, points, response) for name in QUESTIONS),
        excluded=excluded,
        held=held,
        n_points=len(points[response]),
        n_runs=len({*points["run"].tolist()}),
        distinct={x: n_distinct(points[x]) for x in ("N", "D", "P") if x in points},
    )


def _question(held_out: str, predictors: Mapping[str, Predictor], data: Data, response: str) -> Question:
    parts = held_out_rows(data, held_out, np.ones(len(data[response]), bool))
    if isinstance(parts, Finding):
        return Question(held_out, reason=parts)
    y, se = np.asarray(data[response], float), np.asarray(data["se"], float)
    clear = (y > 0) & (np.abs(y) > errors_needed(data.get("df", np.full(len(y), np.nan))) * se)
    rows = np.concatenate([part[clear[part]] for part in parts])
    found: dict[str, Prediction] = {}
    unknown: dict[str, Finding] = {}
    for name, predict in predictors.items():
        answer = _predicted(predict, data, parts, clear)
        if isinstance(answer, Finding):
            unknown[name] = answer
        else:
            found[name] = answer
    runs = data["run"][rows].tolist()
    scores = _scores(found, y[rows], se[rows], runs) if len(rows) else ()
    held = sum(map(len, parts))
    return Question(held_out, scores, unknown, len(rows), held - len(rows), len(set(runs)))


def _predicted(predict: Predictor, data: Data, parts: list[np.ndarray], clear: np.ndarray) -> Prediction | Finding:
    """The predictions of all parts, one after another, at their clear points; the first reason why there is none."""
    found = []
    for part in parts:
        places = part[clear[part]]
        if not len(places):
            continue
        kept = np.setdiff1d(np.arange(len(clear)), part)
        answer = predict(*({name: np.asarray(v)[at] for name, v in data.items()} for at in (kept, places)))
        if isinstance(answer, Finding):
            return answer
        found.append(answer)
    return Prediction(*(np.concatenate([getattr(a, x) for a in found] or [np.empty(0)]) for x in ("value", "scatter")))


def _scores(found: Mapping[str, Prediction], y: np.ndarray, se: np.ndarray, runs: list[Any]) -> tuple[Score, ...]:
    """The scores of the predictions of the responses y [m], the best first."""
    errors = {name: log_error(one.value, y) for name, one in found.items()}
    order = sorted(errors, key=lambda name: round(float(np.mean(errors[name] ** 2)), 12))
    clusters, share = len(set(runs)), np.full(len(y), 1 / max(len(y), 1))

    def mean(values: np.ndarray) -> tuple[float, float]:
        error = clustered_error(values * share, share, runs) if clusters >= MIN_RUNS else math.nan
        return float(values @ share), error

    pairs = list(combinations(order, 2))
    differences = {(a, b): mean(errors[b] ** 2 - errors[a] ** 2) for a, b in pairs}
    adjusted = dict(zip(pairs, holm(np.array([p_value(*differences[pair], clusters) for pair in pairs]))))
    scores = []
    for name in order:
        square, error = mean(errors[name] ** 2)
        difference = (0.0, 0.0) if name == order[0] else differences[order[0], name]
        p = math.nan if name == order[0] else float(adjusted[order[0], name])
        scores.append(
            Score(
                law=name,
                score=math.sqrt(square),
                error=error / (2 * math.sqrt(square)) if square > 0 else error,
                crps=_crps(found[name], y, se),
                beyond=int(np.sum(np.abs(errors[name]) >= math.log(MAX_FACTOR))),
                difference=difference[0],
                difference_error=difference[1],
                p=p,
                place=Place.BEST if name == order[0] and clusters >= MIN_RUNS else _place(p),
            )
        )
    return tuple(scores)


def _place(p: float) -> Place:
    if math.isnan(p):
        return Place.UNKNOWN
    return Place.WORSE if p < SIGNIFICANCE else Place.ALIKE


def log_error(f: np.ndarray, y: np.ndarray) -> np.ndarray:
    """log f − log y [m] for positive y, its size at most that of log `MAX_FACTOR`, as for an f that is not positive."""
    most = math.log(MAX_FACTOR)
    with np.errstate(divide="ignore", invalid="ignore"):
        found = np.log(f) - np.log(y)
    return np.where(np.isfinite(found), np.clip(found, -most, most), np.where(np.isposinf(f), most, -most))


def p_value(difference: float, error: float, clusters: int) -> float:
    """Two-sided, by Student's t with one degree of freedom less than there are clusters; NaN without an error."""
    if math.isnan(error) or clusters < 2:
        return math.nan
    if error == 0:
        return 1.0 if difference == 0 else 0.0
    return float(2 * stats.t.sf(abs(difference / error), clusters - 1))


def _crps(one: Prediction, y: np.ndarray, se: np.ndarray) -> float:
    """The mean score of log y under a normal distribution about log f; NaN without a scatter."""
    with np.errstate(divide="ignore", invalid="ignore"):
        noise = np.minimum(se / np.maximum(np.abs(one.value), 1e-300), math.log(MAX_FACTOR))
    return float(np.mean(crps(log_error(one.value, y), np.hypot(one.scatter, noise)))) if len(y) else math.nan


def crps(gap: np.ndarray, sigma: np.ndarray) -> np.ndarray:
    """The continuous ranked probability score [m] of a normal distribution `gap` away from what happened; Gneiting and
    Raftery 2007, eq. 21.  The size of the gap where sigma is zero."""
    z = np.divide(gap, sigma, out=np.zeros_like(gap), where=sigma > 0)
    normal = sigma * (z * (2 * stats.norm.cdf(z) - 1) + 2 * stats.norm.pdf(z) - 1 / math.sqrt(math.pi))
    return np.where(sigma > 0, normal, np.where(np.isnan(sigma), np.nan, np.abs(gap)))
