"""Contract: plain functions know the laws of Sun and of Chen, and refuse shapes that do not broadcast."""

import numpy as np
import pytest

from ptq_eval.errors import OptionError
from ptq_eval.laws import CHEN_2025, EPOCH_2024, SUN_2025, critical_tokens, delta_ptq, effective_params, loss
from ptq_eval.laws.calculator import compute_cost

CHEN, SUN = CHEN_2025.constants, SUN_2025.constants


def test_chen_needs_a_group_size_and_its_own_bits():
    want = CHEN["k"] * 1e11 ** CHEN["gamma_D"] * 7 ** CHEN["gamma_G"] / 1e9 ** CHEN["gamma_N"]
    assert delta_ptq(1e9, 1e11, 4, constants=CHEN_2025, group_size=128) == pytest.approx(want)
    assert delta_ptq(1e9, 1e11, 4, constants=CHEN_2025, group_size=[32, 128]).shape == (2,)
    for wrong, words in (((4, None), "group_size=128"), ((3, 128), "hold for one number of bits"), ((4, 1), "above 1")):
        with pytest.raises(OptionError, match=words):
            delta_ptq(1e9, 1e11, wrong[0], constants=CHEN_2025, group_size=wrong[1])
    with pytest.raises(OptionError, match="no variable"):
        delta_ptq(1e9, 1e11, 4, group_size=128)


def test_chen_with_a_loss_law_turns_where_the_sum_is_least():
    both = [EPOCH_2024, CHEN_2025]
    turn = critical_tokens(1e9, 4, constants=both, group_size=128)
    D = turn * np.array([0.9, 1.0, 1.1])
    total = loss(1e9, D, constants=EPOCH_2024) + delta_ptq(1e9, D, 4, constants=both, group_size=128)
    assert total.argmin() == 1


def test_sun_turns_where_its_loss_is_least():
    turn = critical_tokens(1e9, "E4M3", constants=SUN_2025, group_size=128)
    powers = 4.5 ** SUN["delta"] * 3.5 ** SUN["nu"]
    closed = SUN["B"] * SUN["gamma"] * 1e9 ** SUN["alpha"] * powers / 7
    assert turn == pytest.approx(closed ** (1 / (2 * SUN["beta"])))
    D = turn * np.array([0.9, 1.0, 1.1])
    added = delta_ptq(1e9, D, "e4m3", constants=SUN_2025, group_size=128)
    assert (loss(1e9, D, constants=SUN_2025) + added).argmin() == 1
    for wrong in (4, "E4", "E0M3", "4"):
        with pytest.raises(OptionError, match="E4M3"):
            critical_tokens(1e9, wrong, constants=SUN_2025, group_size=128)
    with pytest.raises(OptionError, match="group_size"):
        critical_tokens(1e9, "E4M3", constants=SUN_2025)


@pytest.mark.parametrize(
    "call",
    [
        lambda two, three: delta_ptq(two, three, 4),
        lambda two, three: delta_ptq(two, 1e10, [3, 4, 5]),
        lambda two, three: delta_ptq(two, three, 4, constants=CHEN_2025, group_size=128),
        lambda two, three: critical_tokens(two, [3, 4, 5]),
        lambda two, three: critical_tokens(two, "E4M3", constants=SUN_2025, group_size=[32, 64, 128]),
        lambda two, three: effective_params(two, [4, 8, 16]),
        lambda two, three: loss(two, three),
        lambda two, three: loss(two, 1e10, bits=[3, 4, 5]),
        lambda two, three: compute_cost(two, three),
    ],
)
def test_shapes_that_do_not_broadcast(call):
    with pytest.raises(OptionError, match="do not broadcast") as caught:
        call(np.array([1e9, 2e9]), np.array([1e10, 2e10, 3e10]))
    assert "(2,)" in str(caught.value)
    assert "\n" not in str(caught.value)
