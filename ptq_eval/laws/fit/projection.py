"""Where to start a search: many places at once, with the linear constants solved for exactly.

A law's own `starts` know its shape; they may still all be in one valley.  More are drawn around them and over the
bounds where these are narrow, and in each the constants in which the law is linear are not guessed but computed, by
weighted linear least squares within their bounds (variable projection; Golub and Pereyra 1973).  The best few are
kept.  With a logarithmic loss the law is not linear on the scale of the residuals, and the solution, weighted by
1/y, is a start and no more.
"""

from __future__ import annotations

import numpy as np

from ptq_eval.laws.base import Parameter
from ptq_eval.laws.fit.solver import Problem, search_bounds, to_search, to_theta

N_DRAWS = 192
N_BEST = 8
_NARROW_LOG, _NARROW = np.log(1e4), 10.0
_SPREAD = 0.5


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
