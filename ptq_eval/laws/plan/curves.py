"""What the figures of a plan show, as tidy rows: loss against D, loss over bits and D/N, best precision and budget.

A curve has the interval of its source at every point, and says which of its points lie beyond the fitted range.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from ptq_eval.laws.findings import Finding
from ptq_eval.laws.plan.answers import Planner
from ptq_eval.laws.plan.optimum import BITS, Budget, optimum
from ptq_eval.laws.plan.question import Reason, Setting
from ptq_eval.laws.turning.verdict import MAX_FACTOR

POINTS, BUDGETS, GRID = 70, 25, 61
MAX_RATIO = 1e4
"""Tokens per parameter up to which curves are drawn."""
_DECADES = 3.0
"""Powers of ten on either side of the budget asked for."""
_DEFAULT_SPAN = (1e18, 1e26)
"""Budgets shown if the question has none."""

Rows = list[dict[str, Any]]


def loss_against_tokens(planner: Planner) -> Rows:
    """Loss before (bits NaN) and after quantization over D at one N, kind "curve"; D_crit, kind "critical"; the tokens
    of the question, kind "asked".

    Empty if the loss or the damage is not known at this N.
    """
    N = planner.size(planner.bits[0])
    if N is None or planner.lacking("damage", "loss", N=N):
        return []
    marks = _marks(planner, N)
    formulas, source = planner.source.formulas(1), planner.source
    tokens = np.geomspace(*_span(planner, N, [mark["tokens"] for mark in marks]), POINTS)
    before = formulas.before(N, tokens)
    rows = []
    for bits in (math.nan, *planner.bits):
        curve = before if math.isnan(bits) else before + formulas.damage(N, tokens, bits)
        for D, values in zip(tokens, np.atleast_2d(curve).T):
            drawn = {"kind": "curve", "params": N, "bits": bits, "serving": _serving(planner, bits), "tokens": float(D)}
            rows.append(
                {
                    **drawn,
                    **_ends(planner, values),
                    "beyond": _factor(planner, source.beyond(N=N, D=float(D), bits=bits)),
                }
            )
    return rows + marks


def loss_over_bits_and_ratio(planner: Planner) -> Rows:
    """Loss after quantization on a grid of bits and D/N at one N, kind "grid"; D_crit/N over bits, "critical"; two
    corners of what was fitted, "fitted", unless N is outside.  Without a D_crit there is no ratio, and `why_not`
    holds the reason.

    Empty if the loss or the damage is not known at this N, or if bits are not a variable of the law.
    """
    N = planner.size(planner.bits[0])
    if N is None or planner.lacking("damage", "loss", N=N) or not planner.formulas.by_bits:
        return []
    formulas = planner.source.formulas(2)
    bits = np.linspace(max(min(planner.bits) - 1, 1), max(planner.bits) + 1, GRID)
    ratio = np.geomspace(1, MAX_RATIO, GRID)
    D = ratio[None, :] * N
    after = (formulas.before(N, D) + formulas.damage(N, D, bits[:, None]))[0]
    rows = [
        {"kind": "grid", "params": N, "bits": float(b), "ratio": float(r), "loss": float(after[i, j])}
        for i, b in enumerate(bits)
        for j, r in enumerate(ratio)
    ]
    rows += _turns(planner, N, bits)
    ranges = planner.source.ranges
    if ranges and not planner.source.beyond(N=N):
        whole = {"bits": (float(bits[0]), float(bits[-1])), "D": (float(D[0, 0]), float(D[0, -1]))}
        corners = zip(*(ranges.get(axis, whole[axis]) for axis in ("D", "bits")))
        rows += [{"kind": "fitted", "params": N, "bits": b, "ratio": D / N, "loss": math.nan} for D, b in corners]
    for row in rows:
        at = {"N": N, "D": row["ratio"] * N, "bits": row["bits"]}
        row["beyond"] = _factor(planner, planner.source.beyond(**at))
    return rows


def _turns(planner: Planner, N: float, bits: np.ndarray) -> Rows:
    """D_crit/N at each of `bits`, with its interval, as far as the table of the plan gives it."""
    rows = []
    for b in bits:
        found, why_not = planner.source.critical_tokens(N, float(b))
        if planner.source.beyond(D=found.value).get("D", 0.0) > MAX_FACTOR:
            why_not = (Finding(Reason.TOO_FAR, {"factor": MAX_FACTOR}),)
        ends = (math.nan,) * 3 if why_not else (found.value / N, found.low / N, found.high / N)
        turn = dict(zip(("ratio", "low", "high"), ends))
        rows.append({"kind": "critical", "params": N, "bits": float(b), **turn, "loss": math.nan, "why_not": why_not})
    return rows


def precision_against_budget(planner: Planner) -> Rows:
    """The best training precision of a model served as trained over the budget: free, at given N, at given memory.

    Empty if the law of training precision or of the loss is not known.
    """
    if planner.lacking("loss", "precision"):
        return []
    question = planner.question
    settings: dict[Setting, dict[str, Any]] = {Setting.FREE: {}}
    if question.memory is not None:
        settings[Setting.MEMORY] = {"memory": question.memory}
    N = planner.size(planner.bits[0])
    if N is not None:
        settings[Setting.PARAMS] = {"N": N}
    middle = question.spent
    span = _DEFAULT_SPAN if middle is None else (middle / 10**_DECADES, middle * 10**_DECADES)
    rows = []
    for name, fixed in settings.items():
        for C in np.geomspace(*span, BUDGETS):
            budget = Budget(float(C), question.served_tokens, question.per_served)
            best = optimum(planner.grid.before, budget, P=BITS, **fixed)
            if math.isfinite(best.loss[0]):
                found = {"setting": name.value, "params": fixed.get("N", math.nan), "budget": float(C)}
                at = {"N": float(best.N[0]), "D": float(best.D[0])}
                beyond = _factor(planner, planner.source.beyond(**at, P=float(best.P[0])))
                rows.append({**found, **_ends(planner, best.P, "bits"), **at, "beyond": beyond})
    asked = {"setting": "asked", "params": math.nan, "budget": middle}
    return rows if middle is None else [*rows, asked]


def _serving(planner: Planner, bits: float) -> str | None:
    return None if math.isnan(bits) else planner.label(bits)


def _ends(planner: Planner, values: np.ndarray, name: str = "loss") -> dict[str, float]:
    estimate = planner.source.estimate(values)
    return {name: estimate.value, "low": estimate.low, "high": estimate.high}


def _factor(planner: Planner, beyond: Mapping[str, float]) -> float:
    """The largest factor by which a point is outside the fitted range; 1 within it, NaN if no range is known."""
    return max(beyond.values(), default=1.0 if planner.source.ranges else math.nan)


def _marks(planner: Planner, N: float) -> Rows:
    """D_crit at each serving precision, if it is known and in view; the tokens of the question."""
    marks = []
    for bits in planner.bits:
        answer = planner.critical(bits)
        found = answer.values.get("D")
        if found is not None and found.value <= MAX_RATIO * N:
            loss = planner.formulas.before(N, found.value) + planner.formulas.damage(N, found.value, bits)
            at = {
                "kind": "critical",
                "params": N,
                "bits": bits,
                "serving": _serving(planner, bits),
                "tokens": found.value,
            }
            ends = {"low": found.low, "high": found.high}
            marks.append(
                {**at, "loss": float(np.atleast_1d(loss)[0]), **ends, "beyond": _factor(planner, answer.beyond)}
            )
    if planner.question.tokens is not None:
        asked = {"kind": "asked", "params": N, "bits": math.nan, "tokens": planner.question.tokens, "loss": math.nan}
        marks.append({**asked, "low": math.nan, "high": math.nan, "beyond": math.nan})
    return marks


def _span(planner: Planner, N: float, marked: list[float]) -> tuple[float, float]:
    """The D that a figure shows: one to a few hundred tokens per parameter, what was fitted, and every mark."""
    low, high = planner.source.ranges.get("D", (2 * N, 200 * N))
    low, high = min([low, 5 * N, *(mark / 4 for mark in marked)]), max([high, 100 * N, *(4 * mark for mark in marked)])
    return low, min(high, MAX_RATIO * N)
