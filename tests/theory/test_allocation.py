"""Which scheme for which layers: oracle (every combination), and properties of the least damage under a budget."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ptq_eval.theory.allocation import Choice, choose, least

CHOICES = st.lists(
    st.builds(Choice, bits=st.integers(1, 10**7), damage=st.floats(0, 10, allow_subnormal=False)),
    min_size=1,
    max_size=4,
)
UNITS = st.lists(CHOICES, min_size=1, max_size=5)


def total(units, places):
    picked = [choices[place] for choices, place in zip(units, places)]
    return sum(one.bits for one in picked), sum(one.damage for one in picked)


def best(units, budget):
    """The least damage of all combinations that fit."""
    sums = (total(units, places) for places in itertools.product(*(range(len(choices)) for choices in units)))
    return min(damage for bits, damage in sums if bits <= budget)


@settings(max_examples=60, deadline=None)
@given(UNITS, st.floats(0, 1.2))
def test_no_combination_that_fits_does_less_damage(units, share):
    most = sum(max(choice.bits for choice in choices) for choices in units)
    budget = least(units) + int(share * (most - least(units)))
    bits, damage = total(units, choose(units, budget))
    assert bits <= budget
    assert damage <= best(units, budget) + 1e-4 * max(choice.damage for choices in units for choice in choices)


def test_a_larger_budget_never_does_more_damage():
    units = [[Choice(bits * size, scale * 4.0**-bits) for bits in (2, 3, 4, 8)] for size, scale in SIZES]
    damages = [total(units, choose(units, budget))[1] for budget in range(least(units), 2 * least(units), 9973)]
    assert all(after <= before * (1 + 1e-4) for before, after in itertools.pairwise(damages))
    assert damages[-1] < damages[0] / 4


SIZES = [(40_000, 3.0), (40_000, 0.1), (110_000, 1.0), (110_000, 20.0), (65_000, 0.5), (7_000, 9.0)]


def test_what_costs_most_gets_the_bits():
    """By hand: 10 bits for two layers of one weight each, where one does a hundred times the other's damage."""
    units = [[Choice(2, 1.0), Choice(4, 0.1), Choice(8, 0.0)], [Choice(2, 100.0), Choice(4, 10.0), Choice(8, 0.1)]]
    assert choose(units, 10) == [0, 2]
    assert choose(units, 4) == [0, 0]


def test_less_than_the_fewest_bits_is_refused():
    with pytest.raises(ValueError, match="at least 4 bits"):
        choose([[Choice(4, 1.0), Choice(5, 0.5)]], 3)
