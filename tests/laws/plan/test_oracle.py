"""Oracle: the optimum against a brute search over other variables, and answers against formulas written out."""

import numpy as np
import pytest

from ptq_eval.laws.formulas.n_eff import NEff
from ptq_eval.laws.formulas.presets import KUMAR_2024
from ptq_eval.laws.plan.answers import Planner, Question, plan
from ptq_eval.laws.plan.optimum import Budget, optimum
from ptq_eval.laws.plan.source import from_preset

K = dict(KUMAR_2024.constants)
PARTS = [(K[f"gamma_{part}"], K[f"n_{part}"]) for part in ("w", "a", "kv")]
SOURCE = from_preset(KUMAR_2024)


def share(P):
    return np.prod([np.clip(1 - np.exp(n - P / g), 0, None) for g, n in PARTS], axis=0)


def before(N, D, P):
    with np.errstate(divide="ignore"):
        return K["E"] + K["A"] * (N * share(P)) ** -K["alpha"] + K["B"] * D ** -K["beta"]


def damage(N, D, bits):
    return K["C_T"] * D ** K["gamma_D"] / N ** K["gamma_N"] * np.exp(-bits / K["gamma_post"])


def brute(loss, compute, serve=None, served=0.0, N_range=(1e7, 1e12), D_range=(1e8, 1e14), limit=np.inf):
    """The least loss on a dense grid over N and D; the budget then says what P is left."""
    N, D = np.meshgrid(np.geomspace(*N_range, 1200), np.geomspace(*D_range, 1200), indexing="ij")
    if serve is None:  # serving costs as much per bit as P says
        P = compute / (6 / 16 * N * D + 2 / 16 * N * served)
    else:
        P = (compute - 2 / 16 * N * serve * served) / (6 / 16 * N * D)
    held = P if serve is None else serve
    allowed = (P >= 1) & (P <= 32) & (N * held / 8 <= limit)
    value = np.where(allowed, loss(N, D, np.where(allowed, P, 16)), np.inf)
    at = np.unravel_index(np.argmin(value), value.shape)
    return N[at], D[at], P[at], value[at]


@pytest.mark.parametrize("served", [0.0, 1e12])
@pytest.mark.parametrize("compute", [1e20, 1e23])
def test_free_optimum_of_a_model_served_as_trained(compute, served):
    found = optimum(Planner(SOURCE, Question(budget=compute)).grid.before, Budget(compute, served))
    N, D, P, value = brute(before, compute, served=served)
    assert found.loss[0] <= value + 1e-12
    assert found.loss[0] == pytest.approx(value, abs=1e-5)
    for got, want in ((found.N, N), (found.D, D), (found.P, P)):
        assert got[0] == pytest.approx(want, rel=0.03)


@pytest.mark.parametrize("served", [0.0, 1e12])
def test_optimum_of_a_model_that_is_quantized(served):
    compute, bits = 1e22, 4.0
    planner = Planner(SOURCE, Question(budget=compute, served_tokens=served, serve_bits=(bits,)))
    found = planner.search((bits, 16.0), bits)

    def at_most(N, D, P):
        with np.errstate(divide="ignore"):
            return before(N, D, P) + np.where(bits < P, damage(N, D, bits) * share(P) ** -K["gamma_N"], 0.0)

    N, _, P, value = brute(at_most, compute, serve=bits, served=served)
    assert found.loss[0] == pytest.approx(value, abs=1e-5)
    assert found.N[0] == pytest.approx(N, rel=0.03)
    assert found.P[0] == pytest.approx(P, rel=0.05)
    spent = 6 / 16 * found.N * found.D * found.P + 2 / 16 * found.N * bits * served
    assert spent[0] == pytest.approx(compute, rel=1e-9)


