"""Where a loss curve turns upward, as observed: no law is assumed.

The lowest checkpoint of a noisy curve is nearly always somewhere inside the range, also when nothing turns.
A minimum therefore counts as interior only if it is neither the first nor the last checkpoint and the loss
at the last one exceeds it by more than two standard errors.  That error has two parts:

* evaluation: the standard error of the paired difference between the two checkpoints over evaluation windows;
* training: checkpoints scatter about a smooth curve by more than the windows can tell.  The scatter is
  estimated from third differences in log D, which vanish for any parabola (a difference-based variance
  estimator in the manner of Gasser, Sroka and Jennen-Steinmetz 1986), by their median, so that one jump does
  not decide.  Of four or five checkpoints there are one or two such differences, and their root mean square is
  taken; that also counts the bend of a steep early fall as scatter, which may hide a turn.
  With fewer than four checkpoints the scatter is unknown, and nothing is claimed.

Of perfectly flat curves that scatter by 0.01 nats, 12 % still pass with four or five checkpoints and 13 % with nine
(43, 52 and 72 % by the first part alone): the lowest was chosen for being low.  A parabola with its minimum at the
second of four or five that rises by 0.2 nats is found in 99 and 95 %.  Look at the size of the rise, not only
at its significance.

The interval of the place comes from drawing windows and scatter anew.  It is never narrower than the two
neighbouring checkpoints, because nothing was measured between them, and it is open on the right where the
rise is not significant.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ptq_eval.laws.base import SIGNIFICANT, Estimate
from ptq_eval.laws.fit.bootstrap import window_noise

MIN_FOR_SCATTER = 4
MIN_FOR_MEDIAN = 6


@dataclass(frozen=True)
class TurningPoint:
    """The observed minimum of a loss curve over D.

    `tokens` is the D of the lowest checkpoint; `place` the vertex of the parabola in log D through it and its
    neighbours, with its interval; `rise` the loss at the last checkpoint minus the lowest, with its standard
    error (NaN where no windows are known or too few checkpoints), in nats per token; `evaluation_se` the part of
    that error that the windows explain; `n_checkpoints` how many losses were known.
    """

    tokens: float
    place: Estimate
    interior: bool
    rise: float
    rise_se: float
    evaluation_se: float = math.nan
    n_checkpoints: int = 0


def turning_point(
    tokens: np.ndarray,
    loss: np.ndarray,
    windows: np.ndarray | None,
    *,
    seed: int = 0,
    n_boot: int = 200,
    level: float = 0.9,
) -> TurningPoint:
    """The minimum of `loss` [n] (nats per token) over `tokens` [n], with `windows` [n, n_windows] where known.

    Losses that are not finite are excluded; if none remains, everything is NaN.
    """
    known = np.flatnonzero(np.isfinite(loss))
    if not len(known):
        return TurningPoint(math.nan, Estimate(math.nan), False, math.nan, math.nan)
    tokens, first = np.unique(np.asarray(tokens, float)[known], return_index=True)
    rows = known[first]
    loss, x = np.asarray(loss, float)[rows], np.log(tokens)
    paired = windows[rows] if windows is not None and windows.shape[1] > 1 else None
    i, last = int(np.argmin(loss)), len(loss) - 1
    scatter = checkpoint_scatter(x, loss)
    rise, rise_se, evaluation_se = float(loss[last] - loss[i]), math.nan, math.nan
    noise = np.nan_to_num(scatter) * np.random.default_rng([seed, 1]).standard_normal((n_boot, len(loss)))
    if paired is not None:
        difference = paired[last] - paired[i]
        evaluation_se = float(difference.std(ddof=1)) / math.sqrt(len(difference))
        rise_se = math.hypot(evaluation_se, math.sqrt(2) * scatter)
        noise += window_noise(paired, n_boot, seed)
    interior = bool(0 < i < last and rise > SIGNIFICANT * rise_se)
    drawn = np.exp(vertices(x, loss + noise))
    tail = (1 - level) / 2
    low, high = np.quantile(drawn, [tail, 1 - tail]) if n_boot else (tokens[i], tokens[i])
    low = min(float(low), tokens[i - 1]) if i else 0.0
    high = max(float(high), tokens[i + 1]) if interior else math.inf
    value = float(np.exp(vertices(x, loss[None])[0])) if 0 < i < last else float(tokens[i])
    place = Estimate(value, min(float(low), value), max(float(high), value))
    return TurningPoint(float(tokens[i]), place, interior, rise, rise_se, evaluation_se, len(loss))


def vertices(x: np.ndarray, curves: np.ndarray) -> np.ndarray:
    """For each curve [replicates, n] over x [n]: the vertex of the parabola around its lowest point, in x.

    Where the lowest point is the first or the last, that point.
    """
    lowest = np.argmin(curves, axis=1)
    if len(x) < 3:
        return x[lowest]
    middle = np.clip(lowest, 1, len(x) - 2)
    rows = np.arange(len(curves))
    left, right = x[middle - 1] - x[middle], x[middle + 1] - x[middle]
    fall, climb = (curves[rows, middle + s] - curves[rows, middle] for s in (-1, 1))
    curvature = fall * right - climb * left
    shift = 0.5 * (fall * right**2 - climb * left**2) / np.where(curvature > 0, curvature, np.inf)
    return np.where(lowest == middle, x[middle] + np.clip(shift, left, right), x[lowest])


def checkpoint_scatter(x: np.ndarray, loss: np.ndarray) -> float:
    """Standard deviation of checkpoints about a smooth curve, from normalised third differences over x
    [n]; NaN where there are none."""
    if len(x) < MIN_FOR_SCATTER:
        return math.nan
    differences = []
    for start in range(len(x) - 3):
        nodes = x[start : start + 4]
        gaps = nodes[:, None] - nodes[None, :] + np.eye(4)
        weights = 1 / np.prod(gaps, axis=1)
        differences.append(weights @ loss[start : start + 4] / np.linalg.norm(weights))
    if len(x) < MIN_FOR_MEDIAN:
        return float(np.sqrt(np.mean(np.square(differences))))
    return float(np.median(np.abs(differences)) / 0.6745)
