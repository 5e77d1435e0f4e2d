"""Which of several laws describes the same records best, and whether the difference is significant.

Two questions, two answers.  *Held-out error*: hold out the largest D, the largest N, each bit-width; fit the rest;
predict what was held out.  That is what a law is used for, so it decides the rank.  *AICc*: how well a law describes
the records themselves, for its number of constants.  A fit estimates its own weights, and a likelihood under weights
that were estimated by another criterion is no maximum; so for the AICc every law is fitted once more under the same
weights, those of the law that scatters least, with (|y| + |f|)/2 for f, so that a single unpredictable point cannot
dominate.

Every kind of held-out point counts the same; `candidate` defines the error of a point.

A law is significantly *worse* if its errors on the same held-out points, or its AICc, exceed the best law's by
more than chance would explain.  Points are not independent: bit-widths of a checkpoint share its weights, checkpoints
of a run its seed.  Both differences are therefore summed by run (by checkpoint, with fewer than three runs), and must
exceed their standard error over those sums by Student's t at 5 %, for both measures and all pairs of laws in all
rankings that are read together (Bonferroni): the best law is the one that happened to be first.  An AICc difference
must exceed 2 besides, the usual bound below which a model has "substantial support" (Burnham and Anderson 2002; the
error of a likelihood ratio is Vuong's, 1989), and a difference of held-out errors a twentieth of the error, for laws
that contain each other predict nearly the same, and the smallest difference can then be beyond chance.  If the two
measures disagree, the outcome is *contradictory*, and no law is the better one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np
from scipy import stats

from ptq_eval.errors import NothingToFitError
from ptq_eval.laws.base import Data, FitResult, Law, n_distinct
from ptq_eval.laws.compare.candidate import KINDS, Candidate, undetermined, weights
from ptq_eval.laws.fit import bootstrap
from ptq_eval.laws.fit.fit import fit
from ptq_eval.laws.fit.requirements import require
from ptq_eval.laws.fit.restrict import restrict
from ptq_eval.laws.quality import finite_or_none
from ptq_eval.laws.turning.significance import SIGNIFICANCE

AICC_ALIKE = 2.0
"""AICc that differ by no more than this support both laws."""
ERROR_ALIKE = 0.05
"""Held-out errors that differ by less than this share of the best one do not differ in practice."""


class Outcome(StrEnum):
    """How a law compares with the best one."""

    WORSE = "worse"
    INDISTINGUISHABLE = "indistinguishable"
    CONTRADICTORY = "contradictory"


class Exclusion(StrEnum):
    """Why a law is excluded from a comparison; behind each kind, its facts."""

    VARIABLE_UNKNOWN = "variable_unknown"  # variable, unknown, points
    ONE_PHASE = "one_phase"
    NOT_FITTED = "not_fitted"  # reason (see `laws.findings`)
    UNREADABLE = "unreadable"  # what, got: of the error with which its columns were refused


Excluded = Mapping[str, Mapping[str, Any]]
"""By the name of a law: the kind of its exclusion, and the facts."""


@dataclass(frozen=True)
class Difference:
    """By how much a law exceeds the best one in held-out error and in AICc, with standard errors."""

    error: float
    error_se: float
    aicc: float
    aicc_se: float
    t: float
    best_error: float

    @property
    def by_error(self) -> int:
        """1 if this law is significantly worse on held-out points, −1 if better, 0 otherwise."""
        return _sign(self.error, max(ERROR_ALIKE * self.best_error, self.t * self.error_se))

    @property
    def by_aicc(self) -> int:
        """The same for the AICc."""
        return _sign(self.aicc, max(AICC_ALIKE, self.t * self.aicc_se))

    @property
    def outcome(self) -> Outcome:
        """Worse by at least one of the two measures and better by none; contradictory if better by AICc."""
        if self.by_aicc < 0:
            return Outcome.CONTRADICTORY
        worse = max(self.by_error, self.by_aicc) > 0 and self.by_error >= 0
        return Outcome.WORSE if worse else Outcome.INDISTINGUISHABLE


@dataclass(frozen=True)
class Comparison:
    """Laws in order of rank, the best first, and those excluded; `kinds`: the variables held out."""

    entries: tuple[Candidate, ...]
    differences: tuple[Difference, ...]
    excluded: Excluded
    kinds: tuple[str, ...]
    n_points: int
    n_clusters: int
    clusters_are: str
    response: str

    def to_dict(self) -> dict[str, Any]:
        """A JSON object; what is not finite becomes None."""
        rows = [self._row(rank, *pair) for rank, pair in enumerate(zip(self.entries, self.differences), start=1)]
        return {
            "response": self.response,
            "n_points": self.n_points,
            "n_clusters": self.n_clusters,
            "clusters": self.clusters_are,
            "left_out": list(self.kinds),
            "laws": rows,
            "excluded": {name: dict(reason) for name, reason in self.excluded.items()},
        }

    def _row(self, rank: int, entry: Candidate, difference: Difference) -> dict[str, Any]:
        means = {kind: float(np.nanmean(entry.errors[kind])) for kind in self.kinds}
        best = min((e.aicc for e in self.entries if math.isfinite(e.aicc)), default=math.nan)
        return {
            "rank": rank,
            "name": entry.name,
            **entry.result.to_dict(),
            "aicc": finite_or_none(entry.aicc),
            "n_free": entry.n_free,
            "given": dict(entry.given),
            "held_out": {kind: finite_or_none(value) for kind, value in means.items()},
            "held_out_error": finite_or_none(entry.error(self.kinds)),
            "delta_aicc": finite_or_none(entry.aicc - best),
            "against_best": {
                **{k: finite_or_none(getattr(difference, k)) for k in ("error", "error_se", "aicc", "aicc_se")},
                "outcome": difference.outcome.value,
            },
            "ignored": list(entry.ignored),
        }


def compare(laws: Mapping[str, Law], data: Data, *, rankings: int = 1, **options: Any) -> Comparison:
    """Rank `laws` (by the names they are to be called) on the same points; one of `rankings` that are read together.

    All laws have one response.  `options` go to the fitter (`loss`, `huber_delta`, `seed`, `n_boot`, `intervals`).
    """
    response = next(iter(laws.values())).response
    data, excluded = common_points(laws, data, response)
    fits: dict[str, tuple[dict[str, float], FitResult]] = {}
    for name, law in laws.items():
        if name not in excluded:
            given = undetermined(law, data)
            result = fit(law, data, fixed=given or None, **options)
            if result.identified:
                fits[name] = given, result
            else:
                reason = result.status.to_dict()["reason"]
                excluded[name] = {"kind": Exclusion.NOT_FITTED.value, "reason": reason}
    sigma = _common_weights(laws, {name: result for name, (_, result) in fits.items()}, data)
    entries = [Candidate(name, laws[name], *found, data, sigma, options) for name, found in fits.items()]
    kinds = _on_common_points(entries)
    entries.sort(key=lambda e: (_worst(e.error(kinds)), _worst(e.aicc)))
    labels = bootstrap.clusters(data["run"].tolist(), data["checkpoint"].tolist())
    by_run = len(set(data["run"].tolist())) >= bootstrap.MIN_RUNS
    pairs = len(entries) * (len(entries) - 1) // 2
    t = errors_for_all(2 * pairs * rankings, len(set(labels)) - 1)
    return Comparison(
        entries=tuple(entries),
        differences=tuple(_difference(entries[0], entry, kinds, labels, t) for entry in entries),
        excluded=excluded,
        kinds=kinds,
        n_points=len(data[response]),
        n_clusters=len(set(labels)),
        clusters_are="runs" if by_run else "checkpoints",
        response=response,
    )


def require_one(comparisons: Iterable[Mapping[str, Any]], answers: Iterable[Mapping[str, Any]], failed: Any) -> None:
    """Refuse what ranks no law and answers no test: by the error that a fit of the first law alone ends with, else by
    NothingToFitError.  failed: laws, data and comparison of a group where no law could be fitted, or ()."""
    if not failed or any(one["laws"] for one in comparisons) or any(one["tested"] for one in answers):
        return
    laws, data, found = failed
    for law in laws.values():
        if {*law.columns} <= {*data}:
            scarce = len(data[law.response]) <= law.n_free
            require(law if scarce else restrict(law, undetermined(law, data)), data)
    reasons = "; ".join(f"{name}: {' '.join(map(str, reason.values()))}" for name, reason in found.excluded.items())
    raise NothingToFitError(
        "none of these laws can be fitted", got=reasons, remedy="bring data that one of them can use"
    )


def common_points(laws: Mapping[str, Law], data: Data, response: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The points that all laws can use, and the laws that are excluded because a variable is not known."""
    usual = np.isfinite(np.asarray(data[response], float))
    for name in ("N", "D"):
        usual &= np.isfinite(data[name]) & (data[name] > 0) if name in data else True
    excluded: dict[str, Any] = {}
    for name, law in laws.items():
        for column in law.columns:
            known = np.asarray(data.get(column, np.full(len(usual), np.nan)), float)
            known = np.isfinite(known) & (known >= 0 if column in law.from_zero else known > 0)
            if not known[usual].all():
                facts = {"variable": column, "unknown": int(np.sum(~known[usual])), "points": int(usual.sum())}
                excluded[name] = {"kind": Exclusion.VARIABLE_UNKNOWN.value, **facts}
            elif column == "S" and n_distinct(np.asarray(data["S"])[usual]) < 2:
                excluded[name] = {"kind": Exclusion.ONE_PHASE.value}
            if name in excluded:
                break
    return {name: np.asarray(column)[usual] for name, column in data.items()}, excluded


