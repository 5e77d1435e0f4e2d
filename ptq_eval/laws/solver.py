"""Many small nonlinear least-squares problems at once.

A bootstrap solves the same problem a few hundred times with slightly different responses.  Each is tiny
(three to five constants, tens of points), so what costs time is the number of Python steps and not the
arithmetic. `minimise` therefore runs Levenberg–Marquardt on all of them side by side: one prediction, one
gradient and one batched linear solve per iteration.  The Huber loss enters as weights on the residuals
(iteratively reweighted least squares), the bounds as a projection: a constant that sits on a bound and is
pushed outwards is held there.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ptq_eval.laws.base import Data, Law, Theta

MAX_ITERATIONS = 300
TOLERANCE = 1e-12
_LAMBDA_MAX = 1e12


@dataclass(frozen=True)
class Solution:
    """A minimum: `point` [p] in search coordinates, its objective, the weights `sigma` [n] and the scatter
    tau behind them (NaN where sigma was given)."""

    point: np.ndarray
    objective: float
    sigma: np.ndarray
    tau: float


def huber(r: np.ndarray, k: float) -> np.ndarray:
    """½r² up to |r| = k, then k(|r| − k/2); k may be infinite.  Huber 1964."""
    size = np.abs(r)
    inside = np.minimum(size, k)
    return 0.5 * np.square(inside) + (0.0 if np.isinf(k) else k * (size - inside))


def huber_weight(r: np.ndarray, k: float) -> np.ndarray:
    """The weight min(1, k/|r|) that turns a squared residual into Huber's."""
    return np.minimum(1.0, k / np.maximum(np.abs(r), 1e-300))


def to_search(law: Law, theta: Theta) -> np.ndarray:
    """Constants as a vector [p] of search coordinates: logarithms where a constant is marked so."""
    pairs = [(p, float(theta[p.name])) for p in law.parameters]
    return np.array([np.log(np.clip(v, p.low, p.high)) if p.log else np.clip(v, p.low, p.high) for p, v in pairs])


def to_theta(law: Law, points: np.ndarray) -> dict[str, np.ndarray]:
    """The inverse of `to_search`, for [p] or [replicates, p]; constants become [1] or [replicates, 1]."""
    columns = np.moveaxis(points, -1, 0)[..., None]
    return {p.name: np.exp(c) if p.log else c for p, c in zip(law.parameters, columns)}


def search_bounds(law: Law) -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper bounds in search coordinates, each [p]."""
    ends = [(np.log([p.low, p.high]) if p.log else np.array([p.low, p.high])) for p in law.parameters]
    low, high = np.array(ends).T
    return low, high


def jacobian(law: Law, points: np.ndarray, data: Data) -> np.ndarray:
    """Derivatives by the search coordinates, [replicates, n, p], at points [replicates, p]."""
    theta = to_theta(law, points)
    gradient = law.gradient(theta, data)
    return np.stack([gradient[p.name] * (theta[p.name] if p.log else 1.0) for p in law.parameters], -1)


def objective(law: Law, points: np.ndarray, data: Data, y: np.ndarray, sigma: np.ndarray, k: float) -> np.ndarray:
    """Σ rho((y − f)/sigma) for each row of `points` [replicates, p]; infinite where the law overflows."""
    with np.errstate(over="ignore", invalid="ignore"):
        total = huber((y - law.predict(to_theta(law, points), data)) / sigma, k).sum(-1)
    return np.where(np.isfinite(total), total, np.inf)


def minimise(
    law: Law, data: Data, y: np.ndarray, sigma: np.ndarray, start: np.ndarray, k: float
) -> tuple[np.ndarray, np.ndarray]:
    """Minimise Σ rho((y − f)/sigma) from each row of `start`.

    y is [n] or [replicates, n], sigma [n], start [replicates, p] in search coordinates, k Huber's threshold.
    Returns the minima [replicates, p] and their objectives [replicates].
    """
    low, high = search_bounds(law)
    points = np.clip(start, low, high)
    y = np.broadcast_to(y, (len(points), y.shape[-1]))
    best = objective(law, points, data, y, sigma, k)
    damping = np.full(len(points), 1e-3)
    active = np.flatnonzero(np.isfinite(best))
    for _ in range(MAX_ITERATIONS):
        if not len(active):
            break
        step = _step(law, points[active], data, y[active], sigma, k, damping[active], (low, high))
        trial = np.clip(points[active] + step, low, high)
        value = objective(law, trial, data, y[active], sigma, k)
        better = value < best[active]
        small = best[active] - value <= TOLERANCE * np.maximum(best[active], 1e-30)
        finished = np.where(better, small, damping[active] > _LAMBDA_MAX)
        points[active[better]], best[active[better]] = trial[better], value[better]
        damping[active] *= np.where(better, 0.1, 10.0)
        damping[active] = np.maximum(damping[active], 1e-15)
        active = active[~finished]
    return points, best


def _step(
    law: Law,
    points: np.ndarray,
    data: Data,
    y: np.ndarray,
    sigma: np.ndarray,
    k: float,
    damping: np.ndarray,
    bounds: tuple[np.ndarray, np.ndarray],
) -> np.ndarray:
    """One damped Gauss–Newton step per row, with the constants held that would leave their bounds."""
    r = (y - law.predict(to_theta(law, points), data)) / sigma
    j = jacobian(law, points, data) / sigma[:, None]
    weighted = j * huber_weight(r, k)[..., None]
    slope = np.einsum("rnp,rn->rp", weighted, r)
    normal = np.einsum("rnp,rnq->rpq", weighted, j)
    held = ((points <= bounds[0]) & (slope < 0)) | ((points >= bounds[1]) & (slope > 0))
    slope = np.where(held, 0.0, slope)
    normal = np.where(held[:, :, None] | held[:, None, :], 0.0, normal)
    diagonal = np.einsum("rpp->rp", normal)
    scale = np.sqrt(np.where(diagonal > 0, diagonal, 1.0))
    normal = normal / scale[:, :, None] / scale[:, None, :]
    normal = normal + (damping[:, None] + (diagonal <= 0))[:, :, None] * np.eye(len(law.parameters))
    normal = np.where(np.isfinite(normal), normal, 0.0) + 1e-14 * np.eye(len(law.parameters))
    slope = np.where(np.isfinite(slope), slope, 0.0)
    return np.linalg.solve(normal, (slope / scale)[..., None])[..., 0] / scale
