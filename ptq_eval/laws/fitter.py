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
that came out low.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
from scipy import stats

from ptq_eval.errors import OptionError
from ptq_eval.laws import bootstrap
from ptq_eval.laws.base import Data, FitResult, Law
from ptq_eval.laws.solver import Solution, jacobian, minimise, search_bounds, to_search, to_theta
from ptq_eval.laws.summary import Frame

_MAX_SCATTER = 10.0
_ROUNDS = 30
_SINGULAR = 1e-7


def fit(
    law: Law,
    data: Data,
    *,
    loss: Literal["huber", "squared"] = "huber",
    huber_delta: float = 1.345,
    sigma: np.ndarray | None = None,
    seed: int = 0,
    n_boot: int = 200,
    level: float = 0.9,
) -> FitResult:
    """Fit `law` to `data` and bootstrap it.

    data: the law's columns and response, each [n], and optionally "se", "run", "checkpoint" and "windows"
    [n, n_windows] (see `base.Data`).  Points with anything not finite, or with a variable that is not
    positive, are dropped and counted.  `sigma` [n] replaces the estimated weights.  The result depends on
    data and seed only. Bad data give a result with status "not_identified: …"; OptionError is for a wrong
    option.
    """
    if loss not in ("huber", "squared"):
        raise OptionError("unknown loss", got=repr(loss), allowed="huber, squared")
    if not 0 < level < 1 or not huber_delta > 0 or n_boot < 0:
        raise OptionError("fit options out of range", got=f"{level=}, {huber_delta=}, {n_boot=}")
    k = huber_delta if loss == "huber" else math.inf
    data, dropped = _clean(law, data, sigma)
    frame = Frame(law, data, dropped, loss, k, seed, level)
    if objection := law.objection(data):
        return frame.not_identified(objection)
    rng = np.random.default_rng(seed)
    starts = np.array([to_search(law, theta) for theta in law.starts(data, rng)])
    solution = _solve(law, data, starts, k)
    if not _determined(law, data, solution):
        return frame.not_identified(law.undetermined)
    return frame.finished(solution, bootstrap.replicates(law, data, solution, k, seed=seed, n_boot=n_boot))


def _determined(law: Law, data: Data, solution: Solution) -> bool:
    """Whether the constants that are not at a bound move the prediction in independent directions."""
    low, high = search_bounds(law)
    free = (solution.point > low) & (solution.point < high)
    scaled = jacobian(law, solution.point[None], data)[0][:, free] / solution.sigma[:, None]
    size = np.linalg.norm(scaled, axis=0)
    if not np.all(np.isfinite(size)) or np.any(size == 0):
        return False
    return not len(size) or bool(np.linalg.svd(scaled / size, compute_uv=False)[-1] > _SINGULAR)


def _clean(law: Law, data: Data, sigma: np.ndarray | None) -> tuple[dict[str, np.ndarray], int]:
    """The usable points, every optional column filled in, and the number of points dropped."""
    y = np.asarray(data[law.response], float)
    keep = np.isfinite(y)
    for name in law.columns:
        values = np.asarray(data[name], float)
        keep &= np.isfinite(values) & (values > 0)
    index = np.arange(len(y))
    defaults = {"se": np.zeros(len(y)), "run": np.zeros(len(y), int), "checkpoint": index}
    columns = {**defaults, **data} if sigma is None else {**defaults, **data, "sigma": np.asarray(sigma, float)}
    clean = {name: np.asarray(values)[keep] for name, values in columns.items()}
    for name in (*law.columns, law.response, "se"):
        clean[name] = clean[name].astype(float)
    clean["se"] = np.where(np.isfinite(clean["se"]) & (clean["se"] > 0), clean["se"], 0.0)
    return clean, int(np.sum(~keep))


def _solve(law: Law, data: Data, starts: np.ndarray, k: float) -> Solution:
    """The fixed point of weights and constants."""
    y, se = data[law.response], data["se"]
    if "sigma" in data:
        points, values = minimise(law, data, y, data["sigma"], starts, k)
        lowest = int(np.argmin(values))
        return Solution(points[lowest], float(values[lowest]), data["sigma"], math.nan)
    tau, best = 0.3, np.full(starts.shape[1], np.nan)
    scale = np.maximum(np.abs(y), 1e-3 * np.abs(y).max())
    points, values, sigma = starts, np.zeros(len(starts)), scale
    for _ in range(_ROUNDS):
        sigma = np.hypot(se, tau * scale)
        points, values = minimise(law, data, y, sigma, points, k)
        before, best = (tau, best), points[int(np.argmin(values))]
        f = law.predict(to_theta(law, best), data)
        scale = np.maximum(np.abs(f), 1e-9 * np.abs(y).max())
        tau = _scatter(law, y - f, se, scale, k)
        if abs(tau - before[0]) < 1e-6 * tau and np.allclose(best, before[1], rtol=1e-7, atol=1e-9):
            break
    return Solution(best, float(values.min()), sigma, tau)


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
