"""Many small robust regressions at once.

A bootstrap solves the same problem a few hundred times with slightly different responses.  Each is tiny (three to
eight constants, tens or hundreds of points), so what costs time is the number of Python steps and passes over memory,
not the arithmetic. `minimise` therefore runs Levenberg–Marquardt on blocks of problems side by side: one prediction
with its derivatives and one batched linear solve per iteration, in blocks that stay in the processor's cache.

Huber's loss needs care.  Reweighting (IRLS) always goes down, but crawls where most residuals lie beyond the threshold.
Newton's matrix counts only residuals inside it, and overshoots.  The damping goes from the one to the other:

    H = JᵀcJ + damping·diag(JᵀcJ),      c = 1 where |r| ≤ k, damping·k/|r| beyond,

which is Newton's for small damping and a short IRLS step for large.  Bounds enter as a projection: a constant that
sits on a bound and is pushed outwards is held there.  Least absolute deviation is in `absolute`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ptq_eval.laws.base import Data, Law, Theta
from ptq_eval.laws.losses import Loss, huber_weight

MAX_ITERATIONS = 300
TOLERANCE = 1e-12
"""A problem is done when the next step promises a smaller relative decrease of the objective than this."""

_BLOCK = 250_000
_DAMPING = 1e-4
_FREE = 1e-2
_LAMBDA_MAX, _LAMBDA_MIN = 1e12, 1e-10
_FLOOR = 1e-30


@dataclass(frozen=True)
class Problem:
    """What is minimised: Σ rho((z − t(f))/sigma), z and t(f) being response and prediction on the loss's scale.

    `sigma` is [n]; the responses z, [n] or one row per replicate, are given to `minimise`.
    """

    law: Law
    data: Data
    sigma: np.ndarray
    loss: Loss

    def residuals(self, points: np.ndarray, z: np.ndarray) -> np.ndarray:
        """(z − t(f))/sigma, [replicates, n], at points [replicates, p]; NaN or infinite where the law overflows."""
        with np.errstate(all="ignore"):
            return (z - self.loss.transform(self.law.predict(to_theta(self.law, points), self.data))) / self.sigma

    def linearised(self, points: np.ndarray, z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The residuals, and the derivatives of t(f)/sigma by the search coordinates, [replicates, p, n]."""
        theta = to_theta(self.law, points)
        with np.errstate(all="ignore"):
            f, gradient = self.law.linearise(theta, self.data)
            slopes = np.empty((len(points), len(self.law.parameters), f.shape[-1]))
            scale = 1 / (f * self.sigma) if self.loss.log else 1 / self.sigma
            for j, p in enumerate(self.law.parameters):
                np.multiply(gradient[p.name], theta[p.name] * scale if p.log else scale, out=slopes[:, j])
            return (z - self.loss.transform(f)) / self.sigma, slopes

    def values(self, points: np.ndarray, z: np.ndarray) -> np.ndarray:
        """The objective for each row of `points` [replicates, p]; infinite where the law overflows."""
        return self.loss.total(self.residuals(points, z))


@dataclass(frozen=True)
class Solution:
    """A minimum: `point` [p] in search coordinates, its objective, the problem (with its weights), the scatter tau
    behind them (NaN where sigma was given), and whether the search came to its end."""

    point: np.ndarray
    objective: float
    problem: Problem
    tau: float
    converged: bool = True


@dataclass(frozen=True)
class Minima:
    """Where `minimise` arrived: points [replicates, p], their objectives, and whether each is a minimum."""

    points: np.ndarray
    values: np.ndarray
    converged: np.ndarray

    @property
    def lowest(self) -> int:
        """The row of the lowest objective."""
        return int(np.argmin(self.values))


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
    low, high = np.array(ends).reshape(-1, 2).T
    return low, high


def minimise(problem: Problem, z: np.ndarray, start: np.ndarray, hold: np.ndarray | None = None) -> Minima:
    """Minimise the objective from each row of `start`.

    z is [n] or [replicates, n], start [replicates, p] in search coordinates; `hold` [replicates, p] marks the
    coordinates of each row that stay where they start.  The loss must not be that of absolute values.
    """
    low, high = search_bounds(problem.law)
    points = np.clip(start, low, high)
    z = np.broadcast_to(z, (len(points), z.shape[-1]))
    hold = np.zeros(points.shape, bool) if hold is None else hold
    values, converged = np.full(len(points), np.inf), np.zeros(len(points), bool)
    for rows in _blocks(len(points), z.shape[-1] * (points.shape[1] + 1)):
        points[rows], values[rows], converged[rows] = _block(problem, z[rows], points[rows], hold[rows], (low, high))
    return Minima(points, values, converged)


