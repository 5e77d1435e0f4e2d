"""Oracle: gradients against finite differences, closed forms against numerical search."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar

from ptq_eval.laws import CHEN_2025, EPOCH_2024, KUMAR_2024, OUYANG_2024, SUN_2025, critical_tokens
from ptq_eval.laws.formulas.chen import Chen
from ptq_eval.laws.formulas.chinchilla import Chinchilla, ChinchillaD, turning_tokens
from ptq_eval.laws.formulas.kumar import KumarPTQ, KumarPTQRatio
from ptq_eval.laws.formulas.n_eff import PARTS, NEff
from ptq_eval.laws.formulas.ouyang import Ouyang
from ptq_eval.laws.formulas.sun import Sun
from ptq_eval.laws.formulas.unified import Unified, UnifiedDelta

KUMAR = {
    **KUMAR_2024.constants,
    "C_w": 0.6,
    "C_a": 0.4,
    "C_kv": 0.9,
    "C": 0.3,
    "gamma": 0.4,
    "gamma_bar": 1.5,
    "n_bar": 0.8,
}
CONSTANTS = {Ouyang: OUYANG_2024.constants, Sun: SUN_2025.constants, Chen: CHEN_2025.constants}
SUBSETS = [("weights",), ("activations", "kv"), tuple(PARTS)]
LAWS = [
    *(law() for law in (KumarPTQ, KumarPTQRatio, Chinchilla, ChinchillaD, Ouyang, Sun, Chen)),
    *(
        law(parts, offsets=offsets, tied=tied)
        for law in (NEff, UnifiedDelta, Unified)
        for parts in SUBSETS
        for offsets in (True, False)
        for tied in (True, False)
    ),
]
NAMES = [f"{law.name}-{len(law.columns)}-{len(law.parameters)}" for law in LAWS]


def table(seed, n=6):
    rng = np.random.default_rng(seed)
    return {
        "N": np.exp(rng.uniform(np.log(1e7), np.log(1e11), n)),
        "D": np.exp(rng.uniform(np.log(1e9), np.log(1e13), n)),
        "P": rng.uniform(2.0, 6.0, n),
        **{f"P_{subscript}": rng.uniform(4.5, 16.0, n) for subscript in PARTS.values()},
        "G": rng.choice([16.0, 32.0, 128.0], n),
        "E_bits": rng.integers(1, 8, n).astype(float),
        "M_bits": rng.integers(1, 8, n).astype(float),
        "B_g": rng.choice([16.0, 128.0, 512.0], n),
    }


def draw(law, seed):
    """Constants near the published ones, within their bounds."""
    rng = np.random.default_rng(seed)
    center = CONSTANTS.get(type(law), KUMAR)
    return {p.name: float(np.clip(center[p.name] * rng.uniform(0.8, 1.2), p.low, p.high)) for p in law.parameters}


@pytest.mark.parametrize("law", LAWS, ids=NAMES)
@settings(max_examples=6, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_gradients_agree_with_finite_differences(law, seed):
    data, theta = table(seed), draw(law, seed)
    f, gradient = law.linearise(theta, data)
    assert set(gradient) == {p.name for p in law.parameters}
    np.testing.assert_allclose(f, law.predict(theta, data), rtol=1e-12)
    usable = np.isfinite(f)
    for name, derivative in gradient.items():
        step = 1e-5 * theta[name]
        up, down = (law.predict({**theta, name: theta[name] + s}, data) for s in (step, -step))
        same = usable & np.isfinite(up) & np.isfinite(down) & (((up > 0) & (down > 0)) | (f == 0))
        expected = (up[same] - down[same]) / (2 * step)
        # differences of two losses lose digits where the constant hardly matters
        lost = 1e-9 * np.abs(f[same]) / step
        assert np.all(np.abs(derivative[same] - expected) <= 1e-5 * np.abs(expected) + lost), name


@pytest.mark.parametrize("law", LAWS, ids=NAMES)
def test_a_law_predicts_many_replicates_at_once(law):
    data, thetas = table(1), [draw(law, seed) for seed in range(3)]
    stacked = {name: np.array([[theta[name]] for theta in thetas]) for name in thetas[0]}
    f, gradient = law.linearise(stacked, data)
    assert f.shape == (3, 6)
    for i, theta in enumerate(thetas):
        np.testing.assert_allclose(f[i], law.predict(theta, data))
        for name, derivative in law.gradient(theta, data).items():
            np.testing.assert_allclose(np.broadcast_to(gradient[name], f.shape)[i], derivative)


@pytest.mark.parametrize("law", LAWS, ids=NAMES)
def test_laws_are_linear_in_the_constants_that_they_name(law):
    data, theta = table(2), draw(law, 2)
    assert law.linear
    for name in law.linear:
        one, two, three = (law.predict({**theta, name: k * theta[name]}, data) for k in (1.0, 2.0, 3.0))
        known = np.isfinite(one)
        np.testing.assert_allclose(three[known] - two[known], two[known] - one[known], rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize(
    "law",
    [
        pytest.param(law, marks=pytest.mark.slow) if type(law) is Unified and len(law.columns) > 4 else law
        for law in LAWS
    ],
    ids=NAMES,
)
def test_starts_lie_within_the_bounds_and_predict(law):
    data, theta = table(3, 40), draw(law, 3)
    y = law.predict(theta, data)
    known = np.isfinite(y)
    data = {name: column[known] for name, column in data.items()} | {law.response: y[known], "se": 0 * y[known]}
    starts = law.starts(data, np.random.default_rng(0))
    assert starts
    for start in starts:
        assert set(start) == {p.name for p in law.parameters}
        assert np.all(np.isfinite(law.predict(start, data)))


def lowest(curve, low, high):
    """The place of the minimum of `curve` over an interval, on a grid and then by golden section; logarithmic."""
    axis = np.linspace(np.log(low), np.log(high), 400)
    i = int(np.argmin([curve(np.exp(x)) for x in axis]))
    ends = axis[max(i - 1, 0)], axis[min(i + 1, len(axis) - 1)]
    return float(np.exp(minimize_scalar(lambda x: curve(np.exp(x)), bounds=ends, method="bounded").x))


def scalar(law, theta, **values):
    return float(law.predict(theta, {name: np.array([value], float) for name, value in values.items()})[0])


def equation_13(c, N, P):
    """arXiv 2411.04330, eq. 13, as it is printed."""
    top = c["beta"] * c["B"] * N ** c["gamma_N"] * np.exp(P / c["gamma_post"])
    return (top / (c["gamma_D"] * c["C_T"])) ** (1 / (c["gamma_D"] + c["beta"]))


@pytest.mark.parametrize("P", [3.0, 4.0, 6.0])
def test_critical_tokens_are_the_minimum_of_the_quantized_loss(P):
    loss, N = KUMAR_2024.constants, 1e8
    for law, theta in ((KumarPTQ(), KUMAR), (KumarPTQRatio(), KUMAR), (Ouyang(), OUYANG_2024.constants)):
        found = float(law.critical_tokens(theta, loss, {"N": np.array(N), "P": np.array(P)}))

        def total(D, law=law, theta=theta):
            return loss["B"] / D ** loss["beta"] + scalar(law, theta, N=N, D=D, P=P)

        assert found == pytest.approx(lowest(total, 1e-4 * found, 1e4 * found), rel=1e-3)
    np.testing.assert_allclose(critical_tokens(N, P), equation_13(KUMAR, N, P), rtol=1e-12)
    ratio = {name: KUMAR[name] for name in ("C", "gamma", "gamma_post", "B", "beta")}
    one_gamma = {**ratio, "C_T": ratio["C"], "gamma_D": ratio["gamma"], "gamma_N": ratio["gamma"]}
    np.testing.assert_allclose(
        critical_tokens(N, P, constants=ratio),
        equation_13(one_gamma, N, P),
        rtol=1e-12,
    )


@pytest.mark.parametrize("parts", SUBSETS)
def test_critical_tokens_of_the_unified_law_are_its_minimum(parts):
    law = Unified(parts)
    at = {"N": 1e8, "P": 4.0, "P_w": 8.0, "P_a": 8.0, "P_kv": 8.0}
    found = float(law.critical_tokens(KUMAR, KUMAR, {name: np.array(value) for name, value in at.items()}))
    best = lowest(lambda D: scalar(law, KUMAR, D=D, **at), 1e-4 * found, 1e4 * found)
    assert found == pytest.approx(best, rel=1e-3)


def test_critical_tokens_of_chen_and_sun_are_their_minimum():
    loss = EPOCH_2024.constants
    found = float(Chen().critical_tokens(CHEN_2025.constants, loss, {"N": np.array(1e9), "G": np.array(128.0)}))
    best = lowest(
        lambda D: loss["B"] / D ** loss["beta"] + scalar(Chen(), CHEN_2025.constants, N=1e9, D=D, G=128),
        1e-3 * found,
        1e3 * found,
    )
    assert found == pytest.approx(best, rel=1e-3)
    at = {"N": 1e9, "E_bits": 2.0, "M_bits": 1.0, "B_g": 128.0}
    data = {name: np.array(value) for name, value in at.items()}
    found = float(Sun().critical_tokens(SUN_2025.constants, SUN_2025.constants, data))
    best = lowest(lambda D: scalar(Sun(), SUN_2025.constants, D=D, **at), 1e-3 * found, 1e3 * found)
    assert found == pytest.approx(best, rel=1e-3)


def test_no_growth_means_no_critical_tokens():
    found = turning_tokens(1e3, 0.5, np.array([1e-5, 1e-5, 0.0]), np.array([0.5, -0.1, 0.5]))
    assert np.isfinite(found).tolist() == [True, False, False]


@pytest.mark.parametrize("offsets", [True, False])
@pytest.mark.parametrize("parts", SUBSETS)
@pytest.mark.parametrize("tied", [True, False])
def test_optimal_precision_is_the_maximum_of_effective_parameters_per_bit(parts, offsets, tied):
    law = NEff(parts, offsets=offsets, tied=tied)
    found = law.optimal_precision(KUMAR)

    def negative(P):
        return -float(law.capacity.factor(KUMAR, law.capacity.at(P))) / P

    best = lowest(negative, 0.01, 100.0)
    if len(parts) == 1 and not offsets:
        assert found == 0.0  # fewer bits are always better
        assert best < 0.02
    else:
        assert found == pytest.approx(best, rel=1e-3)


@pytest.mark.parametrize("P", [5.0, 8.0, 16.0])
@pytest.mark.parametrize("cost", [1e19, 1e23])
def test_compute_optimal_spends_the_budget_at_the_lowest_loss(P, cost):
    law = NEff()
    N, D = law.compute_optimal(KUMAR, cost, P)
    assert pytest.approx(cost) == 6 / 16 * N * D * P

    def loss(size):
        tokens = cost / (6 / 16 * size * P)
        return scalar(law, KUMAR, N=size, D=tokens, P_w=P, P_a=P, P_kv=P)

    assert lowest(loss, 1e-3 * N, 1e3 * N) == pytest.approx(N, rel=1e-3)


def test_full_precision_compute_optimal_of_the_epoch_constants():
    law, theta = Chinchilla(), EPOCH_2024.constants
    N, D = law.compute_optimal(theta, 1e21 / 6)
    best = lowest(lambda size: scalar(law, theta, N=size, D=1e21 / 6 / size), 1e-2 * N, 1e2 * N)
    assert pytest.approx(best, rel=1e-3) == N
    assert pytest.approx(1e21 / 6) == N * D


@pytest.mark.parametrize("offsets", [True, False])
def test_optimal_precision_at_given_parameters_is_a_minimum_and_grows_with_the_budget(offsets):
    law, N = NEff(offsets=offsets), 1e8
    found = [law.optimal_precision_at(KUMAR, N, cost) for cost in (1e18, 1e20, 1e22, 1e24)]
    for P, cost in zip(found, (1e18, 1e20, 1e22, 1e24)):
        best = lowest(
            lambda bits, cost=cost: scalar(
                law, KUMAR, N=N, D=cost / (6 / 16 * N * bits), P_w=bits, P_a=bits, P_kv=bits
            ),
            0.5 * P,
            2 * P,
        )
        assert pytest.approx(best, rel=2e-3) == P
    assert np.all(np.diff(found) > 0)
    joint = law.optimal_precision(KUMAR)
    N, _ = law.compute_optimal(KUMAR, 1e20, joint)
    assert law.optimal_precision_at(KUMAR, N, 1e20) == pytest.approx(joint, rel=1e-6)
