"""The rolling origin: how well each candidate would have forecast later checkpoints from earlier ones.

For every origin of a history the candidates are fitted to the checkpoints up to it and compared with all later ones.
An error is counted per unit of log D between origin and target, because that is how errors of extrapolation grow: for
delta as a logarithm, for the loss in units of its slope at the origin.  What chance alone explains, the noise of both
checkpoints, is subtracted from its square.  A candidate's mean squared error S, with a prior of `PRIOR_COUNT` errors of
the size assumed before anything is known, gives its weight S^(−nu/2), the likelihood of Gaussian errors whose variance
is integrated out; the weighted mean of the errors is the forecast's own.  The targets of one origin share its fit, and
the bit-widths of one run its checkpoints, so all of them together count as many errors as there are origins.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ptq_eval.laws.forecast.candidates import OF_DELTA, OF_LOSS, Curve, History, delta_curves, loss_curves

MIN_HISTORY = 3
"""Checkpoints that a candidate is fitted to at least."""
PRIOR_COUNT = 3.0
"""The weight of the assumed error, in origins."""
MIN_DISTANCE = 0.3
"""The least distance in log D that an error is divided by: a factor of 1.35 in D."""
_TINY = 1e-12


@dataclass(frozen=True)
class Response:
    """What is forecast: its candidates, the error per unit of log D assumed at first, and how errors are counted."""

    curves: Callable[[History], dict[str, Curve]]
    names: tuple[str, ...]
    prior: float
    logarithmic: bool
    """Errors of the logarithm (delta), or in units of the slope at the origin (the loss)."""


LOSS = Response(loss_curves, tuple(OF_LOSS), 0.2, False)
DELTA = Response(delta_curves, tuple(OF_DELTA), 0.3, True)


@dataclass(frozen=True)
class Weights:
    """Weight of each candidate by name, the forecast's error per unit of log D, and its degrees of freedom."""

    weights: Mapping[str, float]
    error: float
    freedom: float


def slope(curves: Mapping[str, Curve], weights: Mapping[str, float], x: float) -> float:
    """The weighted mean of the absolute slopes of the candidates at x, in nats per unit of log D."""
    ends, total = np.array([x - 0.2, x + 0.2]), sum(weights[name] for name in curves)
    slopes = {name: abs(float(np.diff(curve(ends))[0])) / 0.4 for name, curve in curves.items()}
    return sum(weights[name] * each for name, each in slopes.items()) / max(total, _TINY)


def combine(histories: Sequence[History], response: Response) -> Weights:
    """The weights of the candidates from the histories of one run, all known up to the same checkpoint."""
    squares: list[dict[str, float]] = []
    for history in histories:
        for origin in range(MIN_HISTORY, len(history.x)):
            squares += squared_errors(history, origin, response)
    count = max((len(history.x) - MIN_HISTORY for history in histories), default=0)
    freedom, prior = PRIOR_COUNT + count, response.prior
    means = {name: _mean([each[name] for each in squares if name in each], prior, count) for name in response.names}
    logs = {name: -0.5 * freedom * np.log(mean) for name, mean in means.items()}
    highest = max(logs.values())
    weights = {name: max(float(np.exp(value - highest)), _TINY) for name, value in logs.items()}
    own = [sum(weights[n] * e for n, e in each.items()) / sum(weights[n] for n in each) for each in squares]
    return Weights(weights, float(np.sqrt(_mean(own, prior, count))), freedom)


def squared_errors(history: History, origin: int, response: Response) -> list[dict[str, float]]:
    """The squared error per unit of log D of each candidate, by name, at every checkpoint after the first `origin`."""
    curves = response.curves(history.part(slice(origin)))
    x, y, start = history.x[origin:], history.y[origin:], history.x[origin - 1]
    chance = history.noise[origin:] ** 2 + history.noise[origin - 1] ** 2
    scale = np.maximum(x - start, MIN_DISTANCE)
    if response.logarithmic:
        floor = 2 * history.noise[origin:] + _TINY
        chance = chance / np.maximum(y, floor) ** 2
    else:
        scale = scale * max(slope(curves, dict.fromkeys(curves, 1.0), start), 1e-9)
    found: list[dict[str, float]] = [{} for _ in y]
    for name, curve in curves.items():
        errors = np.log(np.maximum(y, floor) / np.maximum(curve(x), floor)) if response.logarithmic else y - curve(x)
        for each, square in zip(found, np.maximum(errors**2 - chance, 0.0) / scale**2):
            each[name] = float(square)
    return found


def _mean(squares: Sequence[float], prior: float, count: int) -> float:
    """The mean square together with the prior's share; `squares` of any number count as `count`."""
    if not squares or not count:
        return prior**2
    return (PRIOR_COUNT * prior**2 + count * float(np.mean(squares))) / (PRIOR_COUNT + count)
