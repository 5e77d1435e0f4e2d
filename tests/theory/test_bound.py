"""Golden, property and contract: the bound δ ≤ C·4^−bits, and agreement of predictions with measurements."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ptq_eval.theory.bound import bound, grid_factor
from ptq_eval.theory.curvature import noise_step, noise_variance
from ptq_eval.theory.summary import agreement
from quantizers import Scheme
from quantizers.errors import GroupSizeRangeError

WIDTHS = (2, 3, 4, 8)


def law(constant, widths=WIDTHS):
    return [constant / (2**b - 1) ** 2 for b in widths]


def test_the_law_itself_is_one_constant_for_all_widths():
    found = bound(WIDTHS, law(3.0), [0.01 * value for value in law(3.0)])
    assert found.constant == pytest.approx(3.0 * 16 / 9)
    assert found.error == pytest.approx(0.01 * found.constant / 2)  # four estimates with an error of 1 % each
    assert (found.lowest, found.widths) == (2, WIDTHS)
    for bits, damage in zip(WIDTHS, law(3.0)):
        assert damage <= found.at(bits) * (1 + 1e-12)
    assert found.excess[8] == pytest.approx(grid_factor(8) / grid_factor(2))


def test_a_width_with_more_damage_ends_the_range():
    damage = law(3.0)
    damage[0] *= 2
    found = bound(WIDTHS, damage, [0.05 * value for value in damage])
    assert (found.lowest, found.widths) == (3, (3, 4, 8))
    assert found.constant == pytest.approx(3.0 * 64 / 49)
    assert found.excess[2] == pytest.approx(2 * grid_factor(2) / grid_factor(3))


def test_a_width_with_less_damage_stays_within():
    damage = law(3.0)
    damage[0] *= 0.5
    found = bound(WIDTHS, damage, [0.05 * value for value in damage])
    assert found.lowest == 2
    assert damage[0] < found.at(2)


def test_noise_at_the_finest_width_neither_sets_the_constant_nor_ends_the_range():
    damage, errors = law(3.0), [0.05 * value for value in law(3.0)]
    damage[-1], errors[-1] = -50 * damage[-1], 100 * damage[-1]
    found = bound(WIDTHS, damage, errors)
    assert found.lowest == 2
    assert found.constant == pytest.approx(3.0 * 16 / 9, rel=0.01)


def test_nothing_clear_of_zero_is_not_identified():
    found = bound(WIDTHS, [0.1, -0.1, 0.1, 0.0], [1.0] * 4)
    assert (found.lowest, found.widths, found.excess) == (None, (), {})
    assert math.isnan(found.constant)


@given(
    constant=st.floats(1e-6, 1e3),
    noise=st.lists(st.floats(-1, 1), min_size=4, max_size=4),
    relative=st.floats(0.001, 0.2),
)
def test_within_the_range_no_width_stands_clearly_above_the_constant(constant, noise, relative):
    damage = [value * (1 + 2 * relative * shift) for value, shift in zip(law(constant), noise)]
    errors = [relative * value for value in law(constant)]
    found = bound(WIDTHS, damage, errors)
    assert found.lowest is not None
    assert 2**found.lowest in (4, 8, 16, 256)
    assert found.widths == WIDTHS[WIDTHS.index(found.lowest) :]
    assert 0.5 < found.constant / (constant * grid_factor(found.lowest)) < 1.5


@pytest.mark.parametrize(
    ("bits", "damage", "error"),
    [((2, 2), (1, 1), (0, 0)), ((2, 3), (1,), (1,)), ((2, 3), (1, 1), (-1, 0)), ((2, 3), (1, 1), (math.nan, 0))],
)
def test_wrong_arguments_are_refused(bits, damage, error):
    with pytest.raises(ValueError, match=r"bit-widths|errors"):
        bound(bits, damage, error)


@settings(deadline=None)
@given(bits=st.integers(2, 7), symmetric=st.booleans(), seed=st.integers(0, 2**16))
def test_a_bit_more_divides_the_step_by_the_grids_own_factor(bits, symmetric, seed):
    weight = torch.randn(3, 10, generator=torch.Generator().manual_seed(seed))
    coarse, fine = (noise_step(weight, Scheme(b, 4, symmetric)) for b in (bits, bits + 1))
    assert coarse.shape == (3, 3)
    torch.testing.assert_close(coarse * (2**bits - 1), fine * (2 ** (bits + 1) - 1))
    assert noise_variance(weight, Scheme(bits, 4, symmetric)).shape == weight.shape


def test_a_group_of_zeros_has_no_noise():
    weight = torch.zeros(2, 8)
    weight[1, 4:] = torch.tensor([1.0, -1.0, 0.5, 0.0])
    variance = noise_variance(weight, Scheme(4, 4))
    assert variance[0].eq(0).all()
    assert variance[1, :4].eq(0).all()
    assert variance[1, 4:] == pytest.approx((2 / 15) ** 2 / 12)
    with pytest.raises(GroupSizeRangeError):
        noise_step(weight, Scheme(4, 16))


def test_agreement_by_hand():
    predicted, measured = [1.0, 10.0, 100.0, 1000.0, 5.0], [2.0, 20.0, 200.0, 2000.0, -1.0]
    found = agreement(predicted, measured, [0.5] * 5)
    assert (found["layers"], found["clear"]) == (5, 4)
    assert found["pearson_log"] == pytest.approx(1)
    assert found["spearman"] == pytest.approx(0.9)  # ranks 1 3 4 5 2 against 2 3 4 5 1: 1 − 6·2 / (5·24)
    assert found["ratio"] == pytest.approx(1116 / 2221)


def test_too_few_layers_have_no_correlation():
    found = agreement([1, 2, 3], [1, 2, 3], [0, 0, 0])
    assert math.isnan(found["spearman"])
    assert math.isnan(found["pearson_log"])
    assert found["ratio"] == 1
