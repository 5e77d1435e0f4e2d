"""Two questions that a fit alone does not answer: is it tokens or the learning rate, and are two constants equal?

Both are nested: a larger law contains the smaller one at a known value of a constant.  Nothing is then said on the
strength of one number.  A constant counts as needed where its interval, which knows that checkpoints and runs belong
belong together, excludes that value *and* the AICc, which pays for the constant, falls by more than 2.  Whether it
also matters is another question: precise data show effects of any size.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ptq_eval.laws import _texts
from ptq_eval.laws.base import Data, Estimate, FitResult, Law, finite_or_none, n_distinct
from ptq_eval.laws.compare.candidate import undetermined, weights
from ptq_eval.laws.compare.ranking import AICC_ALIKE, compare
from ptq_eval.laws.compare.verdicts import equality_verdict, phase_verdict
from ptq_eval.laws.fit import bootstrap
from ptq_eval.laws.fit.fit import fit
from ptq_eval.laws.formulas.phase import laws_of_phase

_NO_RATES = (
    "not tested: no learning rates (of two or more checkpoints of a run) or phases are in the records, so growth with "
    "tokens and the schedule's phase cannot be told apart"
)
_ONE_PHASE = (
    "every checkpoint is at the same phase of its schedule: the phase explains no change of degradation here, and what "
    "grows with tokens is not the learning rate's doing"
)


def phase_against_tokens(data: Data, **options: Any) -> dict[str, Any]:
    """Whether delta follows tokens, the phase S of the schedule, or both; JSON-ready, the answer under "verdict".

    data: as for the laws of delta, with "S" (`ptq_eval.laws.tables.schedule.phase_of`).  `options` go to the fitter.
    """
    s = np.asarray(data.get("S", np.empty(0)), float)
    known = np.isfinite(s)
    if not known.any():
        return {"tested": False, "verdict": _NO_RATES}
    data = {name: np.asarray(column)[known] for name, column in data.items()}
    if n_distinct(data["S"]) < 2:
        return {"tested": False, "verdict": _ONE_PHASE}
    candidates = laws_of_phase()
    comparison = compare(candidates, data, **{**options, "intervals": "none"})
    aicc = {entry.name: entry.aicc for entry in comparison.entries}
    if len(aicc) < len(candidates):
        why = "; ".join(f"{name}: {reason}" for name, reason in comparison.set_aside.items())
        return {"tested": False, "verdict": f"not tested: {why}", "comparison": comparison.to_dict()}
    both = candidates["tokens and phase"]
    joint = fit(both, data, fixed=undetermined(both, data) or None, **options)
    adding = {
        "tokens": _adding(joint, "gamma_D", aicc["phase"] - aicc["tokens and phase"], np.log(data["D"])),
        "phase": _adding(joint, "gamma_S", aicc["tokens"] - aicc["tokens and phase"], data["S"]),
    }
    found = {
        "tested": True,
        "adding": adding,
        "correlation": float(np.corrcoef(np.log(data["D"]), data["S"])[0, 1]),
        "left_out_points": int(np.sum(~known)),
        "comparison": comparison.to_dict(),
    }
    return {**found, "verdict": phase_verdict(found)}


def _adding(joint: FitResult, constant: str, aicc: float, x: np.ndarray) -> dict[str, Any]:
    """What a constant of the joint law is worth: the AICc that it saves, its interval, and whether both say so.

    "change" is by what share delta changes with the constant over the whole range of x [n], which it multiplies in the
    exponent.
    """
    estimate = joint.estimates[constant]
    adds = excludes(estimate, 0.0) and aicc > AICC_ALIKE
    change = math.expm1(min(abs(estimate.value) * float(np.ptp(x)), 700.0))
    return {"constant": constant, "aicc": finite_or_none(aicc), **estimate.to_dict(), "adds": adds, "change": change}


def equality(law: Law, data: Data, a: str, b: str, **options: Any) -> dict[str, Any]:
    """Whether constants `a` and `b` of `law` may be equal; JSON-ready, the answer under "verdict".

    The interval of a − b comes from the bootstrap of the law with both free, the two AICc from fits under the same
    weights.  `options` go to the fitter.  Raises
    OptionError for a constant that the law lacks.
    """
    free = fit(law, data, **options)
    sigma = weights(law, free, data) if free.identified and math.isfinite(free.scatter) else None
    judged = {**options, "n_boot": 0, "sigma": sigma}
    equal, unequal = fit(law, data, tied=[(a, b)], **judged), fit(law, data, **judged)
    if not (free.identified and equal.identified and unequal.identified):
        bad = next(result for result in (free, unequal, equal) if not result.identified)
        return {"a": a, "b": b, "tested": False, "verdict": f"not tested whether {a} = {b}: {_texts.message(bad)}"}
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
        "interval": _texts.coverage(free),
    }
    known = math.isfinite(unequal.aicc) and math.isfinite(equal.aicc) and all(map(math.isfinite, ends))
    return {**found, "verdict": equality_verdict(found) if known else f"not tested whether {a} = {b}: too few points"}


def excludes(estimate: Estimate, value: float) -> bool:
    """Whether an estimate's interval is known and does not contain `value`."""
    return estimate.low > value or estimate.high < value
