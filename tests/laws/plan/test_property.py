"""Property: what must hold of plans whatever the constants and the budget."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ptq_eval.laws.formulas.presets import KUMAR_2024
from ptq_eval.laws.plan.answers import Planner, Question
from ptq_eval.laws.plan.grid_search import lowest
from ptq_eval.laws.plan.optimum import Budget, optimum
from ptq_eval.laws.plan.source import from_preset

few = settings(max_examples=25, deadline=None)
budgets = st.floats(17, 25).map(lambda power: 10.0**power)
exponents = st.floats(0.25, 0.7)


def grid(**constants):
    return Planner(from_preset(KUMAR_2024.replace(**constants)), Question(params=1e9)).grid


@pytest.mark.slow
@few
@given(compute=budgets, alpha=exponents, beta=exponents)
def test_a_budget_scales_the_optimum_by_powers(compute, alpha, beta):
    """N grows as C^{beta/(alpha+beta)}, D as C^{alpha/(alpha+beta)}, and P stays."""
    law = grid(alpha=alpha, beta=beta)
    one, ten = (optimum(law.before, Budget(c)) for c in (compute, 10 * compute))
    assert np.isclose(np.log10(ten.N / one.N), beta / (alpha + beta), atol=1e-4)
    assert np.isclose(np.log10(ten.D / one.D), alpha / (alpha + beta), atol=1e-4)
    assert np.isclose(ten.P, one.P, atol=1e-4)


@pytest.mark.slow
@few
@given(compute=budgets, serve=st.sampled_from([3.0, 4.0, None]))
def test_more_means_no_worse(compute, serve):
    """A larger budget, fewer served tokens, and more freedom never make the least loss larger."""
    planner = Planner(from_preset(KUMAR_2024), Question(budget=compute))

    def least(budget, **setting):
        return planner_loss(planner, budget, serve, **setting)

    free = least(Budget(compute))
    assert least(Budget(2 * compute)) < free
    assert free <= least(Budget(compute, 1e10)) + 1e-12
    assert free <= least(Budget(compute), memory=1e9) + 1e-12
    assert free <= least(Budget(compute), N=1e8) + 1e-12
    assert free <= least(Budget(compute), P=8.0) + 1e-12


def planner_loss(planner, budget, serve, **setting):
    def loss(N, D, P):
        before = planner.grid.before(N, D, P)
        return before if serve is None else before + planner.grid.damage(N, D, serve, P)

    setting.setdefault("P", (serve or 1.0, 16.0))
    return optimum(loss, budget, serve=serve, **setting).loss[0]


@few
@given(N=st.floats(7, 12).map(lambda power: 10.0**power))
def test_at_given_size_precision_grows_with_the_logarithm_of_the_budget(N):
    """dP*/d ln C tends to beta·gamma/(1 − (1 − beta)·gamma/P): beta·gamma for large P, as the parts are tied."""
    gamma, beta = 1.2, 0.5
    tied = {f"gamma_{part}": gamma for part in ("w", "a", "kv")} | {f"n_{part}": 0.0 for part in ("w", "a", "kv")}
    law = grid(beta=beta, **tied)
    compute = 6 * N * 20 * N * np.geomspace(1, 1e6, 7)
    P = np.array([optimum(law.before, Budget(c), N=N, P=(1.0, 32.0)).P[0] for c in compute])
    assert np.all(np.diff(P) > 0)
    slope = np.diff(P) / np.diff(np.log(compute))
    middle = (P[1:] + P[:-1]) / 2
    assert np.allclose(slope[-2:], beta * gamma / (1 - (1 - beta) * gamma / middle[-2:]), rtol=0.03)


@few
@given(
    x=st.floats(-4, 4),
    y=st.floats(-1, 1),
    tilt=st.floats(-0.8, 0.8),
    width=st.floats(0.05, 3),
)
def test_the_search_finds_the_bottom_of_a_tilted_bowl(x, y, tilt, width):
    def bowl(u, v):
        return (u - x) ** 2 / width + (v - y) ** 2 + tilt * 2 * (u - x) * (v - y) / np.sqrt(width)

    (u, v), value, edges = lowest(bowl, [(-5.0, 5.0), (-2.0, 2.0)])
    assert np.allclose([u[0], v[0]], [x, y], atol=1e-3)
    assert value[0] < 1e-6
    assert edges == [None, None]


@pytest.mark.slow
@few
@given(st.integers(0, 2**32 - 1))
def test_replicates_are_searched_as_if_alone(seed):
    rng = np.random.default_rng(seed)
    A, beta = (c * np.exp(0.1 * rng.normal(size=4)) for c in (4.299e3, 0.4965))

    def before(A, beta):
        return lambda N, D, P: A * (N * (1 - np.exp(-P / 2)) ** 3) ** -0.4965 + 1.8e4 * D**-beta

    together = optimum(before(A.reshape(-1, 1, 1), beta.reshape(-1, 1, 1)), Budget(1e21))
    for i in range(4):
        alone = optimum(before(A[i], beta[i]), Budget(1e21))
        assert np.allclose(
            [together.N[i], together.D[i], together.P[i]], [alone.N[0], alone.D[0], alone.P[0]], rtol=1e-4
        )


@few
@given(N=st.floats(7, 12).map(lambda p: 10.0**p), bits=st.floats(2, 8), factor=st.floats(1.5, 50))
def test_beyond_is_the_factor_outside_the_range(N, bits, factor):
    source = from_preset(KUMAR_2024)
    assert source.beyond(N=100e6, D=2e9, bits=4) == {}
    assert np.isclose(source.beyond(N=220e6 * factor)["N"], factor)
    assert np.isclose(source.beyond(N=30e6 / factor)["N"], factor)
    found = source.beyond(N=N, bits=bits)
    assert all(value > 1 for value in found.values())
