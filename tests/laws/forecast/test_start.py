"""Recovery and oracle: from which checkpoint on a loss falls as a power of D."""

import math

import numpy as np
import pytest
from scipy import integrate, stats

from ptq_eval.laws.forecast.candidates import DECAYS
from ptq_eval.laws.forecast.series import Series
from ptq_eval.laws.forecast.start import CONSTANTS, PRIOR_COUNT, PRIOR_SCATTER, start


def slow(x, loss):
    """The same by integrating over the scatter, from the best of all decays in a loop."""
    falls, found = -np.diff(loss) / np.diff(x), {}
    for k in range(len(x) - CONSTANTS + 1):
        if any(falls[i] >= falls[k] for i in range(k)):
            continue
        own, last, least = x[k:], x[-1], math.inf
        for beta in DECAYS:
            columns = np.column_stack([np.ones(len(own)), np.exp(-beta * (own - last))])
            factors = np.linalg.lstsq(columns, loss[k:], rcond=None)[0]
            if min(factors) >= 0:
                least = min(least, float(np.sum((loss[k:] - columns @ factors) ** 2)))
        count, variance = len(own) - CONSTANTS, (PRIOR_SCATTER * loss[-1]) ** 2

        def density(log_scatter, least=least, count=count, variance=variance):
            square = math.exp(2 * log_scatter)
            prior = stats.chi2.pdf(PRIOR_COUNT * variance / square, PRIOR_COUNT) * 2 * PRIOR_COUNT * variance / square
            return prior * math.exp(-least / (2 * square)) / (2 * math.pi * square) ** (count / 2)

        value = integrate.quad(density, -9, 3, limit=400)[0]
        found[k] = math.log(max(value, 1e-300)) - (k + CONSTANTS) * math.log(np.ptp(loss))
    return max(found, key=lambda k: found[k])


def late(x, place, rate=3.0, floor=3.0, beta=0.6):
    """A loss whose fall begins about log D = `place`."""
    exact = floor + 2 * np.exp(-beta * (x - place))
    begun = 1 / (1 + np.exp(-rate * ((x[1:] + x[:-1]) / 2 - place)))
    return 5 + np.concatenate([[0.0], np.cumsum(np.diff(exact) * begun)])


@pytest.mark.parametrize("n", [4, 5, 8, 12])
def test_the_place_is_that_of_the_slow_implementation(n):
    rng = np.random.default_rng(n)
    for _ in range(6):
        x = 12 + np.sort(rng.uniform(0, 5, n))
        loss = late(x, rng.uniform(x[0] - 2, x[-1])) + 0.01 * rng.standard_normal(n)
        assert start(x, loss) == slow(x, loss)


def test_checkpoints_before_anything_is_learned_are_set_aside():
    """Losses that fall by 0.1, 0.6 and 0.4 nats, and from then on ever less."""
    x, loss = math.log(2) * np.arange(7), np.array([5.27, 5.17, 4.47, 4.05, 3.83, 3.69, 3.61])
    assert [start(x[:n], loss[:n]) for n in (4, 5, 6, 7)] == [1, 1, 1, 1]


def test_a_loss_that_falls_ever_more_slowly_keeps_all_its_checkpoints():
    rng, kept = np.random.default_rng(0), []
    for _ in range(200):
        n = int(rng.integers(4, 15))
        x = np.linspace(0, rng.uniform(2, 6), n)
        loss = 3 + 2 * np.exp(-rng.uniform(0.2, 0.7) * x) + 0.006 * rng.standard_normal(n)
        kept.append(start(x, loss) == 0)
    assert np.mean(kept) > 0.95


@pytest.mark.parametrize("loss", [[5.0] * 5, [3.0, 3.1, 3.2, 3.3, 3.4], [5.0, 4.0, 4.2, 4.1, 4.3]])
def test_a_loss_that_stays_or_rises_keeps_all_its_checkpoints(loss):
    assert start(np.arange(5.0), np.array(loss)) == 0


def test_what_a_falling_power_cannot_follow_is_no_scatter():
    tokens, loss = 1e5 * 2.0 ** np.arange(4), np.array([5.27, 5.17, 4.47, 4.05])
    zeros = np.zeros(4)
    series = Series("run", "rtn", 3.0, 1e4, tokens, loss, zeros, zeros, np.full(4, np.nan))
    assert series.scatter == pytest.approx(PRIOR_SCATTER * 4.05, rel=0.05)
    assert series.scatter_freedom == PRIOR_COUNT
