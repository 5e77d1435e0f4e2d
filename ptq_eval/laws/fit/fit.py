"""Fit any law to any data: weighted, robust, from many starts, with intervals that mean something.

The response is fitted as it is, not its logarithm, because delta may be negative and its noise is additive.
What weight a point deserves is the question.  Delta spans orders of magnitude, its evaluation error is often
a thousandth of it, and no law is that exact; weighted by evaluation error alone the largest deltas would
decide everything.  So

    sigma² = se² + (tau · f)²,      f being the law's own prediction,

with one relative scatter tau for all points, raised until the residuals are as large as sigma says (reduced
chi² = 1, in Huber's robust form: "proposal 2") and never below the law's own `min_scatter`.  Tau is
reported: it is the precision of the law on these data.  Weights and constants depend on each other and are
iterated to a fixed point; weights come from predictions, not from measured values, which would favour points
that came out low.  A logarithmic loss weights all points alike unless `sigma` is given: relative errors are its scale.

The steps are files of their own: `losses` (what a residual costs), `restrict` (constants fixed, tied or bounded),
`projection` (where to start), `solver` and `absolute` (the search), `bootstrap` and `profile` (intervals),
`diagnostics` (AICc, leverage, what is not determined), `summary` (the result).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, Literal

import numpy as np
from scipy import stats

from ptq_eval.errors import OptionError
from ptq_eval.laws.base import Data, FitResult, Law
from ptq_eval.laws.fit import bootstrap, profile, projection
from ptq_eval.laws.fit.absolute import minimise, polish
from ptq_eval.laws.fit.columns import clean
from ptq_eval.laws.fit.diagnostics import blind_direction
from ptq_eval.laws.fit.losses import DEFAULT_DELTA, Loss, make_loss
from ptq_eval.laws.fit.requirements import confounded, trade_off
from ptq_eval.laws.fit.restrict import restrict
from ptq_eval.laws.fit.solver import Minima, Problem, Solution, to_theta
from ptq_eval.laws.fit.summary import FitContext

INTERVALS = ("bootstrap", "profile", "none")

_MAX_SCATTER = 10.0
_ROUNDS = 30


def fit(
    law: Law,
    data: Data,
    *,
    loss: Literal["huber", "squared", "lad", "log-huber", "log-squared", "log-lad"] = "huber",
    huber_delta: float | None = None,
    sigma: Any = None,
    fixed: Mapping[str, float] | None = None,
    tied: Iterable[tuple[str, str]] = (),
    bounds: Mapping[str, tuple[float, float]] | None = None,
    seed: int = 0,
    n_boot: int = 200,
    level: float = 0.9,
    intervals: Literal["bootstrap", "profile", "none"] = "bootstrap",
) -> FitResult:
    """Fit `law` to `data`, with intervals.

    data: the law's columns and response, each [n], and optionally "se", "run", "checkpoint" and "windows"
    [n, n_windows] (see `base.Data`).  Points with anything not finite, or with a variable that is not positive, are
    dropped and counted; so are responses that are not positive if the loss is logarithmic.

    loss: see `losses`.  `huber_delta` is Huber's threshold in units of sigma (1.345; 1e-3 for "log-huber").
    sigma: [n] or one number, the standard error of the response (of its logarithm for a logarithmic loss); replaces
    the weights that are otherwise estimated, or equal for a logarithmic loss.
    fixed, tied, bounds: values of constants by name, pairs that are equal, bounds instead of the law's own.
    intervals: "bootstrap" over windows and runs (`n_boot` refits), "profile" likelihood, or "none".

    The result depends on arguments and seed only.  Bad data give a result whose status is "not_identified", with the
    reason; OptionError is for a wrong option, a column that is missing, or one that holds no numbers.
    """
    cost = make_loss(loss, huber_delta)
    if not 0 < level < 1 or n_boot < 0:
        raise OptionError("fit options out of range", got=f"{level=}, {n_boot=}")
    if intervals not in INTERVALS:
        raise OptionError("unknown kind of interval", got=repr(intervals), allowed=", ".join(INTERVALS))
    law = restrict(law, fixed, tied, bounds)
    data, kept, undefined = clean(law, data, sigma, cost)
    context = FitContext(law, data, kept, undefined, cost, seed, level)
    pair = confounded(law, data)
    if reason := trade_off(law, pair) if pair else law.objection(data):
        return context.not_identified(reason)
    solution = _solve(law, data, cost, np.random.default_rng(seed))
    z = cost.transform(data[law.response])
    if reason := blind_direction(solution.problem, solution.point, z):
        return context.not_identified(reason)
    if intervals == "profile":
        return context.finished(solution, solution.point[None][:0], profile.intervals(solution, z, level))
    draws = bootstrap.replicates(solution, seed=seed, n_boot=n_boot if intervals == "bootstrap" else 0)
    return context.finished(solution, draws)


def minimum(law: Law, data: Data, *, loss: str = "huber", huber_delta: float | None = None, seed: int = 0) -> Solution:
    """The minimum that `fit` finds, as a point with its problem: for refits of other responses."""
    cost = make_loss(loss, huber_delta)
    return _solve(law, clean(law, data, None, cost)[0], cost, np.random.default_rng(seed))


def _solve(law: Law, data: Data, loss: Loss, rng: np.random.Generator) -> Solution:
    """The minimum over all starts; weights without a sigma are iterated with the constants to a fixed point."""
    y = data[law.response]
    z, ones = loss.transform(y), np.ones(len(y))
    if "sigma" in data or loss.log:
        problem = Problem(law, data, data.get("sigma", ones), loss)
        return _finished(problem, z, minimise(problem, z, projection.starts(problem, y, rng)), math.nan)
    tau, best, se = 0.3, np.full(len(law.parameters), np.nan), data["se"]
    scale = np.maximum(np.abs(y), 1e-3 * np.abs(y).max())
    problem = Problem(law, data, np.hypot(se, tau * scale), loss)
    points = projection.starts(problem, y, rng)
    found = minimise(problem, z, points)
    for _ in range(_ROUNDS):
        before, best = (tau, best), found.points[found.lowest]
        f = law.predict(to_theta(law, best), data)
        scale = np.maximum(np.abs(f), 1e-9 * np.abs(y).max())
        tau = _scatter(law, y - f, se, scale, loss.k or DEFAULT_DELTA["huber"])
        if abs(tau - before[0]) < 1e-6 * tau and np.allclose(best, before[1], rtol=1e-7, atol=1e-9):
            break
        problem = replace(problem, sigma=np.hypot(se, tau * scale))
        found = minimise(problem, z, found.points)
    return _finished(problem, z, found, tau)


def _finished(problem: Problem, z: np.ndarray, found: Minima, tau: float) -> Solution:
    """The lowest minimum, made exact where the loss has corners."""
    point = found.points[found.lowest]
    if problem.loss.k == 0:
        point = polish(problem, z, point)
    return Solution(point, float(problem.values(point[None], z)[0]), problem, tau, bool(found.converged[found.lowest]))


def _scatter(law: Law, residual: np.ndarray, se: np.ndarray, scale: np.ndarray, k: float) -> float:
    """Tau such that Huber's clipped squared residuals have the mean that normal noise would give them."""
    expected = 1.0
    if math.isfinite(k):
        tail = float(stats.norm.sf(k))
        expected = 1 - 2 * tail - 2 * k * float(stats.norm.pdf(k)) + 2 * k * k * tail

    def excess(tau: float) -> float:
        r = np.minimum(np.abs(residual) / np.hypot(se, tau * scale), k)
        return float(np.sum(r * r)) / (len(r) - law.n_free) - expected

    low, high = law.min_scatter, _MAX_SCATTER
    if excess(low) <= 0:
        return low
    for _ in range(60):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if excess(middle) > 0 else (low, middle)
    return math.sqrt(low * high)
