"""Diagnostics of a fit: AICc, leverage, and constants that the points cannot separate.

AICc needs a likelihood, and the losses are not all squares.  A loss rho is read as the density exp(−rho(r)/T)/Z(T) of a
standardized residual, with one temperature T fitted to all points: squares give the normal density with its variance
estimated, absolute values Laplace's, Huber's the mixture of both.  The densities of the weights and, for a logarithmic
loss, of log y are carried along, so that every AICc refers to the response itself: laws may be compared under any
loss and weights, as long as the points are the same.  Points are taken as independent, which flatters laws with
more constants where runs differ; held-out errors (`crossval`) do not depend on that.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from scipy import stats
from scipy.optimize import minimize_scalar

from ptq_eval.laws.findings import Finding, Why, why
from ptq_eval.laws.fit.losses import DEFAULT_DELTA, Loss, huber_weight
from ptq_eval.laws.fit.requirements import CONSTANTS
from ptq_eval.laws.fit.solver import Problem, search_bounds
from ptq_eval.laws.quality import MAX_SCATTER, BitsQuality, Scatter

SINGULAR = 1e-7
"""Constants count as not separable if the scaled derivatives have a singular value below this."""

_NAMED = 0.3
_TINY, _TINY_SHARE = 1e-300, 1e-12


def free(problem: Problem, point: np.ndarray) -> np.ndarray:
    """Which search coordinates of `point` [p] are not at a bound."""
    low, high = search_bounds(problem.law)
    return (point > low) & (point < high)


def jacobian(problem: Problem, point: np.ndarray, z: np.ndarray) -> np.ndarray:
    """Derivatives of t(f)/sigma by the search coordinates, [n, p]."""
    return problem.linearised(point[None], z)[1][0].T


def blind_direction(problem: Problem, point: np.ndarray, z: np.ndarray) -> Finding | None:
    """Which constants can move together without moving the prediction; None if the points determine all constants
    that are not at a bound."""
    names = _blind_constants(problem, point, z)
    if names is None:
        return None
    if not names:
        return why(Why.NOT_FINITE)
    variable = next((x for x in ("P", "G") if {*names} & {*CONSTANTS[x]}), None)
    one_value = variable in problem.law.one_value
    return why(Why.NOT_SEPARABLE, constants=names, variable=variable, one_value=one_value)


def _blind_constants(problem: Problem, point: np.ndarray, z: np.ndarray) -> list[str] | None:
    """The names; [] if the derivatives are not finite, None if every constant is determined."""
    columns = np.flatnonzero(free(problem, point))
    scaled = jacobian(problem, point, z)[:, columns]
    size = np.linalg.norm(scaled, axis=0)
    names = [problem.law.parameters[j].name for j in columns]
    if not np.all(np.isfinite(size)):
        return []
    if np.any(size == 0):
        return [name for name, length in zip(names, size) if length == 0]
    if not len(size):
        return None
    _, singular, directions = np.linalg.svd(scaled / size, full_matrices=False)
    if len(singular) == len(names) and singular[-1] > SINGULAR:
        return None
    return [name for name, share in zip(names, directions[-1]) if abs(share) > _NAMED]


def leverage(problem: Problem, point: np.ndarray, z: np.ndarray) -> np.ndarray:
    """The diagonal of the hat matrix [n]: how far a point's fit follows the point; its sum is the number of constants
    that are not at a bound.  Huber's weights are counted in; absolute values have none."""
    scaled = jacobian(problem, point, z)[:, free(problem, point)]
    if 0 < problem.loss.k < math.inf:
        r = problem.residuals(point[None], z)[0]
        scaled = scaled * np.sqrt(huber_weight(r, problem.loss.k))[:, None]
    if not scaled.shape[1] or not np.all(np.isfinite(scaled)):
        return np.zeros(len(scaled))
    size = np.linalg.norm(scaled, axis=0)
    basis, singular, _ = np.linalg.svd(scaled / np.where(size > 0, size, 1.0), full_matrices=False)
    return np.sum(np.square(basis[:, singular > SINGULAR]), axis=1)


def aicc(problem: Problem, objective: float, y: np.ndarray, n_free: int) -> float:
    """−2 log-likelihood + 2q + 2q(q + 1)/(n − q − 1), q being `n_free` and one for the scale; NaN for n ≤ q + 1."""
    n, q = len(y), n_free + 1
    if n <= q + 1 or not objective > 0:
        return math.nan
    change = np.sum(np.log(problem.sigma)) + (np.sum(np.log(y)) if problem.loss.log else 0.0)
    minus = n * _log_partition(objective / n, problem.loss) + float(change)
    return 2 * minus + 2 * q + 2 * q * (q + 1) / (n - q - 1)


def _log_partition(mean: float, loss: Loss) -> float:
    """The least of log Z(T) + mean/T over T, for the mean cost of a residual."""
    if loss.k == 0:
        return math.log(2 * mean) + 1
    if math.isinf(loss.k):
        return 0.5 * math.log(4 * math.pi * mean) + 0.5

    def cost(log_t: float) -> float:
        s = math.exp(0.5 * log_t)
        inside = math.sqrt(2 * math.pi) * s * math.erf(loss.k / s / math.sqrt(2))
        outside = 2 * s * s / loss.k * math.exp(-0.5 * (loss.k / s) ** 2)
        return math.log(max(inside + outside, _TINY)) + mean / (s * s)

    middle = math.log(mean)
    found: Any = minimize_scalar(cost, bounds=(middle - 5, middle + 5), method="bounded")
    return float(found.fun)


