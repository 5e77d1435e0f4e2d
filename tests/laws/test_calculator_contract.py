"""Contract: plain functions take scalars or arrays, any constants, and refuse what they cannot answer."""

import numpy as np
import pytest

from ptq_eval.errors import OptionError
from ptq_eval.laws import (
    EPOCH_2024,
    KUMAR_2024,
    OUYANG_2024,
    compute_cost,
    critical_tokens,
    delta_ptq,
    effective_params,
    fit,
    loss,
    optimal_precision,
    paper_design,
    simulate,
)
from ptq_eval.laws.arguments import constants_of
from ptq_eval.laws.formulas.kumar import KumarPTQ, KumarPTQRatio

RATIO = {"C": 0.4, "gamma": 0.45, "gamma_post": 0.9}
ROBUST = KUMAR_2024.replace(C_w=0.6, C_a=0.4, C_kv=0.9)
NO_ROBUSTNESS = KUMAR_2024.replace(C_w=np.inf, C_a=np.inf, C_kv=np.inf)

CALLS = {
    "effective_params": lambda n, d, p: effective_params(n, p, p, p),
    "delta_ptq": delta_ptq,
    "critical_tokens": lambda n, d, p: critical_tokens(n, p),
    "loss": lambda n, d, p: loss(n, d, p, p, p),
    "quantized loss": lambda n, d, p: loss(n, d, bits=p),
    "unified loss": lambda n, d, p: loss(n, d, 8, bits=p, constants=ROBUST),
    "compute_cost": compute_cost,
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_scalars_give_floats_and_arrays_broadcast(call):
    N, D, P = [[1e8], [1e9]], 1e11, [4.0, 5.0, 6.0]
    assert type(call(1e8, 1e11, 4)) is float
    table = call(N, D, P)
    assert isinstance(table, np.ndarray)
    assert table.shape == (2, 3)
    for i, n in enumerate((1e8, 1e9)):
        for j, p in enumerate(P):
            assert table[i, j] == pytest.approx(call(n, D, p), rel=1e-12)


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"n": 7}, "N looks like a number of millions or billions .* got 7 .* 7 billion is N = 7e9"),
        ({"n": 0}, "N must be positive and finite .* got 0"),
        ({"n": [1e9, -1e9]}, "N must be positive and finite .* got -1e\\+09"),
        ({"n": float("nan")}, "N must be positive and finite .* got nan"),
        ({"n": "1B"}, "N must be a number or an array of numbers"),
        ({"p": 0}, "must be a positive number of bits .* got 0"),
        ({"p": float("nan")}, "must be a positive number of bits .* got nan"),
    ],
)
def test_bad_numbers_are_one_clear_line(call, wrong, words):
    with pytest.raises(OptionError, match=words) as error:
        call(*{"n": 1e9, "d": 1e11, "p": 4, **wrong}.values())
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("D", [100, -1, float("inf"), None])
def test_bad_tokens_are_refused(D):
    for call in (delta_ptq, loss, compute_cost):
        with pytest.raises(OptionError, match=r"^D "):
            call(1e9, D, 4)


def test_missing_constants_are_named():
    with pytest.raises(OptionError, match="B, beta"):
        critical_tokens(1e9, 4, constants=OUYANG_2024)
    with pytest.raises(OptionError, match="C_T, gamma_D, gamma_N, gamma_post"):
        delta_ptq(1e9, 1e11, 4, constants=EPOCH_2024)
    with pytest.raises(OptionError, match="gamma_N"):
        delta_ptq(1e9, 1e11, 4, constants={"k": 1.0, "gamma_D": 0.5, "gamma_P": 5.0})
    with pytest.raises(OptionError, match=r"kv below 16 bits .* gamma_kv"):
        loss(1e9, 1e11, kv=8, constants=EPOCH_2024)
    with pytest.raises(OptionError, match="C_w, C_a, C_kv"):
        loss(1e9, 1e11, weights=8, bits=4)
    with pytest.raises(OptionError, match="optimal training precision"):
        optimal_precision(constants=EPOCH_2024)
    with pytest.raises(OptionError, match=r"several degradation laws .* kumar_ptq, ouyang"):
        delta_ptq(1e9, 1e11, 4, constants=[KUMAR_2024, OUYANG_2024])
    for wrong in ("KUMAR_2024", 3.0):
        with pytest.raises(OptionError, match="these are not constants"):
            delta_ptq(1e9, 1e11, 4, constants=wrong)


