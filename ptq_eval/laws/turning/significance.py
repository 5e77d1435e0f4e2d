"""Does a loss curve rise at its end, or does it only scatter?  A test of one curve, and control over many.

The null hypothesis is composite: a mean that never rises (flat, falling, or falling and then flat), with scatter that
may be autocorrelated from checkpoint to checkpoint.

* The statistic is a likelihood ratio: how much better does the best curve that falls and then rises fit than the best
  that falls and then stays flat (`shapes`)?  Both choose the shape and the end of their fall; a fall of two columns
  costs log(m)/2 more than a fall of one, for m groups of checkpoints.
* Its distribution under the null hypothesis comes from the best curve without a rise plus simulated scatter (a
  parametric bootstrap): normal, of the standard deviation about the better of the two curves, with a lag-1 correlation
  drawn uniformly from 0 to `MOST_CORRELATED`.  Each simulated curve is fitted anew.
* A turn is only inside the range if the lowest checkpoint is neither the first nor the last.  So where that of the
  curve is inside, a simulated curve whose lowest is not does not count.

The lines of one bit-width are a family, controlled by Hochberg's step-up procedure (1988): the chance of
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

from ptq_eval.laws.turning import shapes

Line = TypeVar("Line", bound=Hashable)

SIGNIFICANCE = 0.05
"""The probability, under the null hypothesis, of calling a rise significant."""
POWER = 0.8
MIN_TO_TEST = 5
"""With fewer checkpoints nothing is left to measure the scatter with."""
MOST_CORRELATED = 0.5
REPLICATES, FIRST_REPLICATES = 2000, 300
POWER_CURVES, POWER_REPLICATES = 300, 59
_CLEAR = 0.2
"""The p-value above which the first replicates are enough."""


def p_value(curve: np.ndarray, *, replicates: int = REPLICATES) -> float:
    """The probability of a rise at least as significant if the loss never rises; 1 where the lowest loss is the last.

    curve [n]: losses in the order of D, n at least `MIN_TO_TEST`; replicates: `REPLICATES` at most.
    """
    n, lowest = len(curve), int(np.argmin(curve))
    if lowest == n - 1:
        return 1.0
    found = shapes.fit(curve[None])
    noise = _noise(n)[:replicates] * _of_checkpoint(found.scatter, n)
    reached = count = 0
    for end in (min(FIRST_REPLICATES, replicates), replicates):
        reached += int(np.sum(_statistics(found.null + noise[count:end], lowest > 0) >= found.gain[0]))
        count = end
        if reached > _CLEAR * count:
            break
    return (1 + reached) / (1 + count)


def scatter(curve: np.ndarray) -> float:
    """The standard deviation of one checkpoint about the best curve [n] that falls and then rises."""
    return float(_of_checkpoint(shapes.fit(curve[None]).scatter, len(curve))[0])


def autocorrelated(rng: np.random.Generator, count: int, n: int) -> np.ndarray:
    """Scatter of variance 1 of `count` curves [count, n], each with a lag-1 correlation of its own, uniform from 0 to
    `MOST_CORRELATED`."""
    correlation = rng.uniform(0, MOST_CORRELATED, count)
    curves = rng.standard_normal((count, n))
    for i in range(1, n):
        curves[:, i] = correlation * curves[:, i - 1] + np.sqrt(1 - correlation**2) * curves[:, i]
    return curves


def _statistics(curves: np.ndarray, inside: bool) -> np.ndarray:
    """The likelihood ratios of curves [R, n]; with `inside`, −infinity where the lowest is the first or the last."""
    found = np.full(len(curves), -math.inf)
    lowest = np.argmin(curves, axis=1)
    rows = (lowest > 0) & (lowest < curves.shape[1] - 1) if inside else np.ones(len(curves), bool)
    if rows.any():
        found[rows] = shapes.fit(curves[rows]).gain
    return found


def _of_checkpoint(of_group: np.ndarray, n: int) -> np.ndarray:
    """The standard deviation of one of n checkpoints, from a group mean's, at half of `MOST_CORRELATED`."""
    variances = []
    for size in np.diff(shapes.bounds(n)):
        lags = np.arange(size)
        weights = np.where(lags == 0, 1, 2) * (size - lags)
        variances.append(float(weights @ (MOST_CORRELATED / 2) ** lags) / size**2)
    return of_group / math.sqrt(float(np.mean(variances)))


@lru_cache(maxsize=16)
def _noise(n: int) -> np.ndarray:
    """What `autocorrelated` gives for the test itself [REPLICATES, n], the same at every call."""
    return autocorrelated(np.random.default_rng(n), REPLICATES, n)


@lru_cache(maxsize=64)
def detectable(n: int) -> float:
    """The rise from the lowest to the last of n checkpoints that is significant with probability `POWER`, in units of
    `scatter`'s median for flat curves; infinite where no rise up to a hundred times the true scatter is.

    The loss falls and rises along a parabola about the middle of the range.
    """
    noise = _noise(n)[:POWER_CURVES]
    again = _noise(n)[POWER_CURVES:][
        np.random.default_rng(n).integers(REPLICATES - POWER_CURVES, size=(POWER_CURVES, POWER_REPLICATES))
    ]
    shape = np.square(np.linspace(-1, 1, n))
    shape = (shape - shape.min()) / (shape.max() - shape.min())

    def power(rise: float) -> float:
        curves = noise + rise * shape
        found, gains = shapes.fit(curves), _statistics(curves, inside=True)
        simulated = found.null[:, None] + _of_checkpoint(found.scatter, n)[:, None, None] * again
        reached = _statistics(simulated.reshape(-1, n), inside=True).reshape(again.shape[:2]) >= gains[:, None]
        p = (1 + np.sum(reached, axis=1)) / (1 + POWER_REPLICATES)
        return float(np.mean(p <= SIGNIFICANCE))

    low, high = 1.0, 100.0
    if power(high) < POWER:
        return math.inf
    while high > 1.03 * low:
        middle = math.sqrt(low * high)
        low, high = (middle, high) if power(middle) < POWER else (low, middle)
    return high / float(np.median(_of_checkpoint(shapes.fit(noise).scatter, n)))


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
