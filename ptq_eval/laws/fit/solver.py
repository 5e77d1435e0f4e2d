"""Many small robust regressions at once, by Levenberg–Marquardt.

A bootstrap solves the same problem a few hundred times with slightly different responses.  Each is tiny (three to
eight constants, tens or hundreds of points), so what costs time is the number of Python steps and passes over memory,
not the arithmetic.  `minimise` therefore searches for all minima side by side, and looks at the points in blocks that
stay in the processor's cache: once per iteration, keeping only their sums, the slope of the objective and its curvature
(`Local`), from which a step can be taken at any damping by one batched linear solve.

Huber's loss needs care.  Reweighting (IRLS) always goes down, but crawls where most residuals lie beyond the threshold.
Newton's matrix counts only residuals inside it, and overshoots.  The damping goes from the one to the other:

    H = JᵀcJ + damping·diag(JᵀcJ),      c = 1 where |r| ≤ k, damping·k/|r| beyond,

which is Newton's for small damping and a short IRLS step for large.  Bounds enter as a projection: a constant that
sits on a bound and is pushed outwards is held there.

Replicates of one fit start from its minimum, where they have their derivatives in common.  On this tangent of the law
a step costs a few matrix products for all replicates together, so `minimise_near` takes the first steps there; what
is left to the law itself is its curvature.  Least absolute deviation is in `search`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from ptq_eval.laws.base import Data, Law, Theta
from ptq_eval.laws.fit.losses import Loss

MAX_ITERATIONS = 300
TOLERANCE = 1e-10
"""A regression is done with the step that promises a smaller relative decrease of the objective than this."""

_DAMPING = 1e-5
_FREE = 1e-2
_LAMBDA_MAX, _LAMBDA_MIN = 1e12, 1e-10
_FLOOR = 1e-30
_EYE = 1e-14
_BLOCK = 60_000
_TANGENT_STEPS = 3


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
        out = np.empty((len(points), len(self.law.parameters), len(self.sigma)))
        r, slopes, scale = self.derived(points, z, out)
        with np.errstate(all="ignore"):
            return r, np.multiply(slopes, scale[..., None, :], out=out)

    def derived(self, points: np.ndarray, z: np.ndarray, out: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The residuals, the derivatives of f by the search coordinates in `out` [replicates, p, n], and what these are
        to be multiplied by to give t(f)/sigma."""
        theta = to_theta(self.law, points)
        with np.errstate(all="ignore"):
            f, gradient = self.law.linearise(theta, self.data)
            for j, p in enumerate(self.law.parameters):
                np.multiply(gradient[p.name], theta[p.name] if p.log else 1.0, out=out[:, j])
            scale = 1 / (f * self.sigma) if self.loss.log else 1 / self.sigma
            return (z - self.loss.transform(f)) / self.sigma, out, scale

    def values(self, points: np.ndarray, z: np.ndarray) -> np.ndarray:
        """The objective for each row of `points` [replicates, p]; infinite where the law overflows."""
        return self.loss.total(self.residuals(points, z))


@dataclass(frozen=True)
class Solution:
    """A minimum: `point` [p] in search coordinates, its objective, the problem (with its weights), the scatter tau
    behind them (NaN with a sigma of the caller), and whether the search converged."""

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
    columns = points.T[..., None]
    return {p.name: np.exp(c) if p.log else c for p, c in zip(law.parameters, columns)}