def variance_factor(problem: Problem, r: np.ndarray, n_free: int) -> float:
    """E[psi²]/E[psi'] of the residuals: what a drop of the objective by ½chi² is to be multiplied by.

    One for normal residuals as large as sigma says.  Where few residuals lie inside Huber's threshold, the mean of
    psi' is taken over a window around zero as wide as the residuals' own scale and number call for.
    """
    n, k = len(r), problem.loss.k
    if math.isinf(k):
        return float(r @ r) / max(n - n_free, 1)
    scale = float(np.median(np.abs(r))) / stats.norm.ppf(0.75)
    h = max(k, scale * n ** (-0.2), _TINY)
    inside = max(float(np.mean(np.abs(r) <= h)), 1 / n)
    psi = np.clip(r, -k, k) if k > 0 else np.sign(r)
    # Huber 1981, section 7.6: residuals of a fit lie inside the threshold more often than the errors do.
    bias = 1 + n_free / n * (1 - inside) / inside if k > 0 else 1.0
    return bias**2 * float(psi @ psi) / max(n - n_free, 1) / (inside * (k / h if k > 0 else 1 / h))


def r2(y: np.ndarray, f: np.ndarray) -> float:
    """1 − Σ(y − f)²/Σ(y − mean)²; NaN where y does not vary."""
    total = float(np.sum(np.square(y - y.mean()))) if len(y) else 0.0
    return 1 - float(np.sum(np.square(y - f))) / total if total > 0 else math.nan


def r2_weighted(z: np.ndarray, fitted: np.ndarray, sigma: np.ndarray) -> float:
    """R² of a transformed response [n] with weights 1/sigma² [n], about its weighted mean: what is left where large
    values of large error do not decide; NaN where it does not vary."""
    weights = np.square(np.min(sigma) / sigma) if len(sigma) else sigma
    if not len(z) or not np.all(np.isfinite(weights)):
        return math.nan
    total = float(weights @ np.square(z - np.average(z, weights=weights)))
    return 1 - float(weights @ np.square(z - fitted)) / total if total > 0 else math.nan


def tau_of(least: float, residual: np.ndarray, se: np.ndarray, scale: np.ndarray, k: float, dof: float) -> float:
    """Tau, the relative scatter in sigma² = se² + (tau·scale)², such that Huber's clipped squared residuals have the
    mean that normal noise would give them; from `least` to 10.

    residual, se, scale [n], in the unit of the response; k: Huber's threshold; dof: degrees of freedom.
    """
    expected = 1.0
    if math.isfinite(k):
        tail = float(stats.norm.sf(k))
        expected = 1 - 2 * tail - 2 * k * float(stats.norm.pdf(k)) + 2 * k * k * tail

    def excess(tau: float) -> float:
        r = np.minimum(np.abs(residual) / np.hypot(se, tau * scale), k)
        return float(np.sum(r * r)) / dof - expected

    low, high = least, MAX_SCATTER
    if excess(low) <= 0:
        return low
    for _ in range(60):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if excess(middle) > 0 else (low, middle)
    return math.sqrt(low * high)


def scatter_of(problem: Problem, f: np.ndarray, n_free: int, rows: np.ndarray | None = None) -> tuple[float, Scatter]:
    """The scatter of responses about predictions f [n] beyond the evaluation noise where it is no part of the weights,
    with its kind; of some of the `rows` [n], which bear their share of the `n_free` constants.

    A logarithmic loss has that of log y, robust unless the loss is of squares; plain least squares that of y; with
    errors that the caller gives, it is what these leave of a relative one.  NaN without degrees of freedom.
    """
    data, law, loss = problem.data, problem.law, problem.loss
    y, rows = data[law.response], np.ones(len(f), bool) if rows is None else rows
    size = np.maximum(np.abs(f), 1e-9 * np.abs(y).max())
    given, k = "sigma" in data, math.inf if math.isinf(loss.k) else DEFAULT_DELTA["huber"]
    kind, least, factor = Scatter.RELATIVE, law.min_scatter, 1.0
    residual, se, scale = y - f, data["sigma" if given else "se"], size
    if loss.log:
        residual, scale = loss.transform(y) - loss.transform(f), np.ones(len(f))
        se = se if given else se / size
    elif not given:
        factor = float(np.abs(y).max()) or 1.0
        kind, least, scale = Scatter.RESPONSE, _TINY_SHARE, np.full(len(f), factor)
    dof = float(np.sum(rows)) * (1 - n_free / len(f))
    if dof <= 0:
        return math.nan, kind
    return factor * tau_of(least, residual[rows], se[rows], scale[rows], k, dof), kind


def by_bits(problem: Problem, f: np.ndarray, n_free: int, *, estimated: bool) -> tuple[BitsQuality, ...]:
    """How well a law with the predictions f [n] describes each bit-width; () for a law without bits.

    estimated: whether the scatter was, with the constants; each bit-width bears its share of the `n_free` constants.
    """
    data, law, sigma, loss = problem.data, problem.law, problem.sigma, problem.loss
    if "P" not in law.columns:
        return ()
    y, found = data[law.response], []
    scale = np.maximum(np.abs(f), 1e-9 * np.abs(y).max())
    for bits in np.unique(data["P"]):
        rows = data["P"] == bits
        dof = float(np.sum(rows)) * max(1 - n_free / len(y), 1 / len(y))
        own = (y[rows] - f[rows], data["se"][rows], scale[rows], loss.k or DEFAULT_DELTA["huber"], dof)
        tau = tau_of(law.min_scatter, *own) if estimated else scatter_of(problem, f, n_free, rows)[0]
        found.append(
            BitsQuality(
                bits=float(bits),
                n_points=int(np.sum(rows)),
                r2=r2(y[rows], f[rows]),
                r2_weighted=r2_weighted(loss.transform(y[rows]), loss.transform(f[rows]), sigma[rows]),
                scatter=tau,
            )
        )
    return tuple(found)
