"""Laws of three precisions: derivatives, limits, the tokens where they turn, and what a fit finds again."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ptq_eval.errors import OptionError
from ptq_eval.laws import fit
from ptq_eval.laws.formulas.kumar import KumarPTQRatio
from ptq_eval.laws.formulas.served import ALPHA, NEffPTQ, ProductPTQ

TRUTH = {
    NEffPTQ: {"C_post": 2.0, "growth": 0.4, "gamma_post_w": 0.7, "gamma_post_a": 1.2, "gamma_post_kv": 0.8,
              "alpha_post": ALPHA},
    ProductPTQ: {"C_post_w": 1.2, "growth_w": 0.5, "gamma_post_w": 0.8, "C_post_a": 3.0, "growth_a": 0.3,
                 "gamma_post_a": 1.1, "C_post_kv": 0.9, "growth_kv": 0.2, "gamma_post_kv": 0.9, "kappa": 1.5},
}  # fmt: skip
LAWS = list(TRUTH)
BITS = {"P_w": (2, 3, 4, 16), "P_a": (4, 8, 16), "P_kv": (2, 4, 16)}
LOSS = {"B": 3000.0, "beta": 0.5}
N = 1e6


def grid(law, noise=0.0, seed=0, ratios=(4, 8, 16, 32, 64, 128)):
    """A crossed run of one size: every combination but full precision, at each D."""
    rows = [p for p in itertools.product(ratios, *BITS.values()) if p[1:] != (16, 16, 16)]
    columns = dict(zip(("ratio", *BITS), np.array(rows, float).T))
    data = {"N": np.full(len(rows), N), "D": N * columns.pop("ratio"), **columns}
    true = law().predict(TRUTH[law], data)
    rng = np.random.default_rng(seed)
    se = 0.002 + 0.01 * true
    labels = np.array([f"small@{D:.0f}" for D in data["D"]])
    drawn = true * (1 + noise * rng.normal(size=len(true))) + (noise > 0) * se * rng.normal(size=len(true))
    return {**data, "delta": drawn, "se": se, "run": np.array(["small"] * len(rows)), "checkpoint": labels}


@pytest.mark.parametrize("law", LAWS)
def test_derivatives_are_those_of_differences(law):
    data, theta = grid(law), TRUTH[law]
    f, by = law().linearise(theta, data)
    assert (f >= 0).all()
    for name, value in theta.items():
        step = 1e-6 * max(abs(value), 1e-2)
        above, below = (law().predict({**theta, name: value + sign * step}, data) for sign in (1, -1))
        assert by[name] == pytest.approx((above - below) / (2 * step), rel=1e-4, abs=1e-7), name


@pytest.mark.parametrize("law", LAWS)
def test_constants_may_be_those_of_many_replicates(law):
    data, theta = grid(law), TRUTH[law]
    many = {name: np.array([[value], [1.01 * value]]) for name, value in theta.items()}
    both = law().predict(many, data)
    assert both.shape == (2, len(data["N"]))
    assert np.allclose(both[0], law().predict(theta, data))


def test_weights_alone_at_many_bits_follow_equation_2():
    theta = TRUTH[NEffPTQ]
    data = {"N": np.full(3, N), "D": N * np.array([5.0, 50, 500]), "P_w": np.full(3, 9.0)}
    law = NEffPTQ(("weights",))
    eq2 = {"C": theta["C_post"] * ALPHA, "gamma": theta["growth"], "gamma_post": theta["gamma_post_w"]}
    expected = KumarPTQRatio().predict(eq2, {**data, "P": data["P_w"]})
    assert law.predict(theta, data) == pytest.approx(expected, rel=1e-4)
    product = ProductPTQ(("weights",), kappa=0.0)
    one = {"C_post_w": eq2["C"], "growth_w": 0.4, "gamma_post_w": 0.7, "kappa": 0.0}
    assert product.predict(one, data) == pytest.approx(expected)


def test_the_n_eff_form_is_the_n_eff_law_where_the_amplitude_is_its_own():
    """C_post = A/N^alpha and growth = 0: the loss at N_eff minus the loss at N, arXiv 2411.04330, eqs. 3 and 4."""
    from ptq_eval.laws import KUMAR_2024, loss

    constants = dict(KUMAR_2024.without_offsets().constants)
    bits = {"P_w": 4.0, "P_a": 8.0, "P_kv": 5.0}
    rise = loss(N, 1e10, 4, 8, 5, constants=constants) - loss(N, 1e10, constants={**constants, **dict.fromkeys(
        ("gamma_w", "gamma_a", "gamma_kv"), 1e-6)})  # fmt: skip
    theta = {f"gamma_post_{x}": constants[f"gamma_{x}"] for x in ("w", "a", "kv")}
    theta |= {"C_post": constants["A"] / N ** constants["alpha"], "growth": 0.0, "alpha_post": constants["alpha"]}
    assert NEffPTQ().predict(theta, {"N": N, "D": 1e10, **bits}) == pytest.approx(rise)


@settings(max_examples=40, deadline=None)
@given(st.floats(0, 5), st.lists(st.floats(0.001, 2), min_size=3, max_size=3))
def test_parts_multiply_with_kappa_and_add_without(kappa, sizes):
    theta = {"kappa": kappa}
    for x, size in zip(("w", "a", "kv"), sizes):
        theta |= {f"C_post_{x}": size, f"growth_{x}": 0.0, f"gamma_post_{x}": 1e9}
    at = {"N": N, "D": N, "P_w": 4.0, "P_a": 4.0, "P_kv": 4.0}
    found = float(ProductPTQ().predict(theta, at))
    expected = (np.prod([1 + kappa * size for size in sizes]) - 1) / kappa if kappa > 1e-4 else sum(sizes)
    assert found == pytest.approx(expected, rel=5e-3 if kappa < 1e-2 else 1e-6)
    alone = float(ProductPTQ().predict(theta, {**at, "P_a": 16.0, "P_kv": 32.0}))
    assert alone == pytest.approx(sizes[0], rel=1e-6)


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("bits", [(3, 16, 16), (4, 4, 16), (4, 8, 4)], ids=str)
def test_more_data_harms_beyond_the_critical_tokens_and_not_before(law, bits):
    at = {"N": N, **dict(zip(BITS, map(float, bits)))}
    found = float(law().critical_tokens(TRUTH[law], LOSS, at))
    D = found * np.geomspace(0.01, 100, 4001)
    total = LOSS["B"] * D ** -LOSS["beta"] + law().predict(TRUTH[law], {**at, "D": D})
    assert D[np.argmin(total)] == pytest.approx(found, rel=3e-3)


@pytest.mark.parametrize("law", LAWS)
def test_no_tokens_are_critical_where_nothing_grows_or_nothing_is_rounded(law):
    at = {"N": N, "P_w": 4.0, "P_a": 8.0, "P_kv": 4.0}
    shrinking = {name: -0.1 if name.startswith("growth") else value for name, value in TRUTH[law].items()}
    assert law().critical_tokens(shrinking, LOSS, at) == np.inf
    assert law().critical_tokens(TRUTH[law], LOSS, {"N": N, "P_w": 16.0, "P_a": 16.0, "P_kv": 16.0}) == np.inf
    several = law().critical_tokens(TRUTH[law], LOSS, {**at, "P_w": np.array([3.0, 4.0, 5.0])})
    assert (np.diff(several) > 0).all()


@pytest.mark.parametrize("law", LAWS)
def test_a_fit_finds_the_constants_again(law):
    found = fit(law(), grid(law), n_boot=0).values
    assert found == pytest.approx(TRUTH[law], rel=2e-3)


@pytest.mark.parametrize("law", LAWS)
def test_intervals_hold_the_constants_of_a_noisy_run(law):
    """90 % intervals of all constants over a few draws: most hold the truth."""
    inside = []
    for seed in range(4):
        result = fit(law(), grid(law, noise=0.05, seed=seed), n_boot=60, seed=seed)
        assert result.identified
        for name, estimate in result.estimates.items():
            if name not in result.fixed and estimate.low < estimate.high:
                inside.append(estimate.low <= TRUTH[law][name] <= estimate.high)
    assert np.mean(inside) > 0.7


def test_a_part_of_one_precision_has_its_gamma_given():
    data = grid(ProductPTQ)
    some = np.isin(data["P_a"], (4, 16))
    data = {name: column[some] for name, column in data.items()}
    found = fit(ProductPTQ(one_precision=("activations",)), data, n_boot=0)
    assert found.fixed["gamma_post_a"] == 1.0
    assert found.values["kappa"] == pytest.approx(1.5, rel=1e-2)
    found = fit(NEffPTQ(), {**data, "delta": NEffPTQ().predict(TRUTH[NEffPTQ], data)}, n_boot=0)
    assert found.values["gamma_post_a"] == pytest.approx(TRUTH[NEffPTQ]["gamma_post_a"], rel=1e-2)


def test_a_part_that_was_never_rounded_is_an_objection():
    data = grid(NEffPTQ)
    some = {name: column[data["P_kv"] == 16] for name, column in data.items()}
    assert not fit(NEffPTQ(), some, n_boot=0).identified
    assert fit(NEffPTQ(("weights", "activations")), some, n_boot=0).identified
    with pytest.raises(OptionError, match="parts of a model"):
        NEffPTQ(("weights", "queries"))
