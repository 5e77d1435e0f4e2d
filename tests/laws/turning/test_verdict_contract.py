"""Which of an observation, a forecast and a prediction counts, and when a prediction is withheld."""

import math

import numpy as np
import pytest

from ptq_eval.laws.base import Estimate
from ptq_eval.laws.findings import Why, why
from ptq_eval.laws.turning.observed import TurningPoint
from ptq_eval.laws.turning.verdict import Answer, Conflict, Forecast, falls_beyond, refutation, verdict
from ptq_eval.results.points import Curve

TOKENS = 1e6 * 2.0 ** np.arange(8)
FALLING = 4.0 - 0.2 * np.arange(8)
NOTHING = TurningPoint(TOKENS[-1], Estimate(TOKENS[-1], 0, math.inf), False, 0.0, 0.01, 0.01, 8)
TURNED = TurningPoint(8e6, Estimate(8e6, 4e6, 16e6), True, 0.3, 0.01, 0.01, 8)
PREDICTED = Estimate(2e8, 1.5e8, 3e8)


def noise_of(n):
    """Windows [3, n] whose difference between the first and the last checkpoint has a standard error of 0.1."""
    spread = np.tile([1.0, -1.0], n // 2) * np.sqrt(n - 1) / 4
    return np.stack([spread, 0 * spread, 0 * spread])


def forecast(low, value=math.inf, high=math.inf):
    return Forecast(low, value, high, 0.9, 8, {"loss": {"power": 1.0}, "delta": {}})


def test_an_observed_turn_comes_first():
    found = verdict(PREDICTED, None, TOKENS[-1], TURNED, forecast(5e7))
    assert (found.kind, found.answer) == ("observed", Answer(4e6, 8e6, 16e6, 0.9))


def test_a_forecast_comes_before_a_prediction():
    found = verdict(PREDICTED, None, TOKENS[-1], NOTHING, forecast(5e7, 8e7, 4e8))
    assert (found.kind, found.answer) == ("forecast", Answer(5e7, 8e7, 4e8, 0.9))
    found = verdict(PREDICTED, None, TOKENS[-1], NOTHING, forecast(5e7))
    assert found.kind == "not_before"
    assert found.answer.to_dict() == {"low": 5e7, "value": None, "high": None, "level": 0.9}
    found = verdict(PREDICTED, None, TOKENS[-1], NOTHING, forecast(math.nan))
    assert (found.kind, found.answer, found.reason.kind) == ("not_identified", None, Why.FORECAST_OPEN)


def test_a_prediction_counts_where_there_is_no_forecast_and_nothing_refutes_it():
    found = verdict(PREDICTED, None, TOKENS[-1], NOTHING, level=0.8)
    assert (found.kind, found.answer) == ("predicted", Answer(1.5e8, 2e8, 3e8, 0.8))
    found = verdict(PREDICTED, None, TOKENS[-1], NOTHING, withheld=Conflict.STILL_FALLS)
    assert (found.kind, found.answer, found.withheld) == ("not_identified", None, Conflict.STILL_FALLS)
    assert found.reason == why(Why.REFUTED, conflict="still_falls")
    assert verdict(Estimate(1e11, 1e11, 1e11), None, TOKENS[-1], NOTHING).reason.kind is Why.TOO_FAR


def test_a_rising_full_precision_loss_forbids_every_statement_but_an_observed_one():
    found = verdict(PREDICTED, None, TOKENS[-1], NOTHING, forecast(5e7, 8e7, 4e8), full_rises=True)
    assert (found.kind, found.reason.kind) == ("not_identified", Why.FULL_PRECISION_RISES)
    assert verdict(PREDICTED, None, TOKENS[-1], TURNED, full_rises=True).kind == "observed"


@pytest.mark.parametrize(
    ("predicted", "observed", "said", "conflict"),
    [
        (None, NOTHING, None, None),
        (Estimate(2e8), NOTHING, None, None),
        (Estimate(1e7, 9e6, 2e7), NOTHING, None, Conflict.STILL_FALLS),
        (Estimate(2e8, 1.5e8, 3e8), TURNED, None, Conflict.TURNS_ELSEWHERE),
        (Estimate(1.8e7, 1.1e7, 3e7), TURNED, None, Conflict.TURNS_ELSEWHERE),  # though the intervals meet
        (Estimate(1.3e7, 1.2e7, 1.4e7), TURNED, None, Conflict.STILL_FALLS),
        (Estimate(2e8, 1.5e8, 3e8), NOTHING, forecast(5e8), Conflict.FORECAST_EXCLUDES),
        (Estimate(2e8, 1.5e8, 3e8), NOTHING, forecast(1e8), None),
        (Estimate(2e8, 1.5e8, 3e8), NOTHING, forecast(math.nan), None),
    ],
)
def test_a_prediction_is_withheld_where_the_measurements_refute_it(predicted, observed, said, conflict):
    assert refutation(predicted, Curve(TOKENS, FALLING), observed, said) is conflict


def test_a_fall_counts_only_beyond_its_noise():
    assert falls_beyond(Curve(TOKENS, FALLING), 1e7)
    assert not falls_beyond(Curve(TOKENS, FALLING), TOKENS[-2])
    few, many = (Curve(TOKENS[:3], FALLING[:3], 0.4 * noise_of(n)) for n in (2, 200))
    assert falls_beyond(many, 0.0)
    assert not falls_beyond(few, 0.0)
    turned = Curve(TOKENS, 3.5 + 0.05 * (np.arange(8) - 3.0) ** 2)
    assert not falls_beyond(turned, 0.9 * TOKENS[3])
    assert falls_beyond(turned, 0.9 * TOKENS[2])
    few = slice(3)
    assert not falls_beyond(Curve(TOKENS[few], FALLING[few]), TOKENS[0])  # neither scatter nor windows are known
    rng = np.random.default_rng(0)
    flat = [Curve(TOKENS, 4.0 + 0.05 * rng.standard_normal(8)) for _ in range(200)]
    assert sum(falls_beyond(curve, 1e7) for curve in flat) < 30
    windows = FALLING[few, None] + np.array([0.5, -0.5] * 32) + 1e-3 * rng.standard_normal((3, 64))
    assert falls_beyond(Curve(TOKENS[few], FALLING[few], windows), TOKENS[0])
    assert not falls_beyond(Curve(TOKENS[few], FALLING[few], windows + rng.standard_normal((3, 64)) * 2), TOKENS[0])


def test_what_the_draw_of_calibration_windows_adds_may_explain_a_fall():
    windows = FALLING[:, None] + 0.001 * np.random.default_rng(0).standard_normal((8, 64))
    assert falls_beyond(Curve(TOKENS, FALLING, windows), TOKENS[4])
    assert falls_beyond(Curve(TOKENS, FALLING, windows, None, np.full(8, 0.01)), TOKENS[4])
    assert not falls_beyond(Curve(TOKENS, FALLING, windows, None, np.full(8, 0.2)), TOKENS[4])