def test_a_fit_serves_as_constants_alone_or_with_others():
    data = simulate(KumarPTQ(), KUMAR_2024, paper_design(), noise=0.0)
    result = fit(KumarPTQ(), data, n_boot=0)
    assert delta_ptq(1e9, 1e11, 4, constants=result) == pytest.approx(delta_ptq(1e9, 1e11, 4), rel=1e-3)
    both = critical_tokens(1e9, 4, constants=[EPOCH_2024, result])
    expected = critical_tokens(1e9, 4, constants={**KUMAR_2024.constants, **EPOCH_2024.constants})
    assert both == pytest.approx(expected, rel=1e-3)
    assert constants_of([KUMAR_2024, {"A": 1.0}])["A"] == 1.0
    empty = fit(KumarPTQRatio(), {name: column[:1] for name, column in data.items()})
    with pytest.raises(OptionError, match=r"did not identify .* NaN for C, gamma"):
        delta_ptq(1e9, 1e11, 4, constants=empty)


def test_the_constants_say_which_degradation_law_is_meant():
    assert delta_ptq(1e8, 1e10, 3, constants=RATIO) == pytest.approx(0.4 * 100**0.45 * np.exp(-3 / 0.9))
    power = delta_ptq(1e8, 1e10, [2, 4], constants=OUYANG_2024)
    assert power[0] / power[1] == pytest.approx(2**5.4967)
    exponential = delta_ptq(1e8, 1e10, [2, 4])
    assert exponential[0] / exponential[1] == pytest.approx(np.exp(2 / 0.5907))


def test_a_loss_law_without_precision_means_full_precision():
    assert loss(1e9, 1e11, constants=EPOCH_2024) == loss(1e9, 1e11, 32, 16, 16, constants=EPOCH_2024)
    assert effective_params(1e9, constants=EPOCH_2024) == 1e9
    tied = {"gamma_bar": 2.0, "n_bar": 0.5}
    share = (1 - np.exp(0.5 - 6 / 2.0)) ** 3
    assert effective_params(1e9, 6, 6, 6, constants=tied) == pytest.approx(1e9 * share)
    assert effective_params(1e9, 6, 6, 6, offsets=False, constants=tied) == pytest.approx(1e9 * (1 - np.exp(-3)) ** 3)


def test_nothing_is_left_of_a_model_below_the_offset():
    assert effective_params(1e9, kv=2) == 0.0  # gamma_kv·n_kv = 2.32 bits
    assert loss(1e9, 1e11, kv=2) == np.inf
    assert effective_params(1e9, kv=2, offsets=False) > 0


def test_post_training_quantization_of_a_model_trained_in_full_precision_is_equation_2():
    added = loss(1e9, 1e11, bits=[3, 4]) - loss(1e9, 1e11)
    np.testing.assert_allclose(added, delta_ptq(1e9, 1e11, [3, 4]), rtol=1e-9)
    assert loss(1e9, 1e11, bits=16) == loss(1e9, 1e11)


def test_training_low_makes_robust():
    before = loss(1e9, 1e11, 8, 8, 8, constants=ROBUST)
    served = loss(1e9, 1e11, 8, 8, 8, bits=[3, 6, 7.9, 8, 9], constants=ROBUST) - before
    assert np.all(np.diff(served[:4]) < 0)
    assert served[3] == served[4] == 0.0
    # equation 9 with all its factors, written out
    share = effective_params(1e9, 8, 8, 8) / 1e9
    factors = np.prod([1 - np.exp(-C * 5) for C in (0.6, 0.4, 0.9)])
    assert served[0] == pytest.approx(delta_ptq(1e9, 1e11, 3) * share**-0.3439 * factors)


def test_infinite_robustness_constants_give_an_upper_bound():
    bound = loss(1e9, 1e11, 8, bits=[3, 5, 8], constants=NO_ROBUSTNESS)
    known = loss(1e9, 1e11, 8, bits=[3, 5, 8], constants=ROBUST)
    assert np.all(bound[:2] > known[:2])
    assert bound[2] == known[2] == loss(1e9, 1e11, 8)


def test_cost_is_six_n_d_at_16_bits():
    assert compute_cost(1e9, 2e10) == pytest.approx(6e9 * 2e10)
    assert compute_cost(1e9, 2e10, 8) == pytest.approx(3e9 * 2e10)
