"""Contract and property: what chance does to the difference of two models."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ptq_eval.results.gate.chance import SHARED, Luck, chances

RNG = np.random.default_rng(0)
DELTA = RNG.normal(0.1, 0.03, (1, 200))


def luck(new, roundings=(0.01, 0.02), numerics=0.0, base=DELTA):
    return Luck(roundings, numerics, base, new)


def test_equal_models_have_no_chance_and_a_shift_of_all_windows_neither():
    assert chances([luck(DELTA, numerics=0.003)]) == [(0.0, math.inf)]
    assert chances([luck(DELTA + 0.05)]) == [(pytest.approx(0, abs=1e-9), math.inf)]


def test_independent_roundings_count_in_full():
    other = RNG.normal(0.1, 0.03, (1, 200))
    [(sd, df)] = chances([luck(other, numerics=0.003)])
    assert sd == pytest.approx(math.sqrt(0.01**2 + 0.02**2 + 2 * 0.003**2))
    assert df == math.inf


@given(st.floats(1e-6, 0.1))
def test_models_that_differ_little_share_their_luck(size):
    gaps = np.random.default_rng(1).normal(0, 1, (1, 200))
    new = DELTA + size * gaps
    share = np.var(size * gaps) / (SHARED * (np.var(DELTA) + np.var(new)))
    assert chances([luck(new)])[0][0] == pytest.approx(math.sqrt(min(share, 1)) * math.hypot(0.01, 0.02), rel=1e-6)


def test_what_records_do_not_say_does_not_count():
    one = luck(DELTA + 1e-3 * RNG.normal(size=(1, 200)), roundings=(math.nan, 0.02), numerics=math.nan)
    assert not one.known
    assert chances([one]) == [(0.0, math.inf)]


def test_draws_show_chance_themselves_shrunk_towards_that_of_the_roundings():
    """Eight cells of four draws: the variance of each has seven times the weight of its own, less what is common."""
    gaps = RNG.normal(0, 0.004, (8, 4, 1)) + RNG.normal(0, 0.01, (8, 4, 200))
    cells = [Luck((0.003, 0.003), 0.0, np.repeat(DELTA, 4, 0), np.repeat(DELTA, 4, 0) + own) for own in gaps]
    found = chances(cells)
    own = np.array([np.std(gap.mean(axis=1), ddof=1) / 2 for gap in gaps])
    sds = np.array([sd for sd, _ in found])
    assert np.ptp(sds) < np.ptp(own)
    assert sds.mean() == pytest.approx(0.004 / 2, rel=0.4)
    assert all(3 < df < math.inf for _, df in found)
