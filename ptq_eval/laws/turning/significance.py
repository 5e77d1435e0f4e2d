"""Does a loss curve rise at its end, or does it only scatter?  A test of one curve, and control over many.

The null hypothesis is composite: a mean that never rises (flat, falling, or falling and then flat), with scatter that
may be autocorrelated from checkpoint to checkpoint.

* The tail begins at the first checkpoint whose loss is at or below the mean of all later ones.  Its rise is Σ c_i y_i
  over its m checkpoints, c being linear in i with mean 0 and Σ c² = 1: never positive in the mean under the null.
* The scatter comes from the whole curve.  1, t, e^(−rt) and, from `MIN_FOR_BEND` checkpoints on, t² are fitted, with
  t = 0…1 the place among the n checkpoints and the rate r that fits best.  The powers of t that follow are made
  orthogonal to these and to each other; the first floor(√n) of them measure the scatter at frequencies so low that
  autocorrelation raises it nearly as much as the rise (the idea of Müller 2007, J. Econometrics 141).
* The statistic is rise/sqrt(scatter² + evaluation variance of the rise).  Its distribution under the null is that of
  flat curves whose noise has a lag-1 correlation drawn uniformly from 0 to `MOST_CORRELATED`, simulated for these n
  and m; where the tail is the whole curve, for curves whose lowest checkpoint is neither the first nor the last.  A
  falling part enters neither the rise nor, beyond what the fit absorbs, the scatter other than by enlarging it, so
  that curves which fall first are called rising less often.

Of many lines, those of one bit-width are a family, controlled by Hochberg's step-up procedure (1988): the chance of
any wrong claim among them is at most the level, if their errors depend positively (quantizers of one run share its
checkpoints), and it loses less than Holm's where most of them turn.  A line is only tested if that of the same run and
quantizer with the next fewer bits rises, because fewer bits turn first; so several bit-widths cost nothing where none
turns.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from functools import lru_cache
from typing import TypeVar

import numpy as np

Line = TypeVar("Line", bound=Hashable)

SIGNIFICANCE = 0.05
"""The probability, under the null hypothesis, of calling a rise significant."""
POWER = 0.8
MIN_TO_TEST = 5
"""With fewer checkpoints nothing is left to measure the scatter with."""
MIN_FOR_BEND = 8
MOST_CORRELATED = 0.5
RATES = (1.0, 2.0, 3.0, 4.5, 6.5, 9.0, 13.0, 20.0)
"""How fast the fitted fall decays over the curve; a grid, close enough for any fall."""
REPLICATES, POWER_REPLICATES = 20_000, 2_000
_LARGEST = 4_000_000
"""Numbers of a simulation, so that a thousand checkpoints fit in memory."""


def tail_starts(curves: np.ndarray) -> np.ndarray:
    """For each curve [replicates, n] the index at which its tail begins; n where it falls to the last checkpoint."""
    n = curves.shape[1]
    later = np.cumsum(curves[:, :0:-1], axis=1)[:, ::-1] / np.arange(n - 1, 0, -1)
    begun = curves[:, :-1] <= later
    return np.where(begun.any(axis=1), begun.argmax(axis=1), n)


def contrast(m: int) -> np.ndarray:
    """The weights [m] of the rise of a tail of m checkpoints: linear, with mean 0 and sum of squares 1."""
    weights = np.arange(m) - (m - 1) / 2
    return weights / np.linalg.norm(weights)


def scatter(curves: np.ndarray) -> np.ndarray:
    """The standard deviation of the checkpoints about a smooth curve at low frequencies, for each curve
    [replicates, n], n at least `MIN_TO_TEST`."""
    centered = curves - curves.mean(axis=1, keepdims=True)
    total = np.sum(np.square(centered), axis=1)
    best, found = np.full(len(curves), math.inf), np.zeros(len(curves))
    for fitted, rest in _bases(curves.shape[1]):
        misfit = total - np.sum(np.square(centered @ fitted), axis=1)
        better = misfit < best
        best = np.where(better, misfit, best)
        found = np.where(better, np.mean(np.square(centered @ rest), axis=1), found)
    return np.sqrt(found)


def p_value(curve: np.ndarray, start: int, variance: float) -> float:
    """The probability of a rise at least as significant if the loss never rises.

    curve [n]: losses in the order of D; start: where its tail begins; variance: evaluation variance of the rise of the
    tail.  1 where the lowest loss is the last.
    """
    n, lowest = len(curve), int(np.argmin(curve))
    m = n - start
    if m < 2 or lowest == n - 1:
        return 1.0
    found = float(contrast(m) @ curve[start:]) / math.sqrt(float(scatter(curve[None])[0]) ** 2 + variance)
    reference = null_distribution(n, m, inside=m == n and lowest > 0)
    reached = len(reference) - int(np.searchsorted(reference, found))
    return (1 + reached) / (1 + len(reference))


@lru_cache(maxsize=256)
def null_distribution(n: int, m: int, *, inside: bool) -> np.ndarray:
    """The statistic under the null hypothesis, sorted, for tails of m among n checkpoints.

    inside: where the lowest checkpoint is the first or the last, there is no turn inside (−infinity).
    """
    curves, scale = _noise(n)
    tail = curves[:, n - m :]
    begins = tail[:, 0] <= tail[:, 1:].mean(axis=1)
    found = (tail @ contrast(m) / scale)[begins]
    if inside:
        lowest = np.argmin(curves[begins], axis=1)
        found[(lowest == 0) | (lowest == n - 1)] = -math.inf
    return np.sort(found)


@lru_cache(maxsize=64)
def detectable(n: int) -> float:
    """The rise from the lowest to the last of n checkpoints that is significant with probability `POWER`, in units of
    `scatter`'s median; infinite where no rise is.

    The loss falls and rises along a parabola about the middle of the range.
    """
    curves, scale = (values[:POWER_REPLICATES] for values in _noise(n))
    shape = np.square(np.linspace(-1, 1, n))
    shape = (shape - shape.min()) / (shape.max() - shape.min())

    def power(rise: float) -> float:
        return _share_significant(curves + rise * shape)

    low, high = 0.0, 1e3
    if power(high) < POWER:
        return math.inf
    while high - low > 0.02 * high:
        middle = math.sqrt(low * high) if low else 0.1 * high
        low, high = (middle, high) if power(middle) < POWER else (low, middle)
    return high / float(np.median(scale))


def _share_significant(curves: np.ndarray) -> float:
    n = curves.shape[1]
    starts, scale, lowest = tail_starts(curves), scatter(curves), np.argmin(curves, axis=1)
    inside, claims = (lowest > 0) & (lowest < n - 1), 0
    for start in np.unique(starts[starts < n - 1]):
        rows, m = inside & (starts == start), n - int(start)
        critical = np.quantile(null_distribution(n, m, inside=m == n), 1 - SIGNIFICANCE)
        claims += int(np.sum(curves[rows, start:] @ contrast(m) / scale[rows] > critical))
    return claims / len(curves)


@lru_cache(maxsize=16)
def _noise(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Flat curves [replicates, n] with autocorrelated noise of variance 1, and their `scatter`."""
    rng = np.random.default_rng(n)
    count = max(min(2 * REPLICATES, _LARGEST // n), 2 * POWER_REPLICATES)
    correlation = rng.uniform(0, MOST_CORRELATED, count)
    curves = rng.standard_normal((count, n))
    for i in range(1, n):
        curves[:, i] = correlation * curves[:, i - 1] + np.sqrt(1 - correlation**2) * curves[:, i]
    return curves, scatter(curves)


@lru_cache(maxsize=64)
def _bases(n: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """For each rate: orthonormal columns [n, p] of what is fitted and [n, k] of what measures the scatter."""
    degree = 2 if n >= MIN_FOR_BEND else 1
    x = np.linspace(-1, 1, n)
    powers = np.polynomial.chebyshev.chebvander(x, degree + math.isqrt(n))  # they span the same as powers of t
    bases = []
    for rate in RATES:
        columns = [powers[:, : degree + 1], np.exp(-rate * (x + 1) / 2)[:, None], powers[:, degree + 1 :]]
        basis, _ = np.linalg.qr(np.hstack(columns))
        bases.append((basis[:, : degree + 2], basis[:, degree + 2 :]))
    return bases


def adjusted(lines: Mapping[Line, tuple[Hashable, float, float]]) -> dict[Line, float]:
    """The adjusted p-value of each line, to be held against the level.

    lines: by name, the run and quantizer, the bit-width, and the p-value (NaN where not tested, then NaN here too).
    """
    found: dict[Line, float] = {name: math.nan for name in lines}
    tested = {name: line for name, line in lines.items() if not math.isnan(line[2])}
    chains: dict[Hashable, float] = {}
    for bits in sorted({bits for _, bits, _ in tested.values()}):
        family = sorted((p, i, name) for i, (name, (_, width, p)) in enumerate(tested.items()) if width == bits)
        least = 1.0
        for rank, (p, _, name) in enumerate(reversed(family), 1):
            least = min(least, rank * p)
            found[name] = least
        for _, _, name in family:
            chain = tested[name][0]
            found[name] = chains[chain] = max(found[name], chains.get(chain, 0.0))
    return found
