"""Oracle: the test of a rise against a slow implementation that shares nothing with it, and its size and power."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ptq_eval.laws import Estimate, TurningPoint
from ptq_eval.laws.turning import shapes, significance
from ptq_eval.laws.turning.observed import controlled, rise_test
from ptq_eval.laws.turning.significance import SIGNIFICANCE, adjusted, detectable, p_value, scatter

LENGTHS = (5, 7, 8, 10, 13, 30)


def slow_groups(y):
    m = min(len(y), 9)
    edges = [round(i * len(y) / m) for i in range(m + 1)]
    return [sum(y[a:b]) / (b - a) for a, b in itertools.pairwise(edges)], edges


def slow_fits(y):
    """Every shape by least squares: the best -2 log likelihood without a rise (with its curve) and with one."""
    n = len(y)
    t = np.arange(n) / (n - 1)
    means, edges = slow_groups(y)
    m = len(means)
    without, curve, rising = math.inf, np.empty(0), math.inf
    for place in range(m):
        end = (edges[place] + edges[place + 1] - 1) / 2 / (n - 1)
        v = np.maximum(t - end, 0) / max(1 - end, 0.01)
        for rate in (0.5, 2.0, 4.0, 8.0, 16.0):
            f = np.exp(-rate * np.minimum(t, end))
            f = (f - f.min()) / max(np.ptp(f), 1e-300)
            for k in (0,) if place == 0 else (1, 2) if m >= 8 and place > 2 else (1,):
                falls = [f, f**2][:k]
                for bend in (None, -3.0, 0.01, 4.0):
                    if bend and place == m - 1:
                        continue
                    rise = [] if bend is None else [np.expm1(-bend * v) / np.expm1(-bend)]
                    raw = np.column_stack([np.ones(n), *falls, *rise])
                    design = np.column_stack([slow_groups(column)[0] for column in raw.T])
                    theta = np.linalg.lstsq(design, means, rcond=None)[0]
                    slopes = [theta[1] + 2 * u * (theta[2] if k == 2 else 0) for u in (0, 1)] if k else [0]
                    if min(slopes) < -1e-12 or (bend and theta[-1] <= 0):
                        continue
                    left = sum((means - design @ theta) ** 2)
                    value = (m - 1) * math.log(left) + k * math.log(m)
                    if bend is None and value < without:
                        without, curve = value, raw @ theta
                    if bend is not None:
                        rising = min(rising, value)
    return without, curve, rising


def correlated(rng, count, n, phi):
    y = rng.normal(size=(count, n))
    for i in range(1, n):
        y[:, i] = phi * y[:, i - 1] + math.sqrt(1 - phi**2) * y[:, i]
    return y


def claims(curves):
    """The share with a minimum inside and a significant rise."""
    lowest = curves.argmin(axis=1)
    inside = (lowest > 0) & (lowest < curves.shape[1] - 1)
    return np.mean([ok and p_value(y, replicates=300) <= SIGNIFICANCE for y, ok in zip(curves, inside)])


def falling_and_rising(rng, count, n):
    t = np.linspace(0, 1, n)
    falls = rng.uniform(0, 20, (count, 1)) * np.exp(-rng.uniform(0, 15, (count, 1)) * t)
    return rng.normal(size=(count, n)) + falls + rng.uniform(0, 6, (count, 1)) * np.maximum(t - 0.5, 0)


@pytest.mark.parametrize("n", LENGTHS)
def test_the_fits_agree_with_least_squares_over_every_shape(n):
    curves = falling_and_rising(np.random.default_rng(n), 8, n)
    found = shapes.fit(curves)
    for y, gain, null in zip(curves, found.gain, found.null):
        without, curve, rising = slow_fits(y)
        # shapes that hardly differ are fitted once here, and all of them by the slow one
        assert gain == pytest.approx(max(without - rising, 0) / 2, abs=0.1)
        assert null - null.mean() == pytest.approx(curve - curve.mean(), abs=0.05 * np.ptp(y))


@pytest.mark.parametrize("n", [6, 10])
def test_the_p_value_agrees_with_a_bootstrap_of_its_own(n):
    """Of curves that fall, and turn more or less; the fit is checked above, the simulation here."""
    rng = np.random.default_rng(n)
    shape = np.abs(np.linspace(-1, 1, n))
    for rise in (1.0, 3.0):
        y = rise * shape + rng.normal(size=n)
        y[n // 2] -= 1.0
        fitted = shapes.fit(y[None])
        noise = np.concatenate([correlated(rng, 40, n, phi) for phi in rng.uniform(0, 0.5, 100)])
        again = fitted.null + scatter(y) * noise
        gains = np.array([shapes.fit(one[None]).gain[0] if 0 < one.argmin() < n - 1 else -1 for one in again])
        expected = np.mean(gains >= fitted.gain[0])
        assert 0 < y.argmin() < n - 1
        assert p_value(y) == pytest.approx(expected, abs=4 * math.sqrt(expected / 300) + 0.005)


@pytest.mark.parametrize("n", [5, 10, 20])
@pytest.mark.parametrize(("phi", "most"), [(0.0, 0.07), (0.5, 0.10)])
def test_flat_and_saturating_curves_are_rarely_claimed_to_turn(n, phi, most):
    rng = np.random.default_rng([n, int(10 * phi)])
    noise = correlated(rng, 300, n, phi)
    falling = 40 * np.geomspace(1, 100, n) ** -0.8
    for mean in (0.0, falling):
        assert claims(noise + mean) <= most + 3 * math.sqrt(most / 300)


@pytest.mark.parametrize("n", [10, 20])
def test_a_steep_fall_before_a_rise_that_saturates_does_not_hide_it(n):
    """As losses after quantization to few bits do: a fall of 40 standard deviations and a rise of 8."""
    t = np.linspace(-1, 1, n)
    mean = np.where(t < 0, 40 * t**2, 8 * -np.expm1(-4 * np.maximum(t, 0)))
    noise = correlated(np.random.default_rng(n), 150, n, 0.0)
    assert claims(mean + noise) >= 0.6


@pytest.mark.slow
@pytest.mark.parametrize("n", [8, 12])
def test_a_detectable_rise_is_found_in_four_of_five_curves(n):
    rng = np.random.default_rng(n)
    noise = np.concatenate([correlated(rng, 40, n, phi) for phi in np.linspace(0, 0.5, 8)])
    rise = detectable(n) * float(np.median([scatter(y) for y in noise]))
    shape = np.square(np.linspace(-1, 1, n))
    shape = (shape - shape.min()) / np.ptp(shape)
    assert claims(noise + rise * shape) == pytest.approx(0.8, abs=0.09)


@settings(deadline=None)  # the first call of each length simulates
@given(st.integers(5, 14), st.integers(0, 10**6), st.floats(1e-3, 1e3), st.floats(-1e3, 1e3))
def test_unit_and_origin_of_the_loss_do_not_matter(n, seed, unit, origin):
    y = np.random.default_rng(seed).normal(size=n)
    assert p_value(unit * y + origin) == pytest.approx(p_value(y), abs=2e-3)


@settings(deadline=None)
@given(st.integers(5, 30), st.integers(0, 10**6))
def test_what_never_rises_in_the_null_fit_falls_and_stays(n, seed):
    curves = falling_and_rising(np.random.default_rng(seed), 5, n)
    found = shapes.fit(curves)
    assert np.all(np.diff(found.null, axis=1) <= 1e-9 * np.ptp(curves))
    assert np.all(found.gain >= 0)
    assert np.all(found.scatter > 0)


def test_a_loss_that_never_rises_has_no_evidence_of_a_turn():
    assert p_value(np.array([5.0, 4.0, 3.5, 3.2, 3.1, 3.0])) == 1.0
    assert p_value(np.full(8, 3.0)) == 1.0


def test_an_evaluation_error_makes_a_rise_less_significant():
    y = np.array([3.0, 2.0, 1.5, 1.6, 1.8, 2.1, 2.3, 2.7])
    p = [rise_test(y, error)["p_value"] for error in (0.0, 0.3, 1.0, 3.0)]
    assert p == sorted(p)
    assert p[0] < 0.05 < p[-1]


def slow_hochberg(p):
    """Closed testing: the largest of Hochberg's local tests over all subsets that hold a line."""
    result = []
    for i in range(len(p)):
        least = 0.0
        for size in range(1, len(p) + 1):
            for subset in itertools.combinations(range(len(p)), size):
                if i in subset:
                    ordered = sorted(p[j] for j in subset)
                    least = max(least, min((size - k) * value for k, value in enumerate(ordered)))
        result.append(min(least, 1.0))
    return result