def search_bounds(law: Law) -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper bounds in search coordinates, each [p]."""
    ends = [(np.log([p.low, p.high]) if p.log else np.array([p.low, p.high])) for p in law.parameters]
    low, high = np.array(ends).reshape(-1, 2).T
    return low, high


def minimise(problem: Problem, z: np.ndarray, start: np.ndarray, hold: np.ndarray | None = None) -> Minima:
    """Minimise the objective from each row of `start`.

    z is [n] or [replicates, n], start [replicates, p] in search coordinates; `hold` [replicates, p] marks the
    coordinates of each row that stay where they start.  The loss must not be of absolute values.
    """
    bounds = search_bounds(problem.law)
    start = np.clip(start, *bounds)
    z = np.broadcast_to(z, (len(start), z.shape[-1]))
    hold = np.zeros(start.shape, bool) if hold is None else hold
    return Minima(*descend(_Replicates(problem, z), start, hold, bounds))


def minimise_near(problem: Problem, z: np.ndarray, point: np.ndarray) -> Minima:
    """`minimise` for each row of z [replicates, n] from one `point` [p], with its first steps on the tangent there."""
    bounds = search_bounds(problem.law)
    point = np.clip(point, *bounds)
    start = np.tile(point, (len(z), 1))
    r, slopes = problem.linearised(point[None], z)
    tangent = _Tangent(problem.loss, point, r, slopes[0])
    near, _, _ = descend(tangent, start, np.zeros(start.shape, bool), bounds, _TANGENT_STEPS)
    found = minimise(problem, z, near)
    astray = ~(found.values <= problem.loss.total(r)) | ~found.converged
    if np.any(astray):
        again = minimise(problem, z[astray], start[astray])
        lower = again.values < found.values[astray]
        rows = np.flatnonzero(astray)[lower]
        for name in ("points", "values", "converged"):
            getattr(found, name)[rows] = getattr(again, name)[lower]
    return found


class _Rows(ABC):
    """An objective whose rows are looked at in blocks that fit the processor's cache."""

    def __init__(self, n: int, p: int) -> None:
        self._size = max(1, _BLOCK // (n * (p + 1)))

    def local(self, points: np.ndarray, rows: np.ndarray, damping: np.ndarray) -> Local:
        m, p = points.shape
        with np.errstate(all="ignore"):
            if 0 < m <= self._size:
                return self._local(points, rows, damping)
            found = Local(np.empty(m), np.empty((m, p)), np.empty((m, p, p)))
            for block in self._blocks(m):
                found.update(block, self._local(points[block], rows[block], damping[block]))
        return found

    def values(self, points: np.ndarray, rows: np.ndarray) -> np.ndarray:
        return np.concatenate([self._values(points[block], rows[block]) for block in self._blocks(len(rows))])

    def _blocks(self, m: int) -> Iterator[slice]:
        return (slice(first, min(first + self._size, m)) for first in range(0, m, self._size))

    @abstractmethod
    def _local(self, points: np.ndarray, rows: np.ndarray, damping: np.ndarray) -> Local:
        """`local` for one block."""

    @abstractmethod
    def _values(self, points: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """`values` for one block."""


class _Replicates(_Rows):
    """A problem with responses z [replicates, n]: the objective itself."""

    def __init__(self, problem: Problem, z: np.ndarray) -> None:
        n, p = z.shape[1], len(problem.law.parameters)
        super().__init__(n, p)
        self._problem, self._z = problem, z
        self._slopes, self._weighted = np.empty((2, self._size, p, n))

    def _values(self, points: np.ndarray, rows: np.ndarray) -> np.ndarray:
        return self._problem.values(points, self._z[rows])

    def _local(self, points: np.ndarray, rows: np.ndarray, damping: np.ndarray) -> Local:
        r, slopes, scale = self._problem.derived(points, self._z[rows], out=self._slopes[: len(rows)])
        value, psi, weight = self._problem.loss.parts(r, damping)
        weight *= np.square(scale)
        weighted = np.multiply(slopes, weight[:, None], out=self._weighted[: len(rows)])
        psi = psi * scale
        return Local(value, (slopes @ psi[..., None])[..., 0], weighted @ slopes.transpose(0, 2, 1))


class _Tangent(_Rows):
    """The same objective with the law replaced by its tangent at `point`: residuals r [replicates, n] and derivatives
    [p, n], which all replicates share there."""

    def __init__(self, loss: Loss, point: np.ndarray, r: np.ndarray, slopes: np.ndarray) -> None:
        p, n = slopes.shape
        super().__init__(n, 1)
        self._loss, self._point, self._r, self._slopes = loss, point, r, slopes
        self._products = np.ascontiguousarray((slopes[:, None] * slopes).reshape(p * p, n).T)

    def _values(self, points: np.ndarray, rows: np.ndarray) -> np.ndarray:
        return self._loss.total(self._residuals(points, rows))

    def _local(self, points: np.ndarray, rows: np.ndarray, damping: np.ndarray) -> Local:
        value, psi, weight = self._loss.parts(self._residuals(points, rows), damping)
        return Local(value, psi @ self._slopes.T, (weight @ self._products).reshape(*points.shape, -1))

    def _residuals(self, points: np.ndarray, rows: np.ndarray) -> np.ndarray:
        return self._r[rows] - (points - self._point) @ self._slopes


@dataclass(frozen=True)
class Local:
    """An objective around one point for each of m regressions: its `value` [m], its downward `slope` Jᵀpsi [m, p], and
    its `curvature` JᵀcJ [m, p, p] at some damping."""

    value: np.ndarray
    slope: np.ndarray
    curvature: np.ndarray

    def __getitem__(self, rows: np.ndarray) -> Local:
        """Some of the regressions."""
        return Local(self.value[rows], self.slope[rows], self.curvature[rows])

    def update(self, rows: np.ndarray | slice, other: Local) -> None:
        """Put `other` in the place of `rows`."""
        for name in ("value", "slope", "curvature"):
            getattr(self, name)[rows] = getattr(other, name)


class Objective(Protocol):
    """What `descend` minimises: many regressions; it asks for some, `rows`, at `points` [rows, p]."""

    def values(self, points: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """The objectives, infinite where there is none."""
        ...

    def local(self, points: np.ndarray, rows: np.ndarray, damping: np.ndarray) -> Local:
        """The objectives with slope and curvature at `damping` [rows]."""
        ...


def descend(
    objective: Objective,
    start: np.ndarray,
    hold: np.ndarray,
    bounds: tuple[np.ndarray, np.ndarray],
    iterations: int = MAX_ITERATIONS,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """From each row of `start` [m, p] down to a minimum, with the coordinates in `hold` [m, p] staying where they are.

    Returns points, objectives, and whether each search came to its end.
    """
    points, converged = start.copy(), np.zeros(len(start), bool)
    damping = np.full(len(points), _DAMPING)
    here = objective.local(points, np.arange(len(points)), damping)
    best = here.value.copy()
    active = np.flatnonzero(np.isfinite(best))
    here, damping = here[active], damping[active]
    for _ in range(iterations):
        step, promise = _step(here, damping, points[active], hold[active], bounds)
        trial = np.minimum(np.maximum(points[active] + step, bounds[0]), bounds[1])
        # A promise below the tolerance ends the search, unless it is small only because the damping is large.
        last = (promise <= TOLERANCE * np.maximum(here.value, _FLOOR)) & (damping <= _FREE)
        if np.any(last):
            rows, ends = active[last], trial[last]
            value = objective.values(ends, rows)
            lower = value < best[rows]
            points[rows[lower]], best[rows[lower]], converged[rows] = ends[lower], value[lower], True
            active, damping, trial, here = active[~last], damping[~last], trial[~last], here[~last]
        if not len(active):
            break
        # The next step is most likely taken from the trial point, with less damping.
        less = np.maximum(0.1 * damping, _LAMBDA_MIN)
        there = objective.local(trial, active, less)
        better = there.value < here.value
        points[active[better]], best[active[better]] = trial[better], there.value[better]
        worse = ~better & (damping < _LAMBDA_MAX)
        damping = np.where(better, less, 10 * damping)
        if np.any(worse):
            there.update(worse, objective.local(points[active[worse]], active[worse], damping[worse]))
        going = better | worse
        converged[active] = ~going
        active, damping, here = active[going], damping[going], there[going]
    return points, best, converged


def _step(
    here: Local, damping: np.ndarray, points: np.ndarray, hold: np.ndarray, bounds: tuple[np.ndarray, np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """One damped step per row, [m, p], with the decrease of the objective that its model promises."""
    normal, slope = here.curvature, here.slope
    diagonal = np.einsum("mpp->mp", normal).copy()
    held = hold | ((points <= bounds[0]) & (slope < 0)) | ((points >= bounds[1]) & (slope > 0))
    slope = np.where(held | ~np.isfinite(slope), 0.0, slope)
    scale = np.sqrt(np.where((diagonal > 0) & np.isfinite(diagonal), diagonal, 1.0))
    normal = normal / scale[:, :, None] / scale[:, None, :]
    normal[held[:, :, None] | held[:, None, :] | ~np.isfinite(normal)] = 0.0
    np.einsum("mpp->mp", normal)[...] += damping[:, None] + held + (diagonal <= 0) + _EYE
    step = np.linalg.solve(normal, (slope / scale)[..., None])[..., 0]
    return step / scale, 0.5 * np.sum(step * slope / scale, axis=1)
