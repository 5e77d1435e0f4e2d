"""Recovery: schedules and their effect are found from checkpoints, and forecasts follow them; a rise that was seen."""

from dataclasses import replace

import numpy as np
import pytest

from ptq_eval.laws.forecast import loss
from ptq_eval.laws.forecast.backtest import What, backtest
from ptq_eval.laws.forecast.candidates import History, decay_of_loss, loss_curves, risen
from ptq_eval.laws.forecast.decay import later_phase, progress
from ptq_eval.laws.forecast.forecast import draw, grid, turn
from ptq_eval.laws.forecast.loss import _bent
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
    """What forecasts of the loss of 6 runs hold whose cosine lowers it by 0.2 nats, known or not.

    Their laws are of the learning rate's integral over D (Tissue et al., 2408.11029), found by a sum over fine steps.
    """
    stated = []
    for seed in range(6):
        own = run(LAWS["power"], np.random.default_rng(seed), 12, scatter=0.003, relative=0.03)
        end = 2.02 * own[0].tokens[-1]  # the integral over a whole cosine is half of that
        fine = np.linspace(0, end, 100_001)
        tokens = np.interp(own[0].tokens, np.cumsum(1 - cosine(fine, end=end)) * fine[1], fine)
        phase = cosine(tokens, end=end)
        shown = phase if follow else np.full(12, np.nan)
        own = [replace(s, tokens=tokens, loss_fp=s.loss_fp - 0.2 * phase, phase=shown) for s in own]
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


def test_a_bend_only_slows_a_fall_and_lowers_nothing():
    x, rate = np.linspace(0, 2, 61), np.ones((2, 1))
    fall = np.tile(-0.3 * x, (2, 1))
    drawn = _bent(fall, x, np.array([[0.0], [np.inf]]), rate)
    assert drawn[1] == pytest.approx(fall[1])
    assert np.all(drawn[0] >= fall[0] - 1e-12)
    assert np.all(np.diff(drawn, axis=1) <= 1e-12)
    assert drawn[0, -1] == pytest.approx(-0.3 * -np.expm1(-2), rel=1e-3)  # the integral of 0.3·e^(−x)


def test_the_ends_of_a_turn_do_not_rest_on_when_the_loss_bends(monkeypatch):
    """The lower end is as if the loss bent at once and the upper one as if it never did, however rare bends are."""
    own = [s.until(s.tokens[7]) for s in run(LAWS["power"], np.random.default_rng(3), 11, scatter=0.002)]
    said = {}
    for rate in (1e-6, 0.15, 1e6):
        monkeypatch.setattr(loss, "BENDS", rate)
        said[rate] = [turn(draw(s, own, n_draws=400)) for s in own]
    for never, some, always in zip(*said.values()):
        assert some.low == pytest.approx(always.low, rel=1e-6)
        assert some.high == pytest.approx(never.high, rel=1e-6)
        assert some.low <= never.value
        assert never.low == pytest.approx(some.low, rel=1e-6)


def test_a_learning_rate_of_zero_trains_nothing():
    """Beyond the end of a schedule no loss and no δ moves, whatever the power laws before it say."""
    own = run(LAWS["power"], np.random.default_rng(0), 12, scatter=0.001)
    end = own[0].tokens[-1]
    known = [replace(s, phase=cosine(s.tokens, end=end)).until(s.tokens[-2]) for s in own]
    x = np.log(end * np.array([1.01, 2.0, 8.0]))
    for s in known:
        paths = draw(s, known, x, n_draws=200)
        assert np.ptp(paths.loss[:, -2:], axis=1).max() < 1e-3
        assert np.ptp(paths.delta[:, -2:], axis=1).max() < 1e-3


def test_progress_is_the_integral_of_the_learning_rate():
    """Against a fine sum over a cosine; log D where the rate is constant, not known, or of branches that each end."""
    shares = cosine(TOKENS, end=1e7)
    fine = np.linspace(0, 1e7, 100_001)
    rates = 1 - cosine(fine, end=1e7)
    sums = np.cumsum(np.append(0.0, np.diff(fine) * (rates[1:] + rates[:-1]) / 2))
    expected = np.log(np.interp(TOKENS, fine, sums))
    assert progress(X[:6], shares[:6])(X) == pytest.approx(expected, abs=0.02)
    for known in (np.zeros(6), np.full(6, np.nan), np.ones(6), np.array([0.0, 1, 0, 1, 0, 1])):
        assert progress(X[:6], known)(X) == pytest.approx(X)