@pytest.mark.parametrize(("bits", "binding"), [(4.0, True), (3.0, True), (None, True), (4.0, False)])
def test_limited_memory(bits, binding):
    compute, memory = 1e22, 1e9 if binding else 1e12
    planner = Planner(SOURCE, Question(budget=compute, memory=memory))
    found = planner.search(16.0 if bits else (1.0, 32.0), bits, memory=memory)
    held = bits or found.P[0]
    assert found.N[0] * held / 8 <= memory * (1 + 1e-9)
    assert bool(found.N[0] * held / 8 == pytest.approx(memory, rel=1e-6)) is binding
    if bits:
        N = np.geomspace(1e7, 8 * memory / bits, 200_001)
        turn = (K["beta"] * K["B"] / (K["gamma_D"] * damage(N, 1.0, bits))) ** (1 / (K["gamma_D"] + K["beta"]))
        D = np.minimum(compute / (6 * N), turn)
        value = before(N, D, 16.0) + damage(N, D, bits)
        assert found.loss[0] == pytest.approx(value.min(), abs=1e-8)
        assert found.N[0] == pytest.approx(N[np.argmin(value)], rel=1e-3)
    else:
        assert found.loss[0] == pytest.approx(brute(before, compute, limit=memory)[3], abs=3e-4)


@pytest.mark.parametrize("compute", [1e18, 1e20, 1e22])
def test_closed_forms_of_the_law_of_training_precision(compute):
    grid = Planner(SOURCE, Question(budget=compute)).grid
    at_given_size = optimum(grid.before, Budget(compute), N=1e9)
    assert at_given_size.P[0] == pytest.approx(NEff().optimal_precision_at(K, 1e9, compute), rel=1e-5)
    at_given_bits = optimum(grid.before, Budget(compute), P=8.0)
    N, D = NEff().compute_optimal(K, compute, 8.0)
    assert at_given_bits.N[0] == pytest.approx(N, rel=1e-5)
    assert at_given_bits.D[0] == pytest.approx(D, rel=1e-5)
    assert optimum(grid.before, Budget(compute)).P[0] == pytest.approx(NEff().optimal_precision(K), rel=1e-5)


def test_losses_and_what_twice_the_tokens_change():
    N, D, bits = 150e6, 2e10, 3.0
    found = plan(SOURCE, Question(params=N, tokens=D, serve_bits=(bits,), max_loss=0.02))
    [loss], [longer], [smallest] = (found.of(ask) for ask in ("loss", "longer", "smallest_bits"))
    assert loss.values["before"].value == pytest.approx(before(N, D, 16.0), rel=1e-12)
    assert loss.values["damage"].value == pytest.approx(damage(N, D, bits), rel=1e-12)
    assert loss.values["after"].value == pytest.approx(before(N, D, 16.0) + damage(N, D, bits), rel=1e-12)
    change = before(N, 2 * D, 16.0) - before(N, D, 16.0)
    assert longer.values["before"].value == pytest.approx(change, rel=1e-9)
    assert longer.values["after"].value == pytest.approx(change + damage(N, 2 * D, bits) - damage(N, D, bits), rel=1e-9)
    assert damage(N, D, smallest.values["bits"].value) == pytest.approx(0.02, rel=1e-9)
    assert smallest.values["whole_bits"].value == np.ceil(smallest.values["bits"].value)


def test_equation_9_where_its_constants_are_given():
    robust = {"C_w": 0.8, "C_a": 1.1, "C_kv": 2.0}
    planner = Planner(from_preset(KUMAR_2024.replace(**robust)), Question(params=1e9, tokens=2e10, serve_bits=(4,)))
    N, D, P = 1e9, 2e10, 7.0
    factor = np.prod([1 - np.exp(-C * (P - 4)) for C in robust.values()])
    want = damage(N * share(P), D, 4) * factor
    assert planner.formulas.damage(N, D, 4, P)[0] == pytest.approx(want, rel=1e-12)
    assert not any(answer.at_most for answer in planner.answers())
    without = Planner(SOURCE, planner.question)
    assert without.formulas.damage(N, D, 4, P)[0] == pytest.approx(want / factor, rel=1e-12)
    assert any(answer.at_most for answer in without.answers())


def test_the_turn_is_where_the_loss_is_least():
    [answer] = plan(SOURCE, Question(params=110e6, serve_bits=(4,))).of("critical_tokens")
    D = np.geomspace(1e9, 1e13, 400_001)
    lowest = D[np.argmin(before(110e6, D, 16.0) + damage(110e6, D, 4))]
    assert answer.values["D"].value == pytest.approx(lowest, rel=1e-3)
