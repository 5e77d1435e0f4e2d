"""Curves that may continue a measured one.

A candidate takes the `History` of one curve in x = log D and returns a function of x, or None where the points do not
determine it.  Each has one to three constants: four to twenty checkpoints determine no more, and what a curve misses
is accounted for by the rolling origin.  Every curve is shifted (deltas: scaled) to pass through the last checkpoint,
which is known much better than any curve through all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from ptq_eval.laws.forecast import decay
from ptq_eval.laws.forecast.decay import Decay

Curve = Callable[[np.ndarray], np.ndarray]

RECENT = 5
"""Checkpoints that the local candidates use."""
SCATTER = 0.2
"""Relative scatter of deltas about a curve that their weights assume beside their standard errors."""
EXPONENTS = np.linspace(0.02, 1.6, 80)
DECAYS = np.linspace(0.05, 1.5, 59)
_TINY = 1e-12
FLATTENING = 0.35
"""How fast the damped trend flattens, per unit of log D."""


@dataclass(frozen=True)
class History:
    """One curve up to some checkpoint: x = log D [n], increasing; y [n] and its noise [n], nats per token.

    `phase` [n] is the share of the learning rate's decay that is done (0 to 1), NaN where unknown.  `siblings` are the
    curves of the other bit-widths of one quantizer, as arrays x, y, noise, whose points after x[-1] are not used.
    `se` [n] are the standard errors of deltas, a part of their noise; None where that is all that is known.
    """

    x: np.ndarray
    y: np.ndarray
    noise: np.ndarray
    phase: np.ndarray
    siblings: tuple[tuple[np.ndarray, np.ndarray, np.ndarray], ...] = ()
    se: np.ndarray | None = None

    def progress(self, x: np.ndarray) -> np.ndarray:
        """What has been trained by log D = x [m]: the log of the learning rate's integral (`decay.progress`)."""
        return decay.progress(self.x, self.phase)(x)

    def part(self, rows: slice) -> History:
        """Some of the checkpoints."""
        se = None if self.se is None else self.se[rows]
        return History(self.x[rows], self.y[rows], self.noise[rows], self.phase[rows], self.siblings, se)

    @property
    def floor(self) -> np.ndarray:
        """Below what deltas are noise, [n]: two standard deviations, but at most half of a delta that is beyond two
        standard errors, because deltas that are clearly above zero may scatter by more than half of themselves."""
        most = np.inf if self.se is None else np.maximum(2 * self.se, self.y / 2)
        return np.minimum(2 * self.noise, most) + _TINY

    @property
    def positive(self) -> np.ndarray:
        """Deltas of which a logarithm can be taken, [n]: at least `floor`."""
        return np.maximum(self.y, self.floor)

    def recent(self) -> History:
        """The last `RECENT` checkpoints."""
        return self.part(slice(-RECENT, None))

    @property
    def weights(self) -> np.ndarray:
        """Inverse variances of deltas about a curve, [n]."""
        return _weights(self.y, self.noise)


Candidate = Callable[[History], Curve | None]


def _weights(y: np.ndarray, noise: np.ndarray) -> np.ndarray:
    return 1.0 / (noise**2 + (SCATTER * y) ** 2 + _TINY)


def _least_squares(columns: np.ndarray, y: np.ndarray, weights: np.ndarray) -> np.ndarray:
    root = np.sqrt(weights)
    return np.linalg.lstsq(columns * root[:, None], y * root, rcond=None)[0]