def _common_weights(laws: Mapping[str, Law], fits: Mapping[str, FitResult], data: Data) -> np.ndarray | None:
    """The weights of the law that scatters least; None where no scatter was estimated."""
    known = {name: result.tau for name, result in fits.items() if math.isfinite(result.tau)}
    least = min(known, key=lambda name: known[name]) if known else None
    return weights(laws[least], fits[least], data) if least else None


def _on_common_points(entries: list[Candidate]) -> tuple[str, ...]:
    """The kinds of held-out points that every law could predict; errors of other points become NaN."""
    kinds = []
    for kind in KINDS:
        known = np.all([np.isfinite(entry.errors[kind]) for entry in entries], axis=0) if entries else np.zeros(1, bool)
        for entry in entries:
            entry.errors[kind][~known] = math.nan
        if known.any():
            kinds.append(kind)
    return tuple(kinds)


def errors_for_all(claims: int, df: float) -> float:
    """Standard errors that none of so many values exceeds by chance, at 5 % (Student's t, Bonferroni)."""
    return float(stats.t.ppf(1 - SIGNIFICANCE / 2 / max(claims, 1), max(df, 1)))


def _difference(best: Candidate, other: Candidate, kinds: tuple[str, ...], labels: list[Any], t: float) -> Difference:
    """By how much `other` is worse than `best`, with standard errors over clusters; t: how many of them are needed."""
    n = len(labels)
    parts, share = np.zeros(n), np.zeros(n)
    for kind in kinds:
        difference = other.errors[kind] - best.errors[kind]
        known = np.isfinite(difference)
        weight = known / (len(kinds) * max(1, int(known.sum())))
        parts, share = parts + weight * np.nan_to_num(difference), share + weight
    likelihood = 2 * (best.log_density - other.log_density)
    return Difference(
        error=float(parts.sum()) if kinds else math.nan,
        error_se=clustered_error(parts, share, labels),
        aicc=other.aicc - best.aicc,
        aicc_se=clustered_error(likelihood, np.full(n, 1 / n), labels),
        t=t,
        best_error=best.error(kinds),
    )


def clustered_error(parts: np.ndarray, share: np.ndarray, labels: list[Any]) -> float:
    """The standard error of Σ parts [n], a mean with weights `share` [n], when points of one label belong together.

    That of a ratio of sums, linearised; NaN for a single label.
    """
    deviations: dict[Any, float] = {}
    total = float(parts.sum())
    for label, part, weight in zip(labels, parts, share):
        deviations[label] = deviations.get(label, 0.0) + float(part) - float(weight) * total
    n = len(deviations)
    return math.sqrt(n / (n - 1) * sum(value * value for value in deviations.values())) if n > 1 else math.nan


def _sign(value: float, bound: float) -> int:
    return int(np.sign(value)) if math.isfinite(bound) and abs(value) > bound else 0


def _worst(value: float) -> float:
    """For ranks: unknown is last, and what differs by rounding keeps the order in which the laws were named."""
    return round(value, 6) if math.isfinite(value) else math.inf
