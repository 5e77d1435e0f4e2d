"""Two questions that a fit alone does not answer: is it tokens or the learning rate, and are two constants equal?

Both are nested: a larger law contains the smaller one at a known value of a constant.  No answer rests on one number.
A constant counts as needed if its interval, which respects that points of a checkpoint or run are not independent,
excludes that value *and* the AICc, which penalises the constant, falls by more than 2.  For that, the interval is as
long as 5 % for all questions of a kind that are read together takes (Bonferroni).  Whether it also matters is
another question: precise data show effects of any size.
"""

from __future__ import annotations

import math
from enum import StrEnum
from typing import Any

import numpy as np
from scipy import stats

from ptq_eval.laws.base import Data, Estimate, FitResult, Law, n_distinct
from ptq_eval.laws.compare.candidate import undetermined, weights
from ptq_eval.laws.compare.ranking import AICC_ALIKE, compare, errors_for_all
from ptq_eval.laws.fit import bootstrap
from ptq_eval.laws.fit.fit import fit
from ptq_eval.laws.formulas.phase import laws_of_phase
from ptq_eval.laws.quality import finite_or_none

NEGLIGIBLE = 0.05
"""An effect that changes delta by less than this share over all records does not explain it."""


class Untested(StrEnum):
    """Why tokens and phase were not tested."""

    NO_RATES = "no_rates"
    ONE_PHASE = "one_phase"
    NOT_FITTED = "not_fitted"


class Equality(StrEnum):
    """Whether two constants may be equal."""

    DIFFERENT = "different"
    COMPATIBLE = "compatible"
    UNDECIDED = "undecided"
    TOO_FEW_POINTS = "too_few_points"


def phase_against_tokens(data: Data, *, groups: int = 1, **options: Any) -> dict[str, Any]:
    """Whether delta follows tokens, the phase S of the schedule, or both; JSON-ready.

    data: as for the laws of delta, with "S" (`ptq_eval.laws.tables.schedule.phase_of`).  groups: how
    many such answers are read together.  `options` go to the fitter.
    """
    s = np.asarray(data.get("S", np.empty(0)), float)
    known = np.isfinite(s)
    if not known.any():
        return {"tested": False, "reason": Untested.NO_RATES.value}
    data = {name: np.asarray(column)[known] for name, column in data.items()}
    if n_distinct(data["S"]) < 2:
        return {"tested": False, "reason": Untested.ONE_PHASE.value}
    candidates = laws_of_phase()
    plain: dict[str, Any] = {**options, "intervals": "none"}
    comparison = compare(candidates, data, **plain)
    aicc = {entry.name: entry.aicc for entry in comparison.entries}
    if len(aicc) < len(candidates):
        return {"tested": False, "reason": Untested.NOT_FITTED.value, "comparison": comparison.to_dict()}
    both = candidates["tokens and phase"]
    joint = fit(both, data, fixed=undetermined(both, data) or None, **options)
    adding = {
        "tokens": _adding(joint, "gamma_D", aicc["phase"] - aicc["tokens and phase"], np.log(data["D"]), 2 * groups),
        "phase": _adding(joint, "gamma_S", aicc["tokens"] - aicc["tokens and phase"], data["S"], 2 * groups),
    }
    return {
        "tested": True,
        "adding": adding,
        "correlation": float(np.corrcoef(np.log(data["D"]), data["S"])[0, 1]),
        "left_out_points": int(np.sum(~known)),
        "comparison": comparison.to_dict(),
    }


def _adding(joint: FitResult, constant: str, aicc: float, x: np.ndarray, claims: int) -> dict[str, Any]:
    """The AICc that a constant of the joint law saves, its interval, and whether both show that it "adds".

    "change" is the share by which delta changes with the constant over the whole range of x [n], which it multiplies in
    the exponent; an effect that adds "matters" if the change is not negligible.
    """
    estimate = joint.estimates[constant]
    adds = excludes(estimate, 0.0, _wider(joint, claims)) and aicc > AICC_ALIKE
    change = math.expm1(min(abs(estimate.value) * float(np.ptp(x)), 700.0))
    known = {"constant": constant, "aicc": finite_or_none(aicc), **estimate.to_dict()}
    return {**known, "adds": adds, "change": change, "matters": adds and change >= NEGLIGIBLE}


def equality(law: Law, data: Data, a: str, b: str, *, questions: int = 1, **options: Any) -> dict[str, Any]:
    """Whether constants `a` and `b` of `law` may be equal, one of `questions` that are read together; JSON-ready.

    The interval of a − b comes from the bootstrap of the law with both free, the two AICc from fits under the same
    weights.  A constant without an interval (`few_sizes`) is not tested.  `options` go to the fitter.  Raises
    OptionError for a constant that the law lacks.
    """
    free = fit(law, data, **options)
    for name in (a, b):
        if reason := free.no_interval.get(name):
            return {"a": a, "b": b, "tested": False, "reason": reason.to_dict()}
    sigma = weights(law, free, data) if free.identified and math.isfinite(free.tau) else None
    judged: dict[str, Any] = {**options, "n_boot": 0, "sigma": sigma}
    equal, unequal = fit(law, data, tied=[(a, b)], **judged), fit(law, data, **judged)
    if not (free.identified and equal.identified and unequal.identified):
        bad = next(result for result in (free, unequal, equal) if not result.identified)
        return {"a": a, "b": b, "tested": False, "reason": bad.status.to_dict()["reason"]}
    names = list(free.estimates)
    draws = free.replicates[:, names.index(a)] - free.replicates[:, names.index(b)]
    value = free.values[a] - free.values[b]
    ends = bootstrap.interval(value, draws, factor=free.stretch, level=free.level, log=False)
    difference = Estimate(value, *ends)
    found = {
        "a": a,
        "b": b,
        "tested": True,
        "law": law.name,
        "level": free.level,
        "difference": difference.to_dict(),
        "aicc_free": finite_or_none(unequal.aicc),
        "aicc_equal": finite_or_none(equal.aicc),
        "n_runs": free.n_runs,
        "covers": free.covers.to_dict(),
    }
    return {**found, "outcome": _equality(difference, equal.aicc - unequal.aicc, _wider(free, questions)).value}


def _equality(difference: Estimate, gain: float, wider: float) -> Equality:
    """The outcome for an interval of a − b, to be so much `wider`, and for the AICc that equality costs."""
    if not all(map(math.isfinite, (difference.low, difference.high, gain))):
        return Equality.TOO_FEW_POINTS
    outside, costly = excludes(difference, 0.0, wider), gain > AICC_ALIKE
    if outside != costly:
        return Equality.UNDECIDED
    return Equality.DIFFERENT if outside else Equality.COMPATIBLE


def _wider(result: FitResult, claims: int) -> float:
    """The length of an interval that holds at 95 % for all of `claims` together, in units of a fit's intervals."""
    df = result.covers.n_clusters - 1 if result.covers.n_clusters > 1 else math.inf
    return errors_for_all(claims, df) / float(stats.t.ppf((1 + result.level) / 2, df))


def excludes(estimate: Estimate, value: float, wider: float = 1.0) -> bool:
    """Whether an estimate's interval, made so much `wider`, is known and does not contain `value`."""
    low, high = (estimate.value + wider * (end - estimate.value) for end in (estimate.low, estimate.high))
    return low > value or high < value
