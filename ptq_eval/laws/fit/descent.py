"""Levenberg–Marquardt on many small robust regressions at once.

The points of a regression are looked at once per iteration, and only their sums are kept: the slope of the objective
and its curvature (`Local`), a few dozen numbers from which a step can be taken at any damping.  What remains per
iteration is one batched linear solve.

Huber's loss needs care.  Reweighting (IRLS) always goes down, but crawls where most residuals lie beyond the threshold.
Newton's matrix counts only residuals inside it, and overshoots.  The damping goes from the one to the other:

    H = JᵀcJ + damping·diag(JᵀcJ),      c = 1 where |r| ≤ k, damping·k/|r| beyond,

which is Newton's for small damping and a short IRLS step for large.  Bounds enter as a projection: a constant that
sits on a bound and is pushed outwards is held there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

MAX_ITERATIONS = 300
TOLERANCE = 1e-10
"""A regression is done with the step that promises a smaller relative decrease of the objective than this."""

_DAMPING = 1e-5
_FREE = 1e-2
_LAMBDA_MAX, _LAMBDA_MIN = 1e12, 1e-10
_FLOOR = 1e-30
_EYE = 1e-14


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
    """What `descend` minimises: many regressions, of which it asks for those in `rows` at `points` [rows, p]."""

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
        trial = np.clip(points[active] + step, *bounds)
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
    normal = np.where(held[:, :, None] | held[:, None, :], 0.0, normal / scale[:, :, None] / scale[:, None, :])
    normal = np.where(np.isfinite(normal), normal, 0.0)
    normal += (damping[:, None] + held + (diagonal <= 0) + _EYE)[:, :, None] * np.eye(points.shape[1])
    step = np.linalg.solve(normal, (slope / scale)[..., None])[..., 0]
    return step / scale, 0.5 * np.sum(step * slope / scale, axis=1)
