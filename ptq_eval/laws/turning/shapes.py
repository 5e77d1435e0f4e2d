"""Curves that fall and then stay flat, and the same with a rise: which of them lie closest to a loss curve?

With t = 0…1 the place among the n checkpoints (in the order of D) and c where the fall ends, a fall is a·f + b·f² with
f = e^(−rt) until c and constant after, falling throughout; a rise adds g·h, g > 0, with h = 0 until c and
(1 − e^(−sv))/(1 − e^(−s)) after, v from 0 at c to 1 at the last checkpoint.  r, s and c are on grids, so that all fits
are projections onto columns known beforehand.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

GROUPS = 9
"""More checkpoints than these are averaged with their neighbours, which takes away most of their autocorrelation."""
RATES = (0.5, 2.0, 4.0, 8.0, 16.0)
BENDS = (-3.0, 0.01, 4.0)
"""s of a rise that steepens, a straight one and one that saturates."""
MIN_FOR_SQUARE = 8
"""The groups from which f² is fitted too."""
_ALIKE = 0.02
"""Columns closer than this are fitted once."""
_EXACT = 1e-10
"""The share of the sum of squares below which a fit counts as exact."""


@dataclass(frozen=True)
class Fits:
    """For each of R curves: `gain`, how much better the best rising curve fits than the best that never rises (a
    logarithm of a likelihood ratio, 0 or more); `null` [R, n], the latter; `scatter`, the standard deviation about the
    former of one group of checkpoints."""

    gain: np.ndarray
    null: np.ndarray
    scatter: np.ndarray


@dataclass(frozen=True)
class _Shapes:
    """J falls and K rises for n checkpoints in m groups, as vectors whose products with a curve [m] a fit needs.

    first, second [m, J]: orthonormal columns of each fall (0 where it has none); start, end [m, J]: its derivative with
    respect to f where f is 0 and 1; used [J]: how many columns; weights [J, 2, m]: the coefficients of raw [J, n, 2].
    Each rise adds to the fall of index of [K] the orthonormal column rise [m, K]; its derivatives are then those of
    risen_start, risen_end [m, K].
    """

    first: np.ndarray
    second: np.ndarray
    start: np.ndarray
    end: np.ndarray
    used: np.ndarray
    weights: np.ndarray
    raw: np.ndarray
    of: np.ndarray
    rise: np.ndarray
    risen_start: np.ndarray
    risen_end: np.ndarray


def bounds(n: int) -> np.ndarray:
    """Where the groups of n checkpoints begin, and n: at most `GROUPS` groups of nearly equal size."""
    m = min(n, GROUPS)
    return np.round(np.arange(m + 1) * n / m).astype(int)


def grouped(values: np.ndarray) -> np.ndarray:
    """Means over groups along the last axis."""
    edges = bounds(values.shape[-1])
    return np.add.reduceat(values, edges[:-1], axis=-1) / np.diff(edges)


def fit(curves: np.ndarray) -> Fits:
    """The best curves with and without a rise for each of `curves` [R, n]."""
    shapes, y = _shapes(curves.shape[1]), grouped(curves - curves.mean(axis=1, keepdims=True))
    m = y.shape[1]
    y = y - y.mean(axis=1, keepdims=True)
    total = np.sum(np.square(y), axis=1)
    price = m ** (shapes.used / (m - 1))
    left = total[:, None] - np.square(y @ shapes.first) - np.square(y @ shapes.second)
    up = y @ shapes.rise
    left_risen = left[:, shapes.of] - np.square(up)
    falls = (y @ shapes.start >= 0) & (y @ shapes.end >= 0)
    falls_first = (y @ shapes.risen_start >= 0) & (y @ shapes.risen_end >= 0) & (up > 0)
    fitted, risen = (
        np.where(falls, left * price, math.inf),
        np.where(falls_first, left_risen * price[shapes.of], math.inf),
    )
    rows, best, with_rise = np.arange(len(y)), fitted.argmin(axis=1), risen.argmin(axis=1)
    least = _EXACT * total + np.finfo(float).tiny
    ratio = np.maximum(fitted[rows, best], least) / np.maximum(risen[rows, with_rise], least)
    gain = 0.5 * (m - 1) * np.log(np.maximum(ratio, 1.0))
    squares = np.where(ratio > 1, left_risen[rows, with_rise], left[rows, best])
    freedom = np.maximum(m - 3 - shapes.used[np.where(ratio > 1, shapes.of[with_rise], best)], 1)
    scatter = np.sqrt(np.maximum(squares, 0.0) / freedom)
    weights = np.einsum("rkm,rm->rk", shapes.weights[best], y)
    return Fits(gain, np.einsum("rnk,rk->rn", shapes.raw[best], weights), scatter)


@lru_cache(maxsize=64)
def _shapes(n: int) -> _Shapes:
    edges = bounds(n)
    m, ends = len(edges) - 1, (edges[:-1] + edges[1:] - 1) / 2 / (n - 1)
    falls, rises, raw, used, of = [], [], [], [], []
    for place, columns in _falls(n, ends):
        k = columns.shape[1]
        means = _centered(columns)
        a, b = _padded(np.linalg.pinv(means))
        falls.append([*_padded(np.linalg.qr(means)[0].T), a, a + 2 * b, a, b])
        used.append(k)
        raw.append(np.pad(columns, ((0, 0), (0, 2 - k))))
        for rise in _rises(n, ends[place]) if place < m - 1 else ():
            risen = np.hstack([means, _centered(rise[:, None])])
            last = np.linalg.qr(risen)[0][:, -1]
            a, b = _padded(np.linalg.pinv(risen)[:k])
            rises.append([last * np.sign(last @ risen[:, -1]), a, a + 2 * b])
            of.append(len(used) - 1)
    first, second, start, end, *weights = np.moveaxis(np.array(falls), 0, -1)
    rise, risen_start, risen_end = np.moveaxis(np.array(rises), 0, -1)
    return _Shapes(
        first,
        second,
        start,
        end,
        np.array(used),
        np.moveaxis(np.array(weights), -1, 0),
        np.array(raw),
        np.array(of),
        rise,
        risen_start,
        risen_end,
    )


def _centered(columns: np.ndarray) -> np.ndarray:
    """The means of columns [n, k] over groups, less their mean."""
    means = grouped(columns.T).T
    return means - means.mean(axis=0)


def _padded(rows: np.ndarray) -> np.ndarray:
    """Two rows: `rows` [0 to 2, m], then zeros."""
    return np.pad(rows, ((0, 2 - len(rows)), (0, 0)))


def _falls(n: int, ends: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """The group in which a fall ends, and its columns [n, 0 to 2]; without columns, a flat curve."""
    t = np.linspace(0, 1, n)
    yield 0, np.empty((n, 0))
    for place in range(1, len(ends)):
        known: list[np.ndarray] = []
        for rate in RATES:
            f = np.exp(-rate * np.minimum(t, ends[place]))
            f = (f - f[-1]) / (f[0] - f[-1])
            if any(np.abs(f - other).max() < _ALIKE for other in known):
                continue
            known.append(f)
            yield place, f[:, None]
            if len(ends) >= MIN_FOR_SQUARE and place > 2:
                yield place, np.stack([f, f * f], axis=1)


def _rises(n: int, end: float) -> Iterator[np.ndarray]:
    v = np.maximum(np.linspace(0, 1, n) - end, 0) / (1 - end)
    known: list[np.ndarray] = []
    for bend in BENDS:
        rise = np.expm1(-bend * v) / math.expm1(-bend)
        if all(np.abs(rise - other).max() >= _ALIKE for other in known):
            known.append(rise)
            yield rise
