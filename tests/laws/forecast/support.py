"""Runs with known laws: a full-precision loss, a delta, and scatter about both."""

from dataclasses import replace

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


DRIFT = 0.25
"""How far slopes wander per root of log D: the size of the error that a forecast assumes before it knows any."""


def falling(x, rng, drift=0.0):
    """E + B·D^−beta, of 4 to 5 nats at first; with a drift, the fall per log D wanders by that share."""
    floor, beta = rng.uniform(2.0, 3.0), rng.uniform(0.2, 0.6)
    exact = floor + rng.uniform(1.5, 2.5) * np.exp(-beta * (x - x[0]))
    factors = np.exp(np.cumsum(drift * np.sqrt(np.diff(x)) * rng.standard_normal(len(x) - 1)))
    return exact[0] + np.concatenate([[0.0], np.cumsum(np.diff(exact) * factors)])


def noise(n, rng, phi=0.0):
    """Standard normal noise [n] whose neighbours correlate by phi."""
    found = rng.standard_normal(n)
    for i in range(1, n):
        found[i] = phi * found[i - 1] + np.sqrt(1 - phi**2) * found[i]
    return found


def only_noise(series, rng, growth=0.3, error=2e-4):
    """The same run where delta is noise of 1.5 standard errors at first, and more as a power of D."""
    size = 1.5 * error * np.exp(growth * (series.x - series.x[0]))
    delta, se = size * rng.standard_normal(len(series.x)), np.full(len(series.x), error)
    return replace(series, bits=8.0, delta=delta, se=se)


def run(
    law, rng, n=11, *, scatter=0.01, relative=0.1, first=1e6, drift=0.0, bits=(2.0, 3.0, 4.0), phi=0.0, ratio=RATIO
):
    """The series of one run at some bit-widths, each with a fifth of the delta of the one before."""
    tokens = first * ratio ** np.arange(n)
    x = np.log(tokens)
    loss = falling(x, rng, drift) + scatter * noise(n, rng, phi)
    found = []
    for place, width in enumerate(bits):
        exact = law(x, rng, 0.5 / 5**place)
        delta = exact * (1 + relative * noise(n, rng, phi))
        found.append(Series("run", "rtn", width, 1e5, tokens, loss, delta, 0.01 * exact, np.full(n, np.nan)))
    return found
