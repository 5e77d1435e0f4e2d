"""Draws of the full-precision loss beyond the last checkpoint (see `forecast`)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from ptq_eval.laws.forecast.candidates import Curve, History, risen
from ptq_eval.laws.forecast.rolling import GROWTH, LOSS, SCALES, Weights, combine, slope
from ptq_eval.laws.forecast.series import Series

BENDS = 0.15
"""Bends per unit of log D."""
FADING = (0.5, 1.0, 2.0)
"""Rates, per unit of log D, at which a fall fades after a bend; each is as likely as the others."""
STEPS = 61
"""Places at which a draw that bends is known, beside those asked for."""


@dataclass(frozen=True)
class Losses:
    """Draws of the full-precision loss, [draws, m] each: bent anywhere, from the last checkpoint on, and nowhere.

    No run shows beforehand where its loss will bend.  A draw bends at a random place; what is stated of one end of
    D_crit alone holds for the place that is worst for it.
    """

    drawn: np.ndarray
    bent_at_once: np.ndarray
    never_bent: np.ndarray


def draw_losses(
    series: Series, x: np.ndarray, rng: np.random.Generator, n_draws: int
) -> tuple[Losses, dict[str, float]]:
    """Paths at log D = x [m], and the share of each candidate."""
    whole = History(series.x, series.loss_fp, np.full_like(series.x, series.scatter), series.phase)
    history = whole.part(slice(series.start, None))
    weights = _learned(*(each.tobytes() for each in (history.x, history.y, history.noise, history.phase)))
    curves = LOSS.curves(history)
    last, now = series.x[-1], series.loss_fp[-1]
    at = np.union1d(np.linspace(last, max(x.max(), last + 1e-9), STEPS), x)
    drawn, size, shares = mixed(curves, weights, at, rng, n_draws)
    rising = risen(history)
    trained = history.progress(at) - history.progress(at[:1])
    added = size * slope(curves, weights.weights, history) * trained**GROWTH
    place, rate = last + rng.exponential(1 / BENDS, (n_draws, 1)), rng.choice(FADING, (n_draws, 1))
    if decay := LOSS.decay(history):
        added = added + decay.mean(at) + rng.standard_normal((n_draws, 1)) * decay.spread(at)

    def bent(place: np.ndarray | float) -> np.ndarray:
        paths = (drawn if rising else now + _bent(drawn - now, at, place, rate)) + added
        paths = paths if rising else np.minimum.accumulate(np.minimum(paths, now), axis=1)
        return paths[:, np.searchsorted(at, x)]

    return Losses(bent(place), bent(last), bent(np.inf)), shares


@lru_cache(maxsize=256)
def _learned(x: bytes, y: bytes, noise: bytes, phase: bytes) -> Weights:
    """The weights from x, y, noise and phase, which are the same for all lines of a run."""
    frombuffer = np.frombuffer
    return combine([History(frombuffer(x), frombuffer(y), frombuffer(noise), frombuffer(phase))], LOSS)


def _bent(paths: np.ndarray, x: np.ndarray, place: np.ndarray | float, rate: np.ndarray) -> np.ndarray:
    """Paths [draws, m] at x [m] whose changes fade from a place on, exponentially at a rate [draws, 1]."""
    fading = np.exp(-rate * np.maximum((x[1:] + x[:-1]) / 2 - place, 0.0))
    changes = np.cumsum(np.diff(paths, axis=1) * fading, axis=1)
    return np.hstack([paths[:, :1], paths[:, :1] + changes])


def uncertain(freedom: float, rng: np.random.Generator, n_draws: int) -> np.ndarray:
    """What an estimated standard deviation is multiplied by, to be drawn as its degrees of freedom leave it uncertain:
    the root of these over χ², [n_draws, 1]."""
    return np.sqrt(freedom / rng.chisquare(freedom, (n_draws, 1)))


def mixed(
    curves: dict[str, Curve], weights: Weights, x: np.ndarray, rng: np.random.Generator, n_draws: int
) -> tuple[np.ndarray, np.ndarray, dict[str, float]]:
    """One candidate per draw, by weight: [n_draws, m], the size of its departure [n_draws, 1], and shares by name."""
    joint = np.array([weights.joint[name] for name in curves])
    joint = joint / joint.sum()
    place, scale = np.divmod(rng.choice(joint.size, n_draws, p=joint.ravel()), len(SCALES))
    drawn = np.array([curve(x) for curve in curves.values()])[place]
    size = SCALES[scale] * rng.standard_normal(n_draws)
    return drawn, size[:, None], dict(zip(curves, joint.sum(axis=1).tolist()))
