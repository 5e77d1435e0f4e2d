"""The search for the minimum of one fit: where it starts, and how it ends where the loss has corners.

A law's own `starts` know its shape; they may still all be in one valley.  More are drawn around them and over the
bounds where these are narrow, and in each the constants in which the law is linear are not guessed but computed, by
weighted linear least squares within their bounds (variable projection; Golub and Pereyra 1973).  The best few are
kept.  With a logarithmic loss the law is not linear on the scale of the residuals, and the solution, weighted by
1/y, is a start and no more.

From there `solver` finds the minimum of every smooth loss.  Σ|r| has no derivative where it matters.  Its minimum is a
vertex: with p constants, p residuals are zero there.  Huber's loss divided by its threshold k tends to |r|, so the
minimum is approached with k ever smaller, and the p smallest residuals are then made exactly zero by Newton's method,
where that lowers the objective.  For a single fit linear programming finishes the work: the law is linearised,
Σ|r − J·step| minimised exactly within a trust region, and this repeated (sequential linear programming) until nothing
is gained.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from scipy.optimize import linprog
from scipy.sparse import csr_array, eye_array, hstack, vstack

from ptq_eval.laws.base import Parameter
from ptq_eval.laws.fit import solver
from ptq_eval.laws.fit.losses import Loss
from ptq_eval.laws.fit.solver import Minima, Problem, search_bounds, to_search, to_theta

N_DRAWS = 192
N_BEST = 8
_NARROW_LOG, _NARROW = np.log(1e4), 10.0
_SPREAD = 0.5
_SHRINK = 0.1
_STAGES = 6
_NEWTON = 5
_MAX_PROGRAMS = 40
_RADIUS = 0.1


def starts(problem: Problem, y: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Starting points [m, p] in search coordinates for responses y [n], the law's own first."""
    law = problem.law
    own = np.array([to_search(law, theta) for theta in law.starts(problem.data, rng)])
    low, high = search_bounds(law)
    near = own[rng.integers(len(own), size=N_DRAWS)] + _SPREAD * rng.standard_normal((N_DRAWS, own.shape[1]))
    anywhere = rng.uniform(low, high, near.shape)
    wide = np.array([_wide(p, high - low) for p, low, high in zip(law.parameters, low, high)])
    anywhere[:, wide] = near[:, wide]
    draws = np.clip(np.concatenate([near[: N_DRAWS // 2], anywhere[N_DRAWS // 2 :]]), low, high)
    drawn = project(problem, draws, y)
    # Squares would favour places that suit the largest responses; the loss itself chooses.
    values = problem.values(drawn, problem.loss.transform(y))
    best = np.argsort(values, kind="stable")[:N_BEST]
    return np.concatenate([own, drawn[best[np.isfinite(values[best])]]])


def project(problem: Problem, points: np.ndarray, y: np.ndarray) -> np.ndarray:
    """`points` [m, p] with the law's linear constants at their least-squares values, within their bounds."""
    law = problem.law
    columns = [j for j, p in enumerate(law.parameters) if p.name in law.linear and not p.fixed]
    if not columns:
        return points
    linear = [law.parameters[j] for j in columns]
    theta = to_theta(law, points)
    with np.errstate(all="ignore"):
        f, gradient = law.linearise(theta, problem.data)
        sigma = problem.sigma * (y if problem.loss.log else 1.0)
        design = np.stack([gradient[p.name] + 0 * f for p in linear], -1) / sigma[:, None]
        rest = f / sigma - sum(design[..., j] * theta[p.name] for j, p in enumerate(linear))
        size = np.linalg.norm(design, axis=1, keepdims=True)
    usable = np.all(np.isfinite(size) & (size > 0), axis=(1, 2)) & np.all(np.isfinite(rest), axis=1)
    found = points.copy()
    if np.any(usable):
        scaled, size = design[usable] / size[usable], size[usable, 0]
        ends = [np.array([getattr(p, end) for p in linear]) * size for end in ("low", "high")]
        solution = _bounded_least_squares(scaled, (y / sigma - rest)[usable], *ends) / size
        for j, p, column in zip(columns, linear, solution.T):
            value = np.clip(column, p.low, p.high)
            found[usable, j] = np.log(value) if p.log else value
    return found


def _bounded_least_squares(design: np.ndarray, y: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Least squares of [m] problems at once, design [m, n, q]; a coefficient that leaves its bounds is put on the
    bound and the others are solved for again, which is good enough for a start."""
    held = np.zeros(low.shape, bool)
    value = np.zeros(low.shape)
    for _ in range(low.shape[1] + 1):
        rest = y - np.einsum("mnq,mq->mn", design, np.where(held, value, 0.0))
        inverse = np.linalg.pinv(design * ~held[:, None], rcond=1e-10)
        value = np.where(held, value, np.einsum("mqn,mn->mq", inverse, rest))
        outside = ~held & ((value < low) | (value > high))
        if not np.any(outside):
            break
        value, held = np.where(outside, np.clip(value, low, high), value), held | outside
    return value


def _wide(p: Parameter, width: float) -> bool:
    return bool(width > (_NARROW_LOG if p.log else _NARROW))


def minimise(problem: Problem, z: np.ndarray, start: np.ndarray, hold: np.ndarray | None = None) -> Minima:
    """`solver.minimise` for every loss, absolute values included."""
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
