"""Contract, oracle and recovery: what counts as worse, how likely that is to be seen, how many windows that takes."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from ptq_eval.results.gate.decision import ASSURED, Evidence, Outcome, Rule, Shortage, decide, p_values

RULE = Rule(0.01, 0.02, 12)
SIZES = st.floats(1e-6, 1.0)


def evidence(worsening=0.0, error=0.002, df=95.0, windows=192, **more):
    return Evidence(worsening, error, df, windows, **more)


def naive_p(one):
    """Student's test of one cell, from the definition."""
    variance = one.error**2 + one.chance**2
    df = variance**2 / (one.error**4 / one.df + one.chance**4 / one.chance_df)
    return float(stats.t.sf(one.worsening / math.sqrt(variance), df))


def naive_holm(values):
    """Holm's procedure from the definition: the k-th smallest times what is left, never below the one before."""
    order, adjusted, before = sorted(range(len(values)), key=values.__getitem__), {}, 0.0
    for rank, place in enumerate(order):
        before = max(before, min((len(values) - rank) * values[place], 1.0))
        adjusted[place] = before
    return [adjusted[place] for place in range(len(values))]


@given(st.lists(st.tuples(st.floats(-0.5, 0.5), SIZES, st.floats(0, 0.3), st.integers(1, 200)), min_size=1, max_size=8))
def test_a_verdict_is_that_of_naive_tests_with_naive_control(cells):
    several = [evidence(w, error, float(df), chance=chance) for w, error, chance, df in cells]
    single = [naive_p(one) for one in several]
    assert p_values(several) == pytest.approx(single, abs=1e-10)
    adjusted = naive_holm(single)
    for one, p, (outcome, found) in zip(several, adjusted, decide(several, 0.01, 0.02)):
        assert found == pytest.approx(p, abs=1e-9)
        if abs(p - 0.02) > 1e-9:
            assert (outcome == Outcome.WORSE) == (p <= 0.02 and one.worsening > 0.01)


def test_a_worsening_counts_beyond_the_tolerance_and_beyond_chance_alone():
    outcomes = decide(
        [evidence(w, e) for w, e in ((0.009, 1e-4), (0.05, 0.04), (0.011, 1e-4), (-0.02, 1e-4))], 0.01, 0.02
    )
    expected = [Outcome.NOT_WORSE, Outcome.NOT_WORSE, Outcome.WORSE, Outcome.BETTER]
    assert [outcome for outcome, _ in outcomes] == expected


def test_equal_losses_are_the_same_and_a_constant_shift_is_certain():
    outcomes = decide([evidence(0.0, 0.0), evidence(0.02, 0.0), evidence(0.001, 0.0)], 0.01, 0.02)
    assert [outcome for outcome, _ in outcomes] == [Outcome.SAME, Outcome.WORSE, Outcome.NOT_WORSE]


def test_one_window_cannot_be_tested_and_does_not_count_for_others():
    outcomes = decide([evidence(0.5, math.nan, 0.0, 1), evidence(0.02, 0.001)], 0.01, 0.02)
    assert [outcome for outcome, _ in outcomes] == [Outcome.UNTESTED, Outcome.WORSE]
    assert outcomes[1][1] == pytest.approx(naive_p(evidence(0.02, 0.001, chance=0.0)))


@given(SIZES, st.floats(0, 0.2), st.floats(2, 500), st.floats(0, 0.9), st.integers(1, 300))
def test_power_and_the_smallest_worsening_are_inverse(error, chance, df, tolerance, cells):
    one, rule = evidence(error=error, df=df, chance=chance), Rule(tolerance, 0.02, cells)
    for power in (0.5, 0.8, 0.95):
        assert rule.power(one, rule.smallest(one, power)) == pytest.approx(power, abs=1e-6)
    assert rule.smallest(one) >= tolerance


@given(SIZES, st.floats(0, 0.02), st.floats(1e-4, 0.1), st.booleans())
def test_windows_needed_are_enough_and_one_fewer_is_not(error, chance, tolerance, finite):
    one = evidence(error=error, chance=chance, share=0.1 if finite else 0.0)
    rule = Rule(tolerance, 0.02, 24)
    needed = rule.needed(one)
    if needed is Shortage.CHANCE:
        return
    assert reach(rule, one, needed) <= 2 * tolerance * (1 + 1e-9)
    if needed > 2:
        assert reach(rule, one, needed - 1) > 2 * tolerance * (1 - 1e-9)


def reach(rule, one, windows):
    """What is seen with probability `ASSURED` on another number of windows, worked out here."""
    if one.share:
        total = round(one.windows / one.share)
        shrink = one.windows / windows * (1 - windows / total) / (1 - one.share)
    else:
        shrink = one.windows / windows
    df = max(one.df * windows / one.windows, 1)
    error = one.error * math.sqrt(max(shrink, 0))
    both = math.hypot(error, one.chance)
    joint = both**4 / (error**4 / df) if error else math.inf
    quantile = stats.t.isf(rule.level / rule.cells, joint)
    return max(rule.tolerance, quantile * both) + stats.t.ppf(ASSURED, df) * error


def test_no_number_of_windows_reaches_what_chance_alone_moves():
    assert RULE.needed(evidence(chance=0.02)) is Shortage.CHANCE
    assert RULE.needed(evidence(error=math.nan, df=0.0)) is None
    assert RULE.smallest(evidence(error=math.nan, df=0.0)) == math.inf


@pytest.mark.slow
def test_stated_power_is_the_share_that_is_caught():
    """Windows are drawn, one of twelve cells is worse by a known amount, and the whole grid is judged, many times."""
    rng, n, sd, worsening, trials = np.random.default_rng(0), 50, 0.02, 0.014, 1500
    caught, stated = 0, 0.0
    for _ in range(trials):
        draws = rng.normal(0, sd, (12, n))
        draws[0] += worsening
        cells = [evidence(d.mean(), d.std(ddof=1) / math.sqrt(n), n - 1.0, n) for d in draws]
        caught += decide(cells, 0.01, 0.02)[0][0] == Outcome.WORSE
        stated += RULE.power(cells[1], worsening)
    assert caught / trials == pytest.approx(stated / trials, abs=0.04)
    assert 0.3 < caught / trials < 0.97


@pytest.mark.slow
def test_grids_without_a_worsening_are_rarely_called_worse():
    rng, n, grids = np.random.default_rng(1), 20, 1500
    alarms = 0
    for _ in range(grids):
        draws = rng.normal(0, 0.02, (12, n))
        cells = [evidence(d.mean(), d.std(ddof=1) / math.sqrt(n), n - 1.0, n) for d in draws]
        alarms += any(outcome == Outcome.WORSE for outcome, _ in decide(cells, 0.0, 0.02))
    assert alarms / grids <= 0.032  # 2 % and three standard errors of 1,500 grids
    assert alarms > 0
