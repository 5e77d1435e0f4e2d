"""Recovery: schedules and their effect are found from checkpoints, and forecasts follow them; a rise that was seen."""

from dataclasses import replace

import numpy as np
import pytest

from ptq_eval.laws.forecast.backtest import What, backtest
from ptq_eval.laws.forecast.candidates import History, decay_of_loss, loss_curves, risen
from ptq_eval.laws.forecast.decay import later_phase
from ptq_eval.laws.forecast.forecast import draw, grid
from ptq_eval.laws.forecast.loss import BENDS, _bent
from ptq_eval.laws.forecast.score import scores, total
from tests.laws.forecast.support import LAWS, run

TOKENS = np.linspace(1e6, 1e7, 10)
X = np.log(TOKENS)


def cosine(tokens, floor=0.0, end=1e7):
    return (1 - floor) * (1 - np.cos(np.pi * tokens / end)) / 2


@pytest.mark.parametrize("floor", [0.0, 0.1])
def test_a_cosine_is_followed_to_its_end_and_then_stays(floor):
    shares = 1 - (1 - cosine(TOKENS, floor)) / (1 - cosine(TOKENS[0], floor))  # its peak is the first checkpoint's rate
    found = later_phase(X[:5], shares[:5])(X[5:])
    assert np.allclose(found, shares[5:], atol=0.03)
    assert later_phase(X[:5], shares[:5])(np.log([1e9]))[0] == pytest.approx(shares[-1], abs=0.03)


def test_a_line_is_continued_to_zero():
    shares = np.maximum(TOKENS - 5e6, 0) / 5e6
    assert np.allclose(later_phase(X[:8], shares[:8])(X[8:]), shares[8:], atol=1e-6)


@pytest.mark.parametrize("shares", [np.zeros(5), np.full(5, np.nan), np.ones(5)])
def test_a_schedule_that_does_not_change_or_is_not_known_stays(shares):
    assert np.array_equal(later_phase(X[:5], shares)(X[5:]), np.full(5, shares[-1]), equal_nan=True)


def test_the_effect_of_a_decay_is_found_and_its_error_falls_with_checkpoints():
    rng = np.random.default_rng(0)
    exact = 2.5 + 1.5 * np.exp(-0.4 * (X - X[0]))
    errors = []
    for n in (4, 10):
        y = (exact - 0.2 * cosine(TOKENS) + 0.001 * rng.standard_normal(10))[:n]
        found = decay_of_loss(History(X[:n], y, np.full(n, 0.001), cosine(TOKENS)[:n]))
        assert found is not None
        assert abs(found.effect + 0.2) < 2.5 * found.error
        errors.append(found.error)
    assert errors[1] < 0.6 * errors[0]


def test_without_a_decay_nothing_is_added():
    assert decay_of_loss(History(X, 3 - 0.1 * (X - X[0]), np.full(10, 0.01), np.zeros(10))) is None
    assert decay_of_loss(History(X, 3 - 0.1 * (X - X[0]), np.full(10, 0.01), np.full(10, np.nan))) is None


def _decaying(follow):
    """What forecasts of the loss of 6 runs hold whose cosine lowers it by 0.2 nats, known or not."""
    stated = []
    for seed in range(6):
        own = run(LAWS["power"], np.random.default_rng(seed), 12, scatter=0.003, relative=0.03)
        phase = cosine(own[0].tokens, end=own[0].tokens[-1])
        own = [replace(s, loss_fp=s.loss_fp - 0.2 * phase, phase=phase if follow else 0 * phase + np.nan) for s in own]
        stated += backtest(own, methods={"forecast": _forecast})
    found = total(scores(stated), What.LOSS)
    assert found
    return found


def _forecast(group, siblings, x, seed):
    return (draw(s, siblings, x, seed=seed, n_draws=400) for s in group)


@pytest.mark.slow
def test_forecasts_that_follow_a_schedule_keep_their_promise():
    follows, ignores = _decaying(True), _decaying(False)
    assert follows.coverage >= 0.9
    assert ignores.refuted > 2 * follows.refuted
    assert ignores.otherwise == 0


def test_statements_about_a_decay_that_nothing_told_of_are_counted_apart():
    own = run(LAWS["power"], np.random.default_rng(0), 12)
    phase = np.where(np.arange(12) < 10, 0.0, 1.0)
    stated = backtest([replace(s, phase=phase) for s in own], methods={"forecast": _forecast})
    last = own[0].tokens[9]
    for s in stated:
        if s.what is What.LOSS:
            assert s.as_assumed == (s.target_tokens <= last or s.origin_tokens > last)


def test_a_loss_rises_only_where_a_rise_was_seen():
    own = run(LAWS["power"], np.random.default_rng(0), 12, scatter=0.001)
    place = own[0].x[6]
    whole = [replace(s, loss_fp=s.loss_fp + 0.4 * np.maximum(s.x - place, 0) ** 2) for s in own]
    ups = []
    for n in (7, 12):
        part = [s.until(s.tokens[n - 1]) for s in whole]
        s = part[0]
        history = History(s.x, s.loss_fp, np.full(n, s.scatter), s.phase)
        assert risen(history) == (n == 12)
        assert ("rising_parabola" in loss_curves(history)) == (n == 12)
        paths = draw(s, part, grid(s.tokens[-1], 2.0), n_draws=400)
        before = (paths.loss - paths.delta)[:, n:]
        ups.append(float(np.median(before[:, -1] - before[:, 0])))
    assert ups[0] < 0 < ups[1]


def test_bends_are_as_frequent_as_stated_and_only_slow_a_fall():
    x = np.linspace(0, 2, 61)
    drawn = _bent(np.tile(-0.3 * x, (4000, 1)), x, np.random.default_rng(0))
    assert np.all(drawn[:, -1] >= -0.6 - 1e-12)
    assert np.all(np.diff(drawn, axis=1) <= 1e-12)
    bent = np.mean(drawn[:, -1] > -0.6 + 1e-9)
    assert bent == pytest.approx(1 - np.exp(-BENDS * 2), abs=0.03)
