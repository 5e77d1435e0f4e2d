"""Where a loss begins to fall as a power of D.

A model that has hardly learned anything falls slowly, then ever faster, and only then ever more slowly.  No candidate
does the first, and a curve through all checkpoints takes what it misses for scatter.  So the checkpoints themselves say
from which of them on the loss is E + B·D^−beta: from the place k with the largest probability of all n losses,

    log p(k) = −(k + 3)·log R + log t(residuals of the other n − k about their power)

k losses before it being anywhere in the range R of all, as are the three constants of the power; t is Student's density
of n − k − 3 residuals whose scatter has the prior that all scatter has.  A checkpoint is set aside only where the fall
per log D grows up to the place, so that a run that falls ever more slowly keeps all of them; three remain.
"""

from __future__ import annotations

import math

import numpy as np
from scipy.special import gammaln

from ptq_eval.laws.forecast.candidates import fit_falling

PRIOR_SCATTER, PRIOR_COUNT = 0.003, 2.0
"""The scatter of checkpoints that is assumed beforehand, as a share of the loss, and its weight in checkpoints, which
is also that of a standard error."""
CONSTANTS = 3
"""Of a falling power."""


def start(x: np.ndarray, loss: np.ndarray) -> int:
    """The place from which the losses [n] over x = log D [n] fall as a power; zero where none is better."""
    falls = -np.diff(loss) / np.diff(x)
    places = [k for k in range(len(x) - CONSTANTS + 1) if np.all(falls[:k] < falls[k])]
    range_ = float(np.ptp(loss))
    if len(places) < 2 or range_ <= 0:
        return 0
    return max(places, key=lambda k: _log_probability(x[k:], loss[k:]) - (k + CONSTANTS) * math.log(range_))


def squares(x: np.ndarray, loss: np.ndarray) -> float:
    """The sum of squares of losses [n] about a falling power, infinite where they have none."""
    decay, factors = (found[0] for found in fit_falling(x, loss[None]))
    if not math.isfinite(decay):
        return math.inf
    return float(np.sum((loss - factors[0] - factors[1] * np.exp(-decay * (x - x[-1]))) ** 2))


def assumed(loss: np.ndarray) -> float:
    """What the prior of the scatter adds to the sum of squares."""
    return PRIOR_COUNT * (PRIOR_SCATTER * float(loss[-1])) ** 2


def _log_probability(x: np.ndarray, loss: np.ndarray) -> float:
    count, prior = len(x) - CONSTANTS, assumed(loss)
    total = prior + squares(x, loss)
    if not math.isfinite(total):
        return -math.inf
    half = PRIOR_COUNT / 2
    scaled = half * math.log(prior / total) - count / 2 * math.log(math.pi * total)
    return float(gammaln(half + count / 2) - gammaln(half)) + scaled
