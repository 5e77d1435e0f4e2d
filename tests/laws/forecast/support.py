"""Runs with known laws: a full-precision loss, a delta, and scatter about both."""

import numpy as np

from ptq_eval.laws.forecast.series import Series

RATIO = 1.5
"""Of the D of one checkpoint to that of the one before."""


def power(x, rng, level=0.05):
    return level * np.exp(rng.uniform(0.3, 0.9) * (x - x[3]))


def saturating(x, rng, level=0.05):
    return 2 * level / (1 + np.exp(x[3] + rng.uniform(0, 2) - x))


def logarithmic(x, rng, level=0.05):
    return level * (1 + rng.uniform(0.2, 0.5) * (x - x[0]))


def bent(x, rng, level=0.05):
    """A power whose exponent falls as D grows."""
    first, bend = rng.uniform(0.6, 1.2), rng.uniform(0.05, 0.2)
    near = np.minimum(x - x[3], first / (2 * bend))
    return level * np.exp(first * near - bend * near**2)


LAWS = {"power": power, "saturating": saturating, "logarithmic": logarithmic, "bent": bent}


def wandering(x, rng, level=0.05):
    """No law: the slope of log delta over log D is a random walk that is never negative."""
    steps = DRIFT * np.sqrt(np.diff(x)) * rng.standard_normal(len(x) - 1)
    slopes = np.abs(rng.uniform(0.3, 0.9) + np.cumsum(steps))
    logs = np.concatenate([[0.0], np.cumsum(slopes * np.diff(x))])
    return level * np.exp(logs - logs[3])


DRIFT = 0.4
"""How far slopes wander per root of log D: the size of the error that a forecast assumes before it knows any."""


def falling(x, rng, drift=0.0):
    """E + B·D^−beta, of 4 to 5 nats at first; with a drift, the fall per log D wanders by that share."""
    floor, beta = rng.uniform(2.0, 3.0), rng.uniform(0.2, 0.6)
    exact = floor + rng.uniform(1.5, 2.5) * np.exp(-beta * (x - x[0]))
    factors = np.exp(np.cumsum(drift * np.sqrt(np.diff(x)) * rng.standard_normal(len(x) - 1)))
    return exact[0] + np.concatenate([[0.0], np.cumsum(np.diff(exact) * factors)])


def run(law, rng, n=11, *, scatter=0.01, relative=0.1, first=1e6, drift=0.0, bits=(2.0, 3.0, 4.0)):
    """The series of one run at some bit-widths, each with a fifth of the delta of the one before."""
    tokens = first * RATIO ** np.arange(n)
    x = np.log(tokens)
    loss = falling(x, rng, drift) + scatter * rng.standard_normal(n)
    found = []
    for place, width in enumerate(bits):
        exact = law(x, rng, 0.5 / 5**place)
        delta = exact * (1 + relative * rng.standard_normal(n))
        found.append(Series("run", "rtn", width, 1e5, tokens, loss, delta, 0.01 * exact, np.full(n, np.nan)))
    return found
