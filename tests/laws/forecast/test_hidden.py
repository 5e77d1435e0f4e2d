"""Recovery and oracle: a δ that is not seen is not one that stays: what the errors could hide is not excluded."""

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from ptq_eval.laws.findings import Why
from ptq_eval.laws.forecast.forecast import draw, most_hidden, turn
from ptq_eval.laws.turning.verdict import Forecast, VerdictKind, verdict
from tests.laws.forecast.support import LAWS, run


def hidden(se, seed=0, true=0.0, n=8):
    """A run whose loss falls and whose δ is `true`·D, at its last checkpoint, with errors of `se`."""
    rng = np.random.default_rng(seed)
    own = run(LAWS["power"], rng, n)[0]
    shape = np.exp(own.x - own.x[-1])
    return replace(own, delta=true * shape + se * rng.standard_normal(n), se=np.full(n, se))


def test_the_largest_hidden_delta_is_that_of_a_regression():
    """Against scipy's own fit of a line through the origin with errors of known size."""
    series = hidden(0.01, seed=3)
    shape = np.exp(series.x - series.x[-1])
    size = (shape @ series.delta) / (shape @ shape)
    chi = np.sum(((series.delta - size * shape) / 0.01) ** 2) / (len(shape) - 1)
    error = 0.01 * math.sqrt(max(chi, 1.0) / (shape @ shape))
    assert most_hidden(series) == pytest.approx(max(size + stats.t.ppf(0.95, len(shape) - 1) * error, 0.0))


def test_a_true_delta_is_below_the_limit_in_95_per_cent_of_cases():
    below = [most_hidden(hidden(0.01, seed, true=0.005)) >= 0.005 for seed in range(400)]
    assert 0.93 <= np.mean(below) <= 0.99


def test_large_errors_exclude_less():
    lows = []
    for se in (1e-5, 1e-2, 0.3):
        series = hidden(se)
        assert not series.significant
        lows.append(turn(draw(series, [series], n_draws=400)).low / series.tokens[-1])
    assert lows == sorted(lows, reverse=True)
    assert lows[0] > 3  # errors that hide nothing: the loss alone decides, even if it bends at once
    assert lows[2] <= 1.1  # a δ that may have been there all along


def test_nothing_is_stated_of_a_delta_that_is_not_determined():
    said = verdict(None, None, 1e7, forecast=Forecast(math.nan, math.inf, math.inf, 0.9, 8, {}, 0.2))
    assert said.kind is VerdictKind.NOT_IDENTIFIED
    assert said.reason.kind is Why.DELTA_HIDDEN
    assert said.reason.facts == {"most": 0.2}
