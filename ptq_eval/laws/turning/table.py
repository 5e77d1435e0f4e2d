"""The critical number of tokens from any law that has one, for a table of somebody's measurements.

In an output folder `analyse` knows runs, windows and checkpoints.  A table has points: for every N and P in it, the law
says where the loss after quantization turns, and the measured losses, where the table has them, where it is lowest.
Where a fit does not determine D_crit none is given, by the same tests as in an output folder.  Without evaluation
windows no rise can be called significant, so nothing here is ever "observed" in the sense of the main job.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from ptq_eval.laws.base import Data, Estimate, FitResult, Law
from ptq_eval.laws.fit import bootstrap
from ptq_eval.laws.turning.observed import TurningPoint, turning_point
from ptq_eval.laws.turning.predicted import FARTHEST, CriticalTokens, obstacle, out_of_reach, vague

MOST = 500
"""Combinations of N and P beyond which no list is made: a table of one point each is no trajectory."""


def critical_tokens(
    law: Law, result: FitResult, data: Data, curve: FitResult, after: np.ndarray | None, *, seed: int = 0
) -> Iterator[CriticalTokens]:
    """D_crit at every N and P (and whatever else `law` reads) of `data`.

    `curve` is the fit of the loss before quantization with its B and beta: that of `law` itself where its response
    is the loss after quantization.  after [n]: the measured loss after quantization, None where unknown.
    """
    others = [name for name in law.columns if name != "D"]
    places = np.unique(np.column_stack([data[name] for name in others]), axis=0)
    for place in places if len(places) <= MOST else ():
        at = dict(zip(others, (float(value) for value in place)))
        rows = np.all([data[name] == value for name, value in at.items()], axis=0)
        tokens = data["D"][rows] if "D" in data else np.array([math.nan])
        observed = _observed(tokens, None if after is None else after[rows], seed)
        predicted, why_not = _predicted(law, result, curve, at, data)
        largest = float(tokens.max())
        yield CriticalTokens(
            run="",
            params=at["N"],
            quantizer="",
            bits=at.get("P", math.nan),
            predicted=predicted,
            extrapolation_factor=predicted.value / largest if predicted else math.nan,
            observed=observed,
            verdict=_verdict(law, predicted, why_not, observed, largest),
            at={name: value for name, value in at.items() if name not in ("N", "P")},
        )


def _observed(tokens: np.ndarray, after: np.ndarray | None, seed: int) -> TurningPoint:
    """The minimum of the loss after quantization along D, where the table has that loss."""
    if after is None:
        return TurningPoint(math.nan, Estimate(math.nan), False, math.nan, math.nan)
    return turning_point(tokens, after, None, seed=seed, n_boot=0)


def _verdict(law: Law, predicted: Estimate | None, why_not: str, observed: TurningPoint, largest: float) -> str:
    """One sentence: what the law says, and where the lowest measured loss lies."""
    if predicted is None:
        text = f"not identifiable: {why_not}"
    else:
        text = f"{predicted.value / largest:.3g}× the largest D seen"
        far = predicted.value > FARTHEST * largest
        text = f"not identifiable: the fits point to {text}, too far to believe" if far else f"predicted at {text}"
    if not math.isfinite(observed.tokens):
        return text
    where = f"at D = {observed.tokens:.3g}" if observed.tokens < largest else "at the largest D"
    after = "" if law.response == "loss" and "P" not in law.columns else " after quantization"
    return f"{text}; the lowest measured loss{after} is {where}"


def _predicted(
    law: Law, result: FitResult, curve: FitResult, at: dict[str, float], data: Data
) -> tuple[Estimate | None, str]:
    if law.response == "delta" and (reason := obstacle(result, curve)):
        return None, reason
    if not result.identified:
        return None, f"{result.law} has {result.message}"
    value = float(_at(law, result.values, curve.values, at))
    if not math.isfinite(value):
        return None, "the law has no turning point here"
    tables = [dict(zip(fit.estimates, fit.replicates.T)) if len(fit.replicates) else {} for fit in (result, curve)]
    draws = _at(law, tables[0], tables[1], at) if all(tables) else np.empty(0)
    factor = max(result.stretch, curve.stretch)
    low, high = bootstrap.interval(value, np.asarray(draws, float), factor=factor, level=result.level, log=True)
    found = Estimate(value, low, high)
    reason = vague(found) or (out_of_reach(value, data["D"]) if "D" in data else "")
    return (None, reason) if reason else (found, "")


def _at(law: Any, theta: dict[str, Any], loss: dict[str, Any], at: dict[str, float]) -> Any:
    own = law.response == "loss"
    with np.errstate(all="ignore"):
        return law.critical_tokens(theta, at) if own else law.critical_tokens(theta, loss, at)
