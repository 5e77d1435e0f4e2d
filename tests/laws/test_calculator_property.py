"""Property: what holds of the functions at every size, budget and precision."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ptq_eval.laws import (
    KUMAR_2024,
    critical_tokens,
    delta_ptq,
    effective_params,
    loss,
    optimal_precision,
)
from ptq_eval.laws.formulas.n_eff import NEff, bits_elasticity, precision_with

sizes = st.floats(1e6, 1e12)
tokens = st.floats(1e8, 1e14)
bits = st.floats(2.5, 16)


@given(sizes, bits, bits, bits, st.booleans())
def test_effective_parameters_lie_between_none_and_all_and_grow_with_every_precision(N, w, a, kv, offsets):
    share = effective_params(N, w, a, kv, offsets=offsets) / N
    assert 0 <= share < 1
    for more in ((w + 1, a, kv), (w, a + 1, kv), (w, a, kv + 1)):
        assert effective_params(N, *more, offsets=offsets) / N >= share
    assert effective_params(N, w, a, kv, offsets=False) / N >= share


@given(sizes, tokens, bits)
def test_degradation_grows_with_tokens_and_falls_with_parameters_and_bits(N, D, P):
    delta = delta_ptq(N, D, P)
    assert delta_ptq(N, 2 * D, P) > delta > 0
    assert delta_ptq(2 * N, D, P) < delta
    assert delta_ptq(N, D, P + 1) == pytest.approx(delta * np.exp(-1 / 0.5907))


@given(sizes, st.floats(2, 8))
def test_on_both_sides_of_the_critical_tokens_the_quantized_loss_is_higher(N, P):
    D = critical_tokens(N, P)
    lower, least, upper = loss(N, [0.5 * D, D, 2 * D], bits=P)
    assert least < lower
    assert least < upper


@given(st.lists(st.tuples(st.floats(0.1, 5), st.floats(0, 3)), min_size=2, max_size=3), st.floats(0.05, 1.0))
def test_precision_with_a_given_elasticity_has_it(constants, elasticity):
    gammas, offsets = zip(*constants)
    P = precision_with(elasticity, gammas, offsets)
    assert bits_elasticity(P, gammas, offsets) == pytest.approx(elasticity, rel=1e-6)


@given(st.floats(0.1, 5))
def test_the_tied_optimum_solves_its_equation(gamma):
    law, n = NEff(tied=True), 0.7
    x = law.optimal_precision({"gamma_bar": gamma, "n_bar": n}) / gamma
    assert 3 * x == pytest.approx(np.exp(x - n) - 1, rel=1e-8)


def test_the_printed_critical_tokens_without_beta_are_not_a_minimum():
    """Equation 12 as printed lacks the factor beta; the derivative of the quantized loss tells which is right."""
    c, N, P = KUMAR_2024.constants, 1e8, 4

    def slope(D):
        fall = c["beta"] * c["B"] / D ** c["beta"]
        return (c["gamma_D"] * delta_ptq(N, D, P) - fall) / fall  # d L / d log D, relative to the fall

    printed = critical_tokens(N, P) * c["beta"] ** (-1 / (c["gamma_D"] + c["beta"]))
    assert slope(critical_tokens(N, P)) == pytest.approx(0, abs=1e-9)
    assert slope(printed) == pytest.approx(1 / c["beta"] - 1, rel=1e-6)


def test_budget_and_bits_enter_the_optimal_tokens_with_opposite_exponents():
    """Not so in the printed equation 6: where f is one, twice the budget at twice the bits buys the same run."""
    law, c = NEff(), KUMAR_2024.constants
    np.testing.assert_allclose(law.compute_optimal(c, 2e21, 128.0), law.compute_optimal(c, 1e21, 64.0), rtol=1e-9)


def test_the_optimal_precision_does_not_depend_on_the_exponents():
    for changed in ({"alpha": 0.3}, {"beta": 0.2}, {"A": 10.0, "B": 1.0}):
        assert optimal_precision(constants=KUMAR_2024.replace(**changed)) == optimal_precision()
