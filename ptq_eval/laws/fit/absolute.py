"""Least absolute deviation: the same search with a vanishing threshold, then an exact vertex.

Σ|r| has no derivative where it matters.  Its minimum is a vertex: with p constants, p residuals are zero there.
Huber's loss divided by its threshold k tends to |r|, so the minimum is approached by `minimise` with k ever smaller,
and the p smallest residuals are then made exactly zero by Newton's method, where that lowers the objective.  For a
single fit linear programming finishes the work: the law is linearised, Σ|r − J·step| minimised exactly within a trust
region, and this repeated (sequential linear programming) until nothing is gained.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from scipy.optimize import linprog
from scipy.sparse import csr_array, eye_array, hstack, vstack

from ptq_eval.laws.fit import solver
from ptq_eval.laws.fit.losses import Loss
from ptq_eval.laws.fit.solver import Minima, Problem, search_bounds

_SHRINK = 0.1
_STAGES = 6
_NEWTON = 5
_MAX_PROGRAMS = 40
_RADIUS = 0.1


def minimise(problem: Problem, z: np.ndarray, start: np.ndarray, hold: np.ndarray | None = None) -> Minima:
    """`solver.minimise` for every loss, that of absolute values included."""
    if problem.loss.k > 0:
        return solver.minimise(problem, z, start, hold)
    points = np.clip(start, *search_bounds(problem.law))
    values = problem.values(points, z)
    if not np.any(np.isfinite(values)):
        return Minima(points, values, np.zeros(len(points), bool))
    hold = np.zeros(points.shape, bool) if hold is None else hold
    n = problem.sigma.size
    k = float(np.min(values)) / n
    converged = np.zeros(len(points), bool)
    for _ in range(_STAGES):
        if not k > 0:
            break
        smooth = replace(problem, loss=Loss(problem.loss.name, problem.loss.log, k))
        found = solver.minimise(smooth, z, points, hold)
        points, converged = found.points, found.converged
        k *= _SHRINK
    points = _vertices(problem, z, points, hold)
    return Minima(points, problem.values(points, z), converged)


def _vertices(problem: Problem, z: np.ndarray, points: np.ndarray, hold: np.ndarray) -> np.ndarray:
    """Each point moved to where its smallest residuals, as many as there are free constants, are zero; or left."""
    low, high = search_bounds(problem.law)
    z = np.broadcast_to(z, (len(points), z.shape[-1]))
    best, found = problem.values(points, z), points.copy()
    for i, point in enumerate(points):
        free = ~hold[i] & (point > low) & (point < high)
        row = z[i : i + 1]
        chosen = np.argsort(np.abs(problem.residuals(point[None], row)[0]), kind="stable")[: free.sum()]
        for _ in range(_NEWTON):
            r, slopes = problem.linearised(point[None], row)
            step = np.zeros(len(point))
            square = slopes[0][free][:, chosen].T
            if not np.all(np.isfinite(square)) or square.shape[0] != square.shape[1]:
                break
            step[free] = np.linalg.lstsq(square, r[0, chosen], rcond=None)[0]
            point = np.clip(point + step, low, high)
        if problem.values(point[None], row)[0] < best[i]:
            found[i] = point
    return found


def polish(problem: Problem, z: np.ndarray, point: np.ndarray) -> np.ndarray:
    """`point` [p] improved by sequential linear programming."""
    low, high = search_bounds(problem.law)
    best, radius = float(problem.values(point[None], z)[0]), _RADIUS
    for _ in range(_MAX_PROGRAMS):
        r, slopes = (array[0] for array in problem.linearised(point[None], z))
        size = np.linalg.norm(slopes, axis=1)
        size = np.where((size > 0) & np.isfinite(size), size, 1.0)
        reach = radius * max(best, 1e-300) / size
        step = _program(r, slopes, np.maximum(low - point, -reach), np.minimum(high - point, reach))
        if step is None:
            break
        trial = np.clip(point + step, low, high)
        value = float(problem.values(trial[None], z)[0])
        gain = best - value
        if gain > 0:
            point, best, radius = trial, value, 2 * radius
        else:
            radius *= 0.1
        if (abs(gain) <= 1e-14 * best and gain >= 0) or radius < 1e-12:
            break
    return point


def _program(r: np.ndarray, slopes: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray | None:
    """The step that minimises Σ|r − slopesᵀ·step| within bounds, by a linear program; None if it has no answer."""
    p, n = slopes.shape
    design, ones = csr_array(slopes.T), eye_array(n)
    done = linprog(
        np.concatenate([np.zeros(p), np.ones(n)]),
        A_ub=vstack([hstack([design, -ones]), hstack([-design, -ones])]),
        b_ub=np.concatenate([r, -r]),
        bounds=[*zip(low, high), *[(0, None)] * n],
        method="highs",
    )
    return done.x[:p] if done.status == 0 else None
