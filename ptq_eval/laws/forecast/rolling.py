"""The rolling origin: how well each candidate would have forecast later checkpoints from earlier ones.

For every origin of a history the candidates are fitted to the checkpoints up to it and compared with all later ones.
An error is divided by h^GROWTH, h being the distance between origin and target in log D, because errors grow with it:
for delta as a logarithm, for the loss in units of its slope at the origin.  Its variance is s² and what chance alone
explains: the noise of both checkpoints, and the error of what the decay of the learning rate does.  How large s is,
differs from run to run by more than an order of magnitude: a smooth run may be forecast to within a hundredth of its
slope.  So s is no constant; its logarithm has a normal prior, wide enough for either, and the Gaussian likelihood of a
candidate's errors gives the probability of each candidate with each s.

A run that was smooth for long may bend, where its data begin to repeat or its learning rate falls.  Were all errors
counted alike, it would be believed to stay smooth, and the errors at the bend would be averaged away.  So those at
checkpoint k of n have the weight

    w_k = exp(-(x_n - x_k)/MEMORY) · min(1, (x_k - x_{k-1})/STRETCH)

as checkpoints that follow each other closely in log D say the same twice.  The origins of one target, and the
bit-widths of one run, share its checkpoints: all errors together count as many as the sum of w_k over the targets.  So
however long the run, some of the prior always remains.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ptq_eval.laws.forecast.candidates import (
    OF_DELTA,
    OF_LOSS,
    Curve,
    History,
    decay_of_delta,
    decay_of_loss,
    delta_curves,
    loss_curves,
)
from ptq_eval.laws.forecast.decay import Decay

MIN_HISTORY = 3
"""Checkpoints that a candidate is fitted to at least."""
GROWTH = 1.0
"""The power of the distance that errors grow with: a wrong slope alone gives 1, a slope that wanders 1.5."""
MIN_DISTANCE = 0.3
"""The least distance in log D that an error is divided by: a factor of 1.35 in D."""
SCALES = np.geomspace(0.005, 2.0, 40)
"""Sizes of the error at h = 1."""
SPREAD = 1.2
"""The standard deviation of the logarithm of that size, beforehand."""
MEMORY = 0.8
"""How far back, in log D, an error counts 1/e of the latest: a factor of 2.2 in D."""
STRETCH = 0.2
"""The distance between checkpoints in log D from which each counts as one: a factor of 1.22 in D."""
LEAST_SLOPE = 0.3
"""The least slope of the loss that errors are divided by, as a share of its mean slope over the last unit of log D."""
_TINY = 1e-12


@dataclass(frozen=True)
class Response:
    """What is forecast: its candidates, the median error at h = 1 beforehand, and how errors are counted."""

    curves: Callable[[History], dict[str, Curve]]
    names: tuple[str, ...]
    prior: float
    logarithmic: bool
    """Errors of the logarithm (delta), or in units of the slope at the origin (the loss)."""
    decay: Callable[[History], Decay | None] = lambda history: None
    """What the decay of the learning rate adds to every curve."""


LOSS = Response(loss_curves, tuple(OF_LOSS), 0.15, False, decay_of_loss)
DELTA = Response(delta_curves, tuple(OF_DELTA), 0.12, True, decay_of_delta)


@dataclass(frozen=True)
class Weights:
    """The probability of each candidate, by name, with each of `SCALES` as the size of its error: [scales] each."""

    joint: Mapping[str, np.ndarray]

    @property
    def weights(self) -> dict[str, float]:
        """The probability of each candidate."""
        return {name: float(each.sum()) for name, each in self.joint.items()}


def slope(curves: Mapping[str, Curve], weights: Mapping[str, float], history: History) -> float:
    """The weighted mean of the absolute slopes of the candidates at the last checkpoint, in nats per unit of log D.

    Near its minimum a loss has no slope, but its forecasts have errors: so it is at least a share (`LEAST_SLOPE`) of
    the mean slope over the last unit of log D, three checkpoints at least.
    """
    last, total = history.x[-1], sum(weights[name] for name in curves)
    ends = np.array([last - 0.2, last + 0.2])
    step = max(float(np.diff(history.progress(ends))[0]), _TINY)
    slopes = {name: abs(float(np.diff(curve(ends))[0])) / step for name, curve in curves.items()}
    mean = sum(weights[name] * each for name, each in slopes.items()) / max(total, _TINY)
    near = slice(min(int(np.searchsorted(history.x, last - 1)), len(history.x) - 3), None)
    return max(mean, LEAST_SLOPE * float(np.ptp(history.y[near]) / np.ptp(history.x[near])))


def combine(histories: Sequence[History], response: Response) -> Weights:
    """The weights of the candidates from the histories of one run, all known up to the same checkpoint.

    A candidate that no origin determined is as likely as the errors of all others together make it.
    """
    found: dict[str, list[np.ndarray]] = {name: [] for name in response.names}
    last, count = max((history.x[-1] for history in histories), default=0.0), 0.0
    for history in histories:
        lately = np.exp((history.x - last) / MEMORY) * np.minimum(np.diff(history.x, prepend=-np.inf) / STRETCH, 1.0)
        count = max(count, lately[MIN_HISTORY:].sum())
        shared = lately / np.maximum(np.arange(len(lately)) - MIN_HISTORY + 1, 1)
        for origin in range(MIN_HISTORY, len(history.x)):
            for name, rows in squared_errors(history, origin, response).items():
                found[name].append(np.column_stack([rows, shared[origin:]]))
    everything = [rows for own in found.values() for rows in own]
    prior = -0.5 * (np.log(SCALES / response.prior) / SPREAD) ** 2
    logs = {name: prior for name in found}
    if everything:
        for name, own in found.items():
            square, chance, weight = np.concatenate(own or everything).T
            variance = SCALES[:, None] ** 2 + chance
            logs[name] = prior - 0.5 * count * np.average(np.log(variance) + square / variance, axis=1, weights=weight)
    highest = max(each.max() for each in logs.values())
    joint = {name: np.exp(each - highest) + _TINY for name, each in logs.items()}
    total = sum(each.sum() for each in joint.values())
    return Weights({name: each / total for name, each in joint.items()})


def squared_errors(history: History, origin: int, response: Response) -> dict[str, np.ndarray]:
    """The squared error of each candidate over h^(2·GROWTH), by name, at every checkpoint after the first `origin`, and
    the part of it that chance explains: [targets, 2]."""
    past = history.part(slice(origin))
    curves, decay = response.curves(past), response.decay(past)
    x, y, start = history.x[origin:], history.y[origin:], history.x[origin - 1]
    chance = history.noise[origin:] ** 2 + history.noise[origin - 1] ** 2
    scale = np.maximum(past.progress(x) - past.progress(np.array([start])), MIN_DISTANCE) ** GROWTH
    floor, positive = history.floor[origin:], history.positive[origin:]
    if response.logarithmic:
        chance = chance / positive**2
    else:
        scale = scale * max(slope(curves, dict.fromkeys(curves, 1.0), past), 1e-9)
    later = decay.mean(x) if decay else np.zeros_like(x)
    if decay:
        chance = chance + decay.spread(x) ** 2
    found = {}
    for name, curve in curves.items():
        if response.logarithmic:
            errors = np.log(positive / np.maximum(curve(x) * np.exp(later), floor))
        else:
            errors = y - curve(x) - later
        found[name] = np.column_stack([errors**2, chance]) / scale[:, None] ** 2
    return found