def _proportional(shapes: np.ndarray, y: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weighted fit of y [n] to each of `shapes` [m, n] times a factor: factors [m] and sums of squares [m]."""
    factors = shapes @ (weights * y) / np.maximum(shapes**2 @ weights, 1e-300)
    return factors, ((y - factors[:, None] * shapes) ** 2) @ weights


# The full-precision loss ---------------------------------------------------------------------------------------------


def falling_power(history: History) -> Curve:
    """E + B·D^−beta, the law of Hoffmann et al. (arXiv 2203.15556) along one run; constant where the loss rises."""
    last = history.x[-1]
    decay, (floor, factor) = (found[0] for found in fit_falling(history.x, history.y[None]))
    if not np.isfinite(decay):
        return lambda x: np.full_like(x, np.mean(history.y))
    return lambda x: floor + factor * np.exp(-decay * (x - last))


def fit_falling(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Least squares of E + B·exp(−beta·(x − x[-1])) to each row of y [k, n] over x [n], beta being one of `DECAYS`.

    Returns beta [k] and E and B [k, 2]; NaN where no beta gives E and B that are not negative.
    """
    shapes = np.exp(-DECAYS[:, None] * (x - x[-1]))
    columns = np.stack([np.ones_like(shapes), shapes], axis=2)
    found = np.linalg.pinv(columns) @ y.T
    squares = np.sum((y.T - columns @ found) ** 2, axis=1)
    squares = np.where((found[:, 0] >= 0) & (found[:, 1] >= 0), squares, np.inf)
    best, rows = np.argmin(squares, axis=0), np.arange(len(y))
    known = np.isfinite(squares[best, rows])
    factors = found.transpose(0, 2, 1)[best, rows]
    return np.where(known, DECAYS[best], np.nan), np.where(known[:, None], factors, np.nan)


def recent_falling_power(history: History) -> Curve | None:
    """The same through the last checkpoints alone."""
    return falling_power(history.recent()) if len(history.x) > RECENT else None


def rising_line(history: History) -> Curve | None:
    """A straight line in log D through the last checkpoints, where the loss has risen."""
    return _rising(history, 1, 3, RECENT)


def rising_parabola(history: History) -> Curve | None:
    """A parabola in log D through the checkpoints since two before the lowest, where the loss has risen."""
    return _rising(history, 2, RECENT, len(history.x))


def _rising(history: History, degree: int, fewest: int, most: int) -> Curve | None:
    if not risen(history):
        return None
    since = len(history.x) - int(np.argmin(history.y)) + (2 if degree == 2 else 0)
    near, last = slice(-min(max(since, fewest), most, len(history.x)), None), history.x[-1]
    factors = np.polyfit(history.x[near] - last, history.y[near], degree)
    return lambda x: np.polyval(factors, x - last)


def risen(history: History) -> bool:
    """Whether the last two checkpoints are both above an earlier one by more than two standard deviations."""
    lowest = int(np.argmin(history.y))
    above = len(history.x) > 4 and lowest < len(history.x) - 2
    return bool(above and history.y[-2:].min() - history.y[lowest] > 2 * history.noise[-1])


# Delta ---------------------------------------------------------------------------------------------------------------


def constant(history: History) -> Curve | None:
    """Delta stays as it is."""
    return lambda x: np.ones_like(x)


def power(history: History) -> Curve | None:
    """A·D^g: the law of Kumar et al. (arXiv 2411.04330) with an exponent of this bit-width's own."""
    last = history.x[-1]
    factors, squares = _proportional(np.exp(EXPONENTS[:, None] * (history.x - last)), history.y, history.weights)
    exponent = EXPONENTS[np.argmin(np.where(factors > 0, squares, np.inf))]
    return (lambda x: np.exp(exponent * (x - last))) if np.any(factors > 0) else None


def recent_power(history: History) -> Curve | None:
    """The same through the last checkpoints alone."""
    return power(history.recent()) if len(history.x) > RECENT else None


def tied_power(history: History) -> Curve | None:
    """A·D^g with one exponent for all bit-widths of the quantizer, as the law of Kumar et al. has it."""
    if len(history.siblings) < 2:
        return None
    last, total = history.x[-1], np.zeros(len(EXPONENTS))
    for x, y, noise in history.siblings:
        seen = x <= last
        total += _proportional(np.exp(EXPONENTS[:, None] * (x[seen] - last)), y[seen], _weights(y, noise)[seen])[1]
    exponent = EXPONENTS[np.argmin(total)]
    return lambda x: np.exp(exponent * (x - last))


def logarithmic(history: History) -> Curve | None:
    """a + b·log D through the last checkpoints, never falling."""
    near = history.recent()
    last = near.x[-1]
    level, slope = _least_squares(np.column_stack([np.ones_like(near.x), near.x - last]), near.y, near.weights)
    return (lambda x: 1 + max(slope, 0.0) / level * (x - last)) if level > 0 else None


def saturating(history: History) -> Curve | None:
    """A·D/(D + D₀): proportional to D at first, constant in the end."""
    middles = np.linspace(history.x[0] - 1, history.x[-1] + 3, 60)
    shapes = 1 / (1 + np.exp(middles[:, None] - history.x))
    factors, squares = _proportional(shapes, history.y, history.weights)
    middle = middles[np.argmin(np.where(factors > 0, squares, np.inf))]
    return (lambda x: 1 / (1 + np.exp(middle - x))) if np.any(factors > 0) else None


def damped(history: History) -> Curve | None:
    """The last slope of log delta in log D, flattening from there on (damped trend, Gardner & McKenzie 1985)."""
    last, near = history.x[-1], slice(-4, None)
    slope = max(float(np.polyfit(history.x[near], np.log(history.positive[near]), 1)[0]), 0.0)
    return lambda x: np.exp(slope * (1 - np.exp(-FLATTENING * (x - last))) / FLATTENING)


OF_LOSS: Mapping[str, Candidate] = {
    "power": falling_power,
    "recent_power": recent_falling_power,
    "rising_line": rising_line,
    "rising_parabola": rising_parabola,
}
OF_DELTA: Mapping[str, Candidate] = {
    "constant": constant,
    "power": power,
    "recent_power": recent_power,
    "tied_power": tied_power,
    "logarithmic": logarithmic,
    "saturating": saturating,
    "damped": damped,
}


def loss_curves(history: History) -> dict[str, Curve]:
    """The candidates for the full-precision loss by name, shifted to pass through the last checkpoint.

    They are fitted to the loss less the effect of the decay so far, and continue it without.
    """
    history = _before_decay(history, decay_of_loss(history), logarithmic=False)
    return {name: _shifted(curve, history) for name, curve in _continued(OF_LOSS, history).items()}


def delta_curves(history: History) -> dict[str, Curve]:
    """The candidates for delta by name, scaled to pass through the last checkpoint (see `level_of_delta`).

    They are fitted to delta without the effect of the decay so far, and continue it without.
    """
    history = _before_decay(history, decay_of_delta(history), logarithmic=True)
    return {name: _scaled(curve, history) for name, curve in _continued(OF_DELTA, history).items()}


def _continued(candidates: Mapping[str, Candidate], history: History) -> dict[str, Curve]:
    """The candidates that the checkpoints determine, fitted over progress: a learning rate of zero trains nothing."""
    clock = decay.progress(history.x, history.phase)
    siblings = tuple((clock(x), y, noise) for x, y, noise in history.siblings)
    timed = replace(history, x=clock(history.x), siblings=siblings)
    found = {name: candidate(timed) for name, candidate in candidates.items()}
    return {name: _at(curve, clock) for name, curve in found.items() if curve is not None}


def _at(curve: Curve, clock: Curve) -> Curve:
    return lambda x: curve(clock(x))


def timed(history: History) -> History:
    """Losses over progress, without the effect of the decay so far."""
    less = _before_decay(history, decay_of_loss(history), logarithmic=False)
    return replace(less, x=history.progress(history.x))


def decay_of_loss(history: History) -> Decay | None:
    """What the decay of the learning rate adds to the loss; None where it is not known to decay."""
    last = float(history.y[-1])
    noise = np.full_like(history.y, decay.SCATTER * abs(last) + _TINY)
    mean, error = decay.LOSS_PRIOR
    return decay.fitted(history.x, history.y, history.phase, -DECAYS, (mean * last, error * abs(last) + _TINY), noise)


def decay_of_delta(history: History) -> Decay | None:
    """The same for log delta."""
    noise = np.hypot(history.noise / history.positive, decay.DELTA_SCATTER)
    return decay.fitted(history.x, np.log(history.positive), history.phase, np.array([]), decay.DELTA_PRIOR, noise)


def _before_decay(history: History, found: Decay | None, *, logarithmic: bool) -> History:
    """A history as if S had been at all checkpoints what it is at the last."""
    if found is None:
        return history

    def less(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        effect = found.effect * (np.interp(x, history.x, history.phase) - history.phase[-1])
        return y * np.exp(-effect) if logarithmic else y - effect

    siblings = tuple((x, less(x, y), noise) for x, y, noise in history.siblings)
    return replace(history, y=less(history.x, history.y), siblings=siblings)


def _shifted(curve: Curve, history: History) -> Curve:
    shift = history.y[-1] - curve(history.x[-1:])[0]
    return lambda x: curve(x) + shift


def _scaled(curve: Curve, history: History) -> Curve:
    factor = level_of_delta(history) / max(float(curve(history.x[-1:])[0]), _TINY)
    return lambda x: factor * curve(x)


def level_of_delta(history: History) -> float:
    """Delta at the last checkpoint or, where that one is within its evaluation noise, the weighted mean of all; not
    negative."""
    last = float(history.y[-1])
    return last if last > history.floor[-1] else max(float(np.average(history.y, weights=history.weights)), 0.0)
