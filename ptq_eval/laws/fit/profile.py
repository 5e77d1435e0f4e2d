"""Intervals by profile likelihood: how far one constant can be moved before the best fit of the others gets worse.

An end of the interval is where the objective, minimised over all other constants, has risen by

    ½ t² E[psi²]/E[psi'],

t being Student's quantile for the points left over: for squares that is the exact F test of one constant, for the
robust losses the test of Schrader and Hettmansperger (1980).  Unlike "value ± standard error" this follows curved
valleys such as the one of A and alpha, and detects an open end, where the interval ends at the bound of the search.
Points are taken as independent; with runs that differ, the bootstrap over runs is the honest one.
"""

from __future__ import annotations

import numpy as np
from scipy import stats

from ptq_eval.laws.fit.diagnostics import free, jacobian, variance_factor
from ptq_eval.laws.fit.search import minimise
from ptq_eval.laws.fit.solver import Problem, Solution, search_bounds

_DOUBLINGS = 60
_BISECTIONS = 30
_PRECISION = 1e-4
_SMALLEST_STEP = 1e-9
_TINY = 1e-300


def intervals(solution: Solution, z: np.ndarray, level: float) -> np.ndarray:
    """Ends [p, 2] in search coordinates for the responses z [n]; NaN for constants at a bound."""
    problem, point = solution.problem, solution.point
    movable = free(problem, point)
    n_free = int(np.sum(movable))
    quantile = float(stats.t.ppf((1 + level) / 2, max(len(z) - n_free, 1)))
    factor = variance_factor(problem, problem.residuals(point[None], z)[0], n_free)
    ends = np.full((len(point), 2), np.nan)
    if not n_free or not np.isfinite(factor):
        return ends
    moved = np.repeat(np.flatnonzero(movable), 2)
    signs = np.tile([-1.0, 1.0], n_free)
    covariance = factor * _covariance(problem, point, z, movable)
    variance = np.maximum(np.diag(covariance)[moved], _TINY)
    along = covariance[moved] / variance[:, None]
    search = (moved, signs, quantile * np.sqrt(variance), along)
    limit = solution.objective + 0.5 * quantile**2 * factor
    found = _crossings(problem, z, point, search, limit)
    ends[moved[::2], 0], ends[moved[1::2], 1] = found[::2], found[1::2]
    return ends


def _crossings(
    problem: Problem,
    z: np.ndarray,
    point: np.ndarray,
    search: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray],
    limit: float,
) -> np.ndarray:
    """Where the profile of coordinate `moved[i]`, followed to the side `signs[i]`, reaches `limit`.

    All sides are searched at once: steps that double until they cross or meet the bound, then bisection.  The other
    constants start where the last point inside the interval had them, moved `along` the valley.
    """
    moved, signs, first, along = search
    rows = np.arange(len(moved))
    bounds = np.array(search_bounds(problem.law))[(signs > 0).astype(int), moved]
    hold = np.zeros((len(moved), len(point)), bool)
    hold[rows, moved] = True
    known, at, reach = np.tile(point, (len(moved), 1)), np.zeros(len(moved)), np.abs(bounds - point[moved])
    inside, outside = np.zeros(len(moved)), np.minimum(np.maximum(first, _SMALLEST_STEP), reach)

    def above(distance: np.ndarray) -> np.ndarray:
        starts = known + (signs * (distance - at))[:, None] * along
        starts[rows, moved] = point[moved] + signs * distance
        found = minimise(problem, z, starts, hold)
        below = found.values <= limit
        known[below], at[below] = found.points[below], distance[below]
        return ~below

    crossed = above(outside)
    for _ in range(_DOUBLINGS):
        growing = ~crossed & (outside < reach)
        if not np.any(growing):
            break
        inside = np.where(growing, outside, inside)
        outside = np.where(growing, np.minimum(2 * outside, reach), outside)
        crossed |= above(outside) & growing
    for _ in range(_BISECTIONS):
        middle = 0.5 * (inside + outside)
        over = above(middle)
        inside = np.where(crossed & ~over, middle, inside)
        outside = np.where(crossed & over, middle, outside)
        if np.all(~crossed | (outside - inside <= _PRECISION * outside)):
            break
    return np.where(crossed, point[moved] + signs * 0.5 * (inside + outside), bounds)


def _covariance(problem: Problem, point: np.ndarray, z: np.ndarray, movable: np.ndarray) -> np.ndarray:
    """Covariance [p, p] of the linearised problem for unit errors: where to begin the search, and its direction."""
    scaled = jacobian(problem, point, z) * movable
    size = np.linalg.norm(scaled, axis=0)
    size = np.where(size > 0, size, 1.0)
    return np.linalg.pinv((scaled / size).T @ (scaled / size)) / np.outer(size, size)
