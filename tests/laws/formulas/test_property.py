"""Property: what must hold of every fit, whatever the data."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ptq_eval.laws import critical_tokens, fit
from ptq_eval.laws.base import n_distinct
from ptq_eval.laws.fit.bootstrap import interval, jackknifed, multipliers, window_noise
from ptq_eval.laws.fit.losses import huber
from ptq_eval.laws.fit.solver import to_search, to_theta
from ptq_eval.laws.formulas.kumar import KumarPTQRatio
from tests.laws.synthetic import KUMAR_LOSS, RATIO, RATIOS, points, ratio

seeds = st.integers(0, 10_000)


def sample(seed, **how):
    rng = np.random.default_rng(seed)
    return points(ratio, RATIO, [80e3], RATIOS[::2], (2, 3, 4), rng, **{"scatter": 0.1, **how})


@pytest.mark.slow
@settings(max_examples=8, deadline=None)
@given(seeds, st.floats(1e-3, 1e3))
def test_delta_in_other_units_changes_only_the_factor(seed, unit):
    data = sample(seed)
    scaled = {**data, **{name: unit * data[name] for name in ("delta", "se", "windows")}}
    one, other = (fit(KumarPTQRatio(), d, n_boot=20).estimates for d in (data, scaled))
    assert other["C"].value == pytest.approx(unit * one["C"].value, rel=1e-4)
    assert other["gamma"].value == pytest.approx(one["gamma"].value, rel=1e-4)
    assert other["gamma"].low == pytest.approx(one["gamma"].low, rel=1e-3)


@pytest.mark.slow
@settings(max_examples=8, deadline=None)
@given(seeds)
def test_the_order_of_the_points_does_not_matter(seed):
    data = sample(seed)
    order = np.random.default_rng(seed).permutation(len(data["delta"]))
    one = fit(KumarPTQRatio(), data, n_boot=0).values
    other = fit(KumarPTQRatio(), {name: column[order] for name, column in data.items()}, n_boot=0).values
    assert other == pytest.approx(one, rel=1e-5)


@settings(max_examples=8, deadline=None)
@given(seeds)
def test_a_seed_gives_one_result_and_intervals_contain_the_value(seed):
    data = sample(seed)
    one, again = (fit(KumarPTQRatio(), data, seed=seed, n_boot=30) for _ in range(2))
    assert one == again
    assert np.array_equal(one.replicates, again.replicates)
    for estimate in one.estimates.values():
        assert estimate.low <= estimate.value <= estimate.high


def test_more_noise_gives_wider_intervals_and_a_digest_tells_data_apart():
    quiet, loud = (fit(KumarPTQRatio(), sample(3, scatter=s)) for s in (0.02, 0.3))
    widths = [e.estimates["gamma"].high - e.estimates["gamma"].low for e in (quiet, loud)]
    assert widths[1] > 3 * widths[0]
    assert loud.scatter > 3 * quiet.scatter
    assert quiet.digest != loud.digest


@given(st.floats(-50, 50), st.floats(0.1, 5))
def test_huber_lies_below_half_the_square_and_meets_it_inside(r, k):
    value = float(huber(np.array(r), k))
    assert value <= 0.5 * r * r + 1e-12
    if abs(r) <= k:
        assert value == 0.5 * r * r


@given(st.floats(1e-6, 1e6), st.floats(-2.9, 2.9), st.floats(0.06, 19))
def test_search_coordinates_come_back(C, gamma, gamma_post):
    law, theta = KumarPTQRatio(), {"C": C, "gamma": gamma, "gamma_post": gamma_post}
    back = {name: float(value[0]) for name, value in to_theta(law, to_search(law, theta)).items()}
    assert back == pytest.approx(theta, rel=1e-9)


@given(st.floats(1e6, 1e10), st.integers(2, 7))
def test_more_bits_and_smaller_degradation_turn_later(N, bits):
    laws = [RATIO, KUMAR_LOSS]
    tokens = critical_tokens(N, bits, constants=laws)
    assert critical_tokens(N, bits + 1, constants=laws) > tokens
    assert critical_tokens(N, bits, constants=[*laws, {"C": 0.5 * RATIO["C"]}]) > tokens


def test_window_noise_has_the_variance_of_a_mean():
    windows = np.random.default_rng(0).normal(size=(3, 40))
    noise = window_noise(windows, 20_000, 1)
    np.testing.assert_allclose(noise.std(0), windows.std(1, ddof=1) / np.sqrt(40), rtol=0.03)
    np.testing.assert_allclose(noise.mean(0), 0, atol=0.01)


def test_multipliers_belong_to_labels_and_have_unit_variance():
    draws = multipliers(["a", "b", "a"], 20_000, 0)
    assert np.array_equal(draws[:, 0], draws[:, 2])
    assert abs(np.corrcoef(draws[:, 0], draws[:, 1])[0, 1]) < 0.03
    assert draws.std() == pytest.approx(1, rel=0.02)
    assert np.array_equal(multipliers(["b"], 20_000, 0)[:, 0], draws[:, 1])


def test_jackknifed_residuals_are_those_of_leaving_the_cluster_out():
    rng = np.random.default_rng(0)
    X, y, labels = rng.normal(size=(12, 2)), rng.normal(size=12), np.repeat(np.arange(4), 3)
    residual = y - X @ np.linalg.lstsq(X, y, rcond=None)[0]
    out = jackknifed(residual, X, labels.tolist())
    for label in range(4):
        rest = labels != label
        theta = np.linalg.lstsq(X[rest], y[rest], rcond=None)[0]
        np.testing.assert_allclose(out[~rest], y[~rest] - X[~rest] @ theta, atol=1e-9)


def test_an_interval_stretches_around_its_value_and_may_be_open():
    draws = np.exp(np.random.default_rng(0).normal(size=5000))
    low, high = interval(1.0, draws, factor=2.0, level=0.9, log=True)
    assert (low, high) == pytest.approx((np.exp(-3.29), np.exp(3.29)), rel=0.1)
    open_end = interval(1.0, np.where(draws > 2, np.inf, draws), factor=1.0, level=0.9, log=True)
    assert open_end[1] == np.inf


def test_values_within_five_percent_count_once():
    assert n_distinct([100, 103, 104]) == 1
    assert n_distinct([100, 106]) == 2
    assert n_distinct([]) == 0
