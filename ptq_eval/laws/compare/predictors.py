"""What predicts points that were held out from points that were kept: every law, and two baselines without one.

A predictor is a function of the points to learn from and of the places to predict.  It returns a `Prediction`, or a
`Finding`: what the points that were kept cannot tell.  The rule is that of `fit.rank`: a constant is determined if
what it describes varies and no other constant can make up for it.

The baselines say what a law is worth: `staying` repeats the nearest response at the same bits (of the same run, if
that was kept), and `power_per_bits` is A·D^g/N^h with constants of its own at each bit-width.  Neither says anything of
a bit-width that it has not seen.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ptq_eval.laws.base import Data, Law, n_distinct
from ptq_eval.laws.compare.candidate import undetermined
from ptq_eval.laws.findings import Finding, Why, why
from ptq_eval.laws.fit import rank
from ptq_eval.laws.fit.fit import fit
from ptq_eval.laws.fit.requirements import constants_of
from ptq_eval.laws.fit.restrict import restrict
from ptq_eval.laws.formulas.kumar import KumarPTQ
from ptq_eval.results.points import SAME_SIZE

VARIABLES = ("N", "D", "P", "G", "S")
"""What a design can vary."""


@dataclass(frozen=True)
class Prediction:
    """Responses [m] at the places asked for, and the relative scatter [m] about them; NaN where none was estimated."""

    value: np.ndarray
    scatter: np.ndarray


Predictor = Callable[[Data, Data], Prediction | Finding]
"""predict(kept, places)."""


def unseen(law: Law, data: Data, given: Mapping[str, float]) -> Finding | None:
    """What these points cannot tell of `law` with the constants `given`: a variable with one value, or constants that
    can change together; None where nothing is known against them."""
    free = restrict(law, given) if given else law
    for name in (x for x in VARIABLES if x in law.columns):
        distinct = n_distinct(data[name])
        if distinct < 2 and any(constant not in given for constant in constants_of(law, name)):
            return why(Why.TOO_FEW_VALUES, variable=name, distinct=distinct, needed=max(2, law.needs.get(name, 2)))
    if reason := free.objection(data):
        return reason
    names = rank.undetermined(free, data)
    if not names:
        return None
    variable = next((x for x in VARIABLES if x in law.columns and {*constants_of(law, x)} & {*names}), "")
    return why(Why.NOT_SEPARABLE, constants=names, variable=variable if variable in ("P", "G") else "", one_value=False)


def by_law(law: Law, given: Mapping[str, float], seed: int = 0) -> Predictor:
    """`law` with constants fixed at `given`, fitted to the points that were kept."""

    def predict(kept: Data, places: Data) -> Prediction | Finding:
        if reason := unseen(law, kept, given):
            return reason
        result = fit(law, kept, fixed=dict(given) or None, seed=seed, intervals="none")
        if not result.identified:
            return result.status.reason or why(Why.NOT_FINITE)
        value = law.predict(result.values, {name: np.asarray(places[name], float) for name in law.columns})
        return Prediction(value, np.full(len(value), result.tau))

    return predict


def staying(response: str) -> Predictor:
    """The mean response of the nearest points at the same bits: of the same run if it was kept, then by N, then D."""

    def predict(kept: Data, places: Data) -> Prediction | Finding:
        found = np.empty(len(places["run"]))
        for i in range(len(found)):
            known = [name for name in ("P", "N", "D") if name in kept and np.isfinite(places[name][i])]
            gaps = {name: _gap(kept[name], places[name][i]) for name in known}
            rows = np.flatnonzero(gaps.get("P", np.zeros(len(kept["run"]))) <= SAME_SIZE)
            if not len(rows):
                return why(Why.UNSEEN_VALUE, variable="P")
            own = rows[kept["run"][rows] == places["run"][i]]
            rows = own if len(own) else rows
            for name in ("N", "D"):
                gap = gaps[name][rows] if name in gaps else np.zeros(len(rows))
                rows = rows[gap <= gap.min() + SAME_SIZE]
            found[i] = np.mean(kept[response][rows])
        return Prediction(found, np.full(len(found), np.nan))

    return predict


def power_per_bits(data: Data, seed: int = 0) -> Predictor:
    """A·D^g/N^h fitted to every bit-width by itself; g or h is zero where all of `data` have one D or N."""
    law = KumarPTQ()
    given = {**undetermined(law, data), "gamma_post": 1.0}
    one = by_law(law, given, seed)

    def predict(kept: Data, places: Data) -> Prediction | Finding:
        value, scatter = (np.full(len(places["P"]), np.nan) for _ in range(2))
        for bits in np.unique(places["P"]):
            rows, there = (_gap(some["P"], bits) <= SAME_SIZE for some in (kept, places))
            if not rows.any():
                return why(Why.UNSEEN_VALUE, variable="P")
            found = one(_at(kept, rows), _at(places, there))
            if isinstance(found, Finding):
                return found
            value[there], scatter[there] = found.value, found.scatter
        return Prediction(value, scatter)

    return predict


def _gap(values: Any, value: float) -> np.ndarray:
    """The distance of positive numbers [n] from one, as the size of the difference of logarithms."""
    return np.abs(np.log(np.asarray(values, float)) - np.log(value))


def _at(data: Data, rows: np.ndarray) -> dict[str, np.ndarray]:
    return {name: np.asarray(values)[rows] for name, values in data.items()}
