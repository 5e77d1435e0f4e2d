"""What the decay of the learning rate did to a curve so far, and what it will do.

S is the share of the decay that is done, 0 at the peak of the learning rate and 1 where it reached zero.  Beyond the
last checkpoint S follows the schedule that the checkpoints show: a cosine of D to zero or to a tenth of the peak, or a
straight line through the last two, whichever fits better.  Where the learning rate has not begun to fall, or is not
known, S stays as it is.

The loss changes by c·(S − S_n), log delta likewise; c and the exponent of a power of D are fitted together.  Few
checkpoints tell these two apart, so c has a normal prior, and its standard error is a part of the forecast's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

LEAST_DECAY = 0.005
"""A smaller share counts as none."""
FIT = 0.01
"""The most by which a cosine may miss a share."""
FLOORS = (0.0, 0.1)
"""Final learning rates of cosine schedules, as shares of the peak."""
ENDS = np.geomspace(1, 30, 400)
"""Ends of cosine schedules that are tried, in units of the last D."""
LOSS_PRIOR = (-0.03, 0.03)
"""Mean and standard deviation of c of the loss, as shares of the loss: to zero, a loss of 3 nats falls by 0.1."""
DELTA_PRIOR = (0.5, 0.5)
"""The same of log delta, which a decay raises."""
STEPS = 200
"""Places at which the learning rate to come is integrated."""
SCATTER, DELTA_SCATTER = 0.002, 0.1
"""Scatter about the fitted curve that the error of c assumes: of losses as a share of the loss, and of log delta."""


@dataclass(frozen=True)
class Decay:
    """c, its standard error, and S − S_n at any later x = log D: in nats, or of log delta."""

    effect: float
    error: float
    ahead: Callable[[np.ndarray], np.ndarray]

    def mean(self, x: np.ndarray) -> np.ndarray:
        """What the decay to come is expected to add at x [m]."""
        return self.effect * self.ahead(x)

    def spread(self, x: np.ndarray) -> np.ndarray:
        """The standard error of that, [m]."""
        return self.error * np.abs(self.ahead(x))


def later_phase(x: np.ndarray, phase: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """S at later log D, from S [n] at log D = x [n]; NaN where S is not known."""
    last = phase[-1]
    if not np.all(np.isfinite(phase)) or last <= LEAST_DECAY or len(x) < 2:
        return lambda later: np.full_like(later, last)
    peak, tokens = len(phase) - 1 - int(np.argmin(phase[::-1])), np.exp(x - x[-1])
    line, least = slice(peak + 1, None), FIT
    if len(phase[line]) >= 3:
        least = min(
            FIT, float(np.abs(np.polyval(np.polyfit(tokens[line], phase[line], 1), tokens[line]) - phase[line]).max())
        )
    cosine = _cosine(tokens[peak:], 1 - phase[peak:], least)
    slope = max((last - phase[-2]) / -np.expm1(x[-2] - x[-1]), 0.0)

    def share(later: np.ndarray) -> np.ndarray:
        return cosine(later) if cosine else last + slope * (later - 1)

    return lambda later: np.clip(share(np.exp(later - x[-1])), last, 1.0)


def progress(x: np.ndarray, phase: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Log of the learning rate's integral over D at any log D, from S [n] at log D = x [n].

    The rate is in units of its peak, which it has at D = 0, so that a constant rate gives log D.  So does an S that is
    not known, or is not of one schedule: one that falls again, or of branches that each end at a rate of zero.
    """
    known = bool(np.all(np.isfinite(phase)))
    if not known or np.ptp(phase) <= LEAST_DECAY or np.any(np.diff(phase) < -FIT) or np.any(phase[:-1] >= 1):
        return lambda at: at
    before, later = np.append(0.0, np.exp(x - x[-1])), later_phase(x, phase)
    past = np.cumsum(np.append(0.0, _trapezoids(before, 1 - np.append(0.0, phase))))

    def reached(at: np.ndarray) -> np.ndarray:
        tokens = np.exp(at - x[-1])
        ahead = np.geomspace(1.0, max(float(tokens.max(initial=1.0)), 1 + 1e-9), STEPS)
        added = np.cumsum(np.append(0.0, _trapezoids(ahead, 1 - later(np.log(ahead) + x[-1]))))
        places, sums = np.append(before, ahead[1:]), np.append(past, past[-1] + added[1:])
        return x[-1] + np.log(np.interp(tokens, places, sums))

    return reached


def _trapezoids(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.diff(x) * (y[1:] + y[:-1]) / 2


def _cosine(tokens: np.ndarray, rates: np.ndarray, least: float) -> Callable[[np.ndarray], np.ndarray] | None:
    """S at later D from learning rates [n] relative to any constant, D [n] in units of the last.

    None where every cosine misses one of them by `least` or more.
    """
    if len(tokens) < 3:
        return None
    best = (least, 1.0, 0.0, 1.0)
    for floor in FLOORS:
        shapes = _shape(tokens, ENDS[:, None], floor)
        factors = shapes @ rates / np.sum(shapes**2, axis=1)
        missed = np.abs(rates - factors[:, None] * shapes).max(axis=1)
        place = int(np.argmin(missed))
        best = min(best, (float(missed[place]), float(ENDS[place]), floor, float(factors[place])))
    missed, end, floor, factor = best
    return (lambda later: 1 - factor * _shape(later, end, floor)) if missed < least else None


def _shape(tokens: np.ndarray, end: np.ndarray | float, floor: float) -> np.ndarray:
    return floor + (1 - floor) * (1 + np.cos(np.pi * np.minimum(tokens / end, 1.0))) / 2


def fitted(
    x: np.ndarray,
    y: np.ndarray,
    phase: np.ndarray,
    exponents: np.ndarray,
    prior: tuple[float, float],
    noise: np.ndarray,
) -> Decay | None:
    """c of y [n] = a + b·e^(g(x − x[-1])) + c·S with one of the exponents g, or a + g·x + c·S with none.

    noise [n]: standard deviations of y; prior: mean and standard deviation of c.  None where S is not known or stays.
    """
    if not np.all(np.isfinite(phase)) or np.ptp(phase) <= LEAST_DECAY:
        return None
    mean, error = prior
    shapes = np.exp(exponents[:, None] * (x - x[-1])) if len(exponents) else (x - x[-1])[None]
    columns = np.stack(np.broadcast_arrays(np.ones_like(shapes), shapes, phase), axis=2) / noise[:, None]
    rows = np.broadcast_to(np.array([0.0, 0.0, 1 / error]), (len(shapes), 1, 3))
    columns, target = np.concatenate([columns, rows], axis=1), np.append(y / noise, mean / error)
    found = np.linalg.pinv(columns) @ target
    squares = np.sum((target - np.einsum("gij,gj->gi", columns, found)) ** 2, axis=1)
    shares = np.exp(-0.5 * (squares - squares.min()))
    shares /= shares.sum()
    variances = np.linalg.pinv(np.swapaxes(columns, 1, 2) @ columns)[:, 2, 2]
    effect = float(shares @ found[:, 2])
    later, now = later_phase(x, phase), phase[-1]
    spread = float(np.sqrt(shares @ (variances + (found[:, 2] - effect) ** 2)))
    return Decay(effect, spread, lambda at: later(at) - now)