def _blocks(n_rows: int, size: int) -> Iterator[slice]:
    step = max(1, _BLOCK // max(size, 1))
    return (slice(first, first + step) for first in range(0, n_rows, step))


def _block(
    problem: Problem, z: np.ndarray, points: np.ndarray, hold: np.ndarray, bounds: tuple[np.ndarray, np.ndarray]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """`minimise` for a few rows.  `r` and `slopes` belong to the rows still `active`, at their best points."""
    points = points.copy()
    r, slopes = problem.linearised(points, z)
    best = problem.loss.total(r)
    converged = np.zeros(len(points), bool)
    active = np.flatnonzero(np.isfinite(best))
    r, slopes, z = r[active], slopes[active], z[active]
    damping = np.full(len(active), _DAMPING)
    for _ in range(MAX_ITERATIONS):
        if not len(active):
            break
        step, promise = _step(r, slopes, problem.loss.k, damping, points[active], hold[active], bounds)
        floor = TOLERANCE * np.maximum(best[active], _FLOOR)
        trial = np.clip(points[active] + step, *bounds)
        new_r, new_slopes = problem.linearised(trial, z)
        value = problem.loss.total(new_r)
        better = value < best[active]
        points[active[better]], best[active[better]] = trial[better], value[better]
        # A promise below the tolerance ends the search, unless it is small only because the damping is large.
        done = (promise <= floor) & (damping <= _FREE)
        stuck = ~better & (damping >= _LAMBDA_MAX)
        converged[active] = done | stuck
        damping = np.clip(damping * np.where(better, 0.1, 10.0), _LAMBDA_MIN, _LAMBDA_MAX)
        keep = ~(done | stuck)
        worse = np.flatnonzero(~better)
        new_r[worse], new_slopes[worse] = r[worse], slopes[worse]
        r, slopes = new_r, new_slopes
        if not np.all(keep):
            r, slopes, z, active, damping = r[keep], slopes[keep], z[keep], active[keep], damping[keep]
    return points, best, converged


def _step(
    r: np.ndarray,
    slopes: np.ndarray,
    k: float,
    damping: np.ndarray,
    points: np.ndarray,
    hold: np.ndarray,
    bounds: tuple[np.ndarray, np.ndarray],
) -> tuple[np.ndarray, np.ndarray]:
    """One damped step per row, [replicates, p], with the decrease of the objective that its model promises."""
    if np.isinf(k):
        slope = (slopes @ r[:, :, None])[:, :, 0]
        normal = slopes @ slopes.transpose(0, 2, 1)
        normal *= (1 + damping)[:, None, None]
    else:
        weight = huber_weight(r, k)
        slope = (slopes @ np.clip(r, -k, k)[:, :, None])[:, :, 0]
        curvature = np.where(weight < 1, damping[:, None] * weight, 1.0)
        normal = (slopes * curvature[:, None]) @ slopes.transpose(0, 2, 1)
    diagonal = np.einsum("rpp->rp", normal).copy()
    held = hold | ((points <= bounds[0]) & (slope < 0)) | ((points >= bounds[1]) & (slope > 0))
    slope = np.where(held | ~np.isfinite(slope), 0.0, slope)
    scale = np.sqrt(np.where((diagonal > 0) & np.isfinite(diagonal), diagonal, 1.0))
    normal = np.where(held[:, :, None] | held[:, None, :], 0.0, normal / scale[:, :, None] / scale[:, None, :])
    normal = np.where(np.isfinite(normal), normal, 0.0)
    normal += (damping[:, None] + held + (diagonal <= 0) + 1e-14)[:, :, None] * np.eye(points.shape[1])
    step = np.linalg.solve(normal, (slope / scale)[..., None])[..., 0]
    return step / scale, 0.5 * np.sum(step * slope / scale, axis=1)