@given(st.lists(st.floats(1e-6, 1.0), min_size=1, max_size=6))
def test_one_bit_width_is_controlled_by_hochbergs_procedure(p):
    found = adjusted({i: (i, 2.0, value) for i, value in enumerate(p)})
    assert [found[i] for i in range(len(p))] == pytest.approx(slow_hochberg(p))


def test_more_bits_are_tested_only_where_fewer_bits_rise():
    lines = {"a2": ("a", 2, 0.001), "a3": ("a", 3, 0.01), "b2": ("b", 2, 0.4), "b3": ("b", 3, 0.001)}
    found = adjusted({**lines, "a8": ("a", 8, math.nan), "a4": ("a", 4, 0.6)})
    assert found["a2"] == pytest.approx(0.002)
    assert found["a3"] == pytest.approx(0.01)
    assert found["b3"] == found["b2"] == pytest.approx(0.4)
    assert math.isnan(found["a8"])
    assert found["a4"] == pytest.approx(0.6)


def test_a_turn_that_is_not_significant_among_many_lines_is_not_interior():
    one = TurningPoint(1e7, Estimate(1e7, 5e6, 2e7), True, 0.3, 0.1, p_value=0.03, adjusted_p=0.03)
    none = TurningPoint(1e7, Estimate(1e7, 5e6, math.inf), False, 0.0, 0.1, p_value=0.9, adjusted_p=0.9)
    alone = controlled({"a": one}, {"a": ("run", 2.0)})["a"]
    assert alone == one
    among = controlled({"a": one, "b": none}, {"a": ("run", 2.0), "b": ("other", 2.0)})["a"]
    assert not among.interior
    assert among.adjusted_p == pytest.approx(0.06)
    assert among.place == Estimate(1e7, 5e6, math.inf)


def test_the_simulation_is_repeated_exactly():
    y = falling_and_rising(np.random.default_rng(3), 1, 9)[0]
    first, rise = p_value(y), detectable(9)
    significance._noise.cache_clear()
    significance.detectable.cache_clear()
    shapes._shapes.cache_clear()
    assert (p_value(y), detectable(9)) == (first, rise)
