"""Oracle: the test of a rise against a slow implementation that shares nothing with it, and its size and power."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ptq_eval.laws import Estimate, TurningPoint
from ptq_eval.laws.turning import significance
from ptq_eval.laws.turning.observed import controlled
from ptq_eval.laws.turning.significance import RATES, SIGNIFICANCE, adjusted, detectable, p_value, scatter, tail_starts

LENGTHS = (5, 7, 8, 13, 30)


def slow_tail(y):
    for i in range(len(y) - 1):
        if y[i] <= sum(y[i + 1 :]) / (len(y) - i - 1):
            return i
    return len(y)


def slow_scatter(y):
    """Fits by least squares, one power after the other."""
    n = len(y)
    t = np.arange(n) / (n - 1)
    best, found = math.inf, None
    for rate in RATES:
        columns = [t**0, t, np.exp(-rate * t)] + ([t**2] if n >= 8 else [])
        left = y - np.column_stack(columns) @ np.linalg.lstsq(np.column_stack(columns), y, rcond=None)[0]
        misfit = left @ left
        if misfit >= best:
            continue
        best, squares, power = misfit, [], 3 if n >= 8 else 2
        for more in range(int(n**0.5)):
            design = np.column_stack(columns)
            new = t ** (power + more)
            new = new - design @ np.linalg.lstsq(design, new, rcond=None)[0]
            squares.append((new @ left) ** 2 / (new @ new))
            columns.append(t ** (power + more))
        found = math.sqrt(sum(squares) / len(squares))
    return found


def correlated(rng, count, n, phi):
    y = rng.normal(size=(count, n))
    for i in range(1, n):
        y[:, i] = phi * y[:, i - 1] + math.sqrt(1 - phi**2) * y[:, i]
    return y


def claims(curves):
    """The share with a minimum inside and a significant rise."""
    lowest = curves.argmin(axis=1)
    inside = (lowest > 0) & (lowest < curves.shape[1] - 1)
    starts = tail_starts(curves)
    return np.mean([ok and p_value(y, s, 0.0) <= SIGNIFICANCE for y, s, ok in zip(curves, starts, inside)])


@pytest.mark.parametrize("n", LENGTHS)
def test_tail_and_scatter_agree_with_the_slow_ones(n):
    rng = np.random.default_rng(n)
    curves = rng.normal(size=(20, n)) + 5 * np.exp(-rng.uniform(0, 9, (20, 1)) * np.linspace(0, 1, n))
    assert tail_starts(curves).tolist() == [slow_tail(y) for y in curves]
    assert scatter(curves) == pytest.approx([slow_scatter(y) for y in curves], rel=1e-5)


@pytest.mark.parametrize("n", [6, 9])
def test_the_p_value_agrees_with_a_simulation_of_its_own(n):
    """At a rise that half, a tenth and a fiftieth of flat curves reach, for a tail of four and for the whole curve."""
    rng = np.random.default_rng(1)
    flat = np.concatenate([correlated(rng, 120, n, phi) for phi in rng.uniform(0, 0.5, 10)])
    scale = np.array([slow_scatter(y) for y in flat])
    for m in (4, n):
        weights = np.arange(m) - (m - 1) / 2
        weights /= np.linalg.norm(weights)
        begins = np.array([y[n - m] <= y[n - m + 1 :].mean() for y in flat])
        usable = flat[begins]
        stat = np.array([weights @ y[n - m :] for y in usable]) / scale[begins]
        inside = np.array([0 < y.argmin() < n - 1 for y in usable])
        if m == n:
            stat = np.where(inside, stat, -np.inf)
        candidates = np.flatnonzero(inside & np.isfinite(stat))
        for share in (0.3, 0.1, 0.02):
            k = min(candidates, key=lambda i: abs(np.mean(stat >= stat[i]) - share))
            expected = np.mean(stat >= stat[k])
            error = math.sqrt(expected / len(stat))
            assert p_value(usable[k], n - m, 0.0) == pytest.approx(expected, abs=4 * error)


@pytest.mark.parametrize("n", [5, 10, 20])
@pytest.mark.parametrize(("phi", "most"), [(0.0, 0.05), (0.5, 0.08)])
def test_flat_and_saturating_curves_are_rarely_claimed_to_turn(n, phi, most):
    rng = np.random.default_rng([n, int(10 * phi)])
    noise = correlated(rng, 1500, n, phi)
    falling = 40 * np.geomspace(1, 100, n) ** -0.8
    for mean in (0.0, falling):
        assert claims(noise + mean) <= most + 3 * math.sqrt(most / 1500)


@pytest.mark.parametrize("n", [8, 12])
def test_a_detectable_rise_is_found_in_four_of_five_curves(n):
    rng = np.random.default_rng(n)
    noise = np.concatenate([correlated(rng, 100, n, phi) for phi in np.linspace(0, 0.5, 8)])
    rise = detectable(n) * float(np.median(scatter(noise)))
    shape = np.square(np.linspace(-1, 1, n))
    shape = (shape - shape.min()) / np.ptp(shape)
    assert claims(noise + rise * shape) == pytest.approx(0.8, abs=0.07)


@settings(deadline=None)  # the first call of each length simulates
@given(st.integers(5, 14), st.integers(0, 10**6), st.floats(1e-3, 1e3), st.floats(-1e3, 1e3))
def test_unit_and_origin_of_the_loss_do_not_matter(n, seed, unit, origin):
    y = np.random.default_rng(seed).normal(size=n)
    start = int(tail_starts(y[None])[0])
    assert p_value(unit * y + origin, start, 0.0) == pytest.approx(p_value(y, start, 0.0), abs=1e-3)


def test_an_evaluation_error_makes_a_rise_less_significant():
    y = np.array([3.0, 2.0, 1.5, 1.6, 1.8, 2.1, 2.3, 2.7])
    p = [p_value(y, 1, variance) for variance in (0.0, 0.1, 1.0, 10.0)]
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
    first = significance.null_distribution(9, 5, inside=False).copy()
    significance.null_distribution.cache_clear()
    significance._noise.cache_clear()
    assert np.array_equal(first, significance.null_distribution(9, 5, inside=False))
