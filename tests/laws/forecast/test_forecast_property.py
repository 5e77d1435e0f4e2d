"""Properties: quantiles in order, intervals that widen with distance, no unit of D that matters, no noise continued."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ptq_eval.laws.forecast.candidates import History, level_of_delta
from ptq_eval.laws.forecast.forecast import (
    NOISE_GROWTH,
    Paths,
    Turn,
    draw,
    grid,
    growth_of_noise,
    learn,
    smoother,
    turn,
    untested,
)
from tests.laws.forecast.support import LAWS, only_noise, run

RUNS = st.builds(
    lambda law, seed, n: run(LAWS[law], np.random.default_rng(seed), n),
    st.sampled_from(sorted(LAWS)),
    st.integers(0, 10_000),
    st.integers(4, 12),
)


def paths_of(own, place=0, **options):
    return draw(own[place], own, learned=learn(own), n_draws=400, **options)


@settings(deadline=None, max_examples=25)
@given(RUNS, st.integers(0, 2))
def test_intervals_are_in_order_and_widen_with_distance(own, place):
    paths = paths_of(own, place)
    ahead = len(own[place].tokens)
    for draws in (paths.loss, paths.delta):
        assert np.isfinite(draws).all()
        low, inner, value, outer, high = np.quantile(draws[:, ahead:], [0.05, 0.25, 0.5, 0.75, 0.95], axis=0)
        assert (low <= inner).all()
        assert (inner <= value).all()
        assert (value <= outer).all()
        assert (outer <= high).all()
    steps = np.diff(np.subtract(*np.quantile(paths.loss[:, ahead:], [0.95, 0.05], axis=0))[::15])
    assert (steps > -1e-12).all()
    said = turn(paths)
    assert own[place].tokens[0] * (1 - 1e-9) <= said.low <= said.value <= said.high


@settings(deadline=None, max_examples=15)
@given(RUNS, st.sampled_from([1e-3, 7.0, 1e6]))
def test_no_unit_of_tokens_matters(own, unit):
    scaled = [replace(s, tokens=unit * s.tokens) for s in own]
    one, other = paths_of(own), paths_of(scaled)
    for name in ("loss", "delta", "measured_loss", "measured_delta"):
        assert np.allclose(getattr(other, name), getattr(one, name), rtol=1e-6, atol=1e-9)
    assert turn(other).low == pytest.approx(unit * turn(one).low, rel=1e-6)


@settings(deadline=None, max_examples=15)
@given(st.integers(0, 10_000))
def test_noise_is_not_continued(seed):
    rng = np.random.default_rng(seed)
    own = run(LAWS["power"], rng)
    noise = rng.standard_normal(11) * 1e-4
    noise[-1] = -abs(noise[-1])
    series = replace(own[2], delta=noise, se=np.full(11, 1e-4))
    assert not series.significant
    paths = draw(series, [*own[:2], series], grid(series.tokens[-1]))
    ahead = paths.delta[:, len(series.tokens) :]
    assert np.ptp(ahead, axis=1).max() == 0
    assert abs(ahead).max() < 2e-4


@settings(deadline=None, max_examples=15)
@given(RUNS)
def test_no_path_of_delta_falls_below_the_last(own):
    series = own[0]
    level = level_of_delta(History(series.x, series.delta, series.noise, series.phase))
    assert series.significant
    assert paths_of(own).delta[:, len(series.tokens) :].min() >= level * (1 - 1e-12)


@settings(deadline=None, max_examples=15)
@given(RUNS, st.integers(0, 10_000), st.floats(0.3, 1.0))
def test_clear_deltas_that_scatter_widely_are_continued_from_the_last(own, seed, scatter):
    """A δ of many standard errors is no noise, however far it is from a smooth curve."""
    wide = np.exp(scatter * np.random.default_rng(seed).standard_normal(len(own[0].delta)))
    series = replace(own[0], delta=own[0].delta * wide, se=own[0].delta * wide / 20)
    assert series.significant
    paths = draw(series, [series, *own[1:]], n_draws=200)
    assert paths.delta[:, len(series.tokens) :].min() >= series.delta[-1] * (1 - 1e-9)


@pytest.mark.parametrize("n", [4, 6, 10])
def test_a_delta_that_has_grown_out_of_the_noise_is_no_noise(n):
    """Two clear deltas after several that are not: the loss after quantization rises already, and may not be said to
    fall up to four times the last D because δ were the mean of all."""
    noise = 1e-3 * np.random.default_rng(n).standard_normal(n)
    delta = np.append(noise[:-2], [0.05, 0.4])
    own = run(LAWS["power"], np.random.default_rng(0), n)[0]
    series = replace(own, delta=delta, se=np.append(np.full(n - 2, 1e-3), [2e-3, 5e-2]))
    assert series.significant
    assert turn(draw(series, [series])).low <= series.tokens[-1] * 1.1


@settings(deadline=None, max_examples=10)
@given(st.integers(0, 10_000))
def test_noise_rarely_seems_to_have_grown(seed):
    """Deltas that are noise of four times their errors, as at 8 bits, are taken for signals in 5 % of cases at most."""
    own = run(LAWS["power"], np.random.default_rng(0), 8)[0]
    noise = 4e-3 * np.random.default_rng(seed).standard_normal((200, 8))
    found = [replace(own, delta=each, se=np.full(8, 1e-3)).significant for each in noise]
    assert np.mean(found) < 0.1


def test_the_growth_of_noise_is_found():
    rng, own = np.random.default_rng(0), run(LAWS["power"], np.random.default_rng(0), 12)
    for growth in (0.0, 0.6):
        group = [only_noise(own[0], rng, growth) for _ in range(9)]
        assert abs(float(growth_of_noise(group) @ NOISE_GROWTH) - growth) < 0.15


NUMBERS = st.lists(st.floats(-2, 5, allow_subnormal=False), min_size=8, max_size=8)


@settings(deadline=None, max_examples=40)
@given(NUMBERS, NUMBERS, st.sampled_from([0.0, 1e-4, 0.1]), st.booleans())
def test_any_finite_numbers_give_finite_paths(deltas, losses, error, annealed):
    series = replace(
        run(LAWS["power"], np.random.default_rng(0), 8)[0],
        loss_fp=np.abs(losses) + 0.01,
        delta=np.array(deltas),
        se=np.full(8, error),
        phase=np.linspace(0, 1, 8) if annealed else np.full(8, np.nan),
    )
    paths = draw(series, [series], n_draws=100)
    for name in ("loss", "delta", "measured_loss", "measured_delta"):
        assert np.isfinite(getattr(paths, name)).all(), name
    assert turn(paths).low > 0


def test_the_future_of_siblings_is_not_used():
    own = run(LAWS["power"], np.random.default_rng(0))
    parts = [s.until(own[0].tokens[5]) for s in own]
    changed = [replace(s, delta=np.where(s.tokens > own[0].tokens[5], 9.0, s.delta)) for s in own]
    assert (paths_of(parts).loss == paths_of([s.until(own[0].tokens[5]) for s in changed]).loss).all()


def test_an_untested_turn_inside_the_range_is_open_above():
    assert untested(Turn(1e6, 2e6, 3e6), 4e6) == Turn(1e6, np.inf, np.inf)
    assert untested(Turn(1e6, 2e6, 5e6), 4e6) == Turn(1e6, 2e6, 5e6)


def test_an_untested_upper_end_at_the_last_checkpoint_is_open():
    loss = np.array([[3.0, 2.5, *np.linspace(2.0, 3.0, 61)]] * 2000)  # the least is that of the last checkpoint
    x = np.concatenate([np.log([1e6, 2e6, 4e6]), grid(4e6)])
    said = turn(Paths(x, loss, loss, loss, loss))
    assert 4e6 < said.high < 4.1e6
    assert untested(said, 4e6) == Turn(said.low, np.inf, np.inf)


@given(st.floats(1e5, 6.4e7), st.floats(1.0, 16.0))
def test_neither_end_is_beyond_what_was_tested(low, factor):
    said = untested(Turn(low, low * factor**0.5, low * factor), 4e6)
    assert said.low <= 16e6
    assert said.high <= 16e6 or np.isinf(said.high)
    assert untested(Turn(low, np.inf, np.inf), 4e6).low <= 16e6


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 10_000), st.integers(1, 14))
def test_parabolas_stay_and_noise_shrinks_where_the_measured_part_is_smoothed(seed, n):
    rng = np.random.default_rng(seed)
    x, noise = np.cumsum(rng.uniform(0.2, 1.5, n)), rng.uniform(0.01, 0.1, n)
    matrix = smoother(x, noise)
    curve = np.polyval(rng.standard_normal(3), x)
    assert np.allclose(matrix @ curve, curve)
    assert (np.hypot.reduce(matrix * noise, axis=1) <= noise * (1 + 1e-9)).all()
    assert (matrix[[0, -1]] == np.eye(n)[[0, -1]]).all()


@settings(deadline=None, max_examples=15)
@given(RUNS)
def test_no_path_of_the_full_precision_loss_rises(own):
    paths = paths_of(own)
    ahead = len(own[0].tokens)
    before = (paths.loss - paths.delta)[:, ahead:]
    assert np.diff(before, axis=1).max() < 1e-9
    assert (before[:, 0] <= paths.loss[:, ahead - 1] - own[0].delta[-1] + 1e-9).all()


def test_a_loss_that_stays_after_its_minimum_turns_where_it_leaves_it():
    loss = np.array([[3.0, 2.0, 2.0, 2.0, 2.5, 2.6]] * 50)
    paths = Paths(np.arange(6.0), loss, loss, loss, loss)
    said = turn(paths)
    assert 2.5 <= np.log(said.low) <= np.log(said.high) <= 3.5
    assert turn(replace(paths, loss=np.full_like(loss, 2.0))).high == np.inf


def test_a_flat_curve_is_not_forecast_to_turn():
    rng, own = np.random.default_rng(0), run(LAWS["power"], np.random.default_rng(0))
    two_ends = 0
    for _ in range(20):
        loss, delta = 3 + 0.01 * rng.standard_normal(11), 0.3 + 0.01 * rng.standard_normal(11)
        series = replace(own[0], loss_fp=loss, delta=delta, se=np.full(11, 0.003))
        said = untested(turn(draw(series, [series], n_draws=400)), series.tokens[-1])
        two_ends += np.isfinite(said.high)
    assert two_ends <= 2
