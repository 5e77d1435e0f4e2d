"""Oracle, golden and recovery: McNemar's exact test and its power."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ptq_eval.results.gate.discordance import Discordance


def test_mcnemars_exact_p_of_a_case_worked_out_by_hand():
    assert Discordance(100, 8, 2).p() == pytest.approx((45 + 10 + 1) / 2**10)
    assert Discordance(100, 8, 2).p(-1) == pytest.approx(1 - (10 + 1) / 2**10)
    assert Discordance(100, 0, 0).p() == 1.0


def test_power_is_the_share_that_is_caught():
    rng, found = np.random.default_rng(0), Discordance(400, 12, 12)
    caught, trials, worsening = 0, 4000, 0.05
    for _ in range(trials):
        wrong, right, _ = rng.multinomial(400, [0.03 + worsening, 0.03, 0.94 - worsening])
        one = Discordance(400, wrong, right)
        caught += one.p() <= 0.005 and (wrong - right) / 400 > 0.01
    assert found.power(worsening, 0.01, 0.005) == pytest.approx(caught / trials, abs=0.02)


@settings(max_examples=25, deadline=None)
@given(st.integers(20, 2000), st.integers(0, 10), st.integers(0, 10), st.floats(0.001, 0.05))
def test_the_smallest_worsening_has_its_power_and_less_has_less(documents, worse, better, level):
    one = Discordance(documents, worse, better)
    smallest = one.smallest(0.01, level, 0.8)
    if smallest <= 1:
        assert one.power(smallest, 0.01, level) >= 0.8
        assert one.power(0.8 * smallest, 0.01, level) < 0.8


def test_documents_needed_are_enough():
    one = Discordance(200, 4, 4)
    needed = one.needed(0.02, 0.01, 0.001, 0.95, 10**9)
    assert one.power(0.02, 0.01, 0.001, needed) >= 0.95 > one.power(0.02, 0.01, 0.001, int(0.9 * needed))
    assert one.needed(0.0, 0.0, 0.001, 0.95, 10**6) is None
