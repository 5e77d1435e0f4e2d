"""Oracle and property: the least loss that a budget buys is found, and no budget is spent on tokens that harm.

The oracle searches N, D and P with the cost and the memory as inequalities, by SLSQP from several starts; the formulas
are written out here.
"""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from ptq_eval.laws.formulas.presets import KUMAR_2024
from ptq_eval.laws.plan.answers import Planner, Question, plan
from ptq_eval.laws.plan.question import Setting
from ptq_eval.laws.plan.source import from_preset
from ptq_eval.report.plan.words import sentences

K = dict(KUMAR_2024.constants)
SOURCE = from_preset(KUMAR_2024)
few = settings(max_examples=8, deadline=None)

THRIFTY = Question(budget=1e22, serve_bits=(4,), memory=2e9, served_tokens=1e13, params=1e9)
WIDE = Question(budget=1e22, serve_bits=(3, 4), memory=2e9, served_tokens=1e12, params=1e9)
SMALL = Question(budget=1e19, serve_bits=(3, 5), memory=1e8, params=3e7)


def share(P):
    factors = [1 - np.exp(K[f"n_{part}"] - P / K[f"gamma_{part}"]) for part in ("w", "a", "kv")]
    return np.prod([np.maximum(factor, 1e-9) for factor in factors], axis=0)


def before(N, D, P):
    return K["E"] + K["A"] * (N * share(P)) ** -K["alpha"] + K["B"] * D ** -K["beta"]


def damage(N, D, bits):
    return K["C_T"] * D ** K["gamma_D"] / N ** K["gamma_N"] * np.exp(-bits / K["gamma_post"])


def after(N, D, P, bits):
    """At most this below 16 bits (equation 9 without its last factor), equation 2 at 16."""
    if bits is None:
        return before(N, D, P)
    return before(N, D, P) + damage(N * np.where(P == 16, 1.0, share(P)), D, bits)


def cost(N, D, P, bits, served):
    return 6 / 16 * N * D * P + 2 / 16 * N * (P if bits is None else bits) * served


def least(question, answer):
    """The least loss under the conditions of an answer: over [log N, log D, P], from several starts."""
    at, budget, served = answer.at, question.budget, question.served_tokens
    bits, given, memory = at.get("serve_bits"), at.get("train_bits"), at.get("memory")
    low = max(bits + 1e-6, 1.0) if bits else 2.0
    options = [(given, given)] if given else [(low, 16 - 1e-9), (16.0, 16.0)]
    lowest = np.inf
    for ends in options:

        def loss(x):
            return 1e3 * (float(after(np.exp(x[0]), np.exp(x[1]), x[2], bits)) - K["E"])

        def slack(x):
            N, D, P = np.exp(x[0]), np.exp(x[1]), x[2]
            left = [-np.log(cost(N, D, P, bits, served) / budget)]
            return np.array(left + ([-np.log(N * (bits or P) / 8 / memory)] if memory else []))

        N_ends = (np.log(at["N"]),) * 2 if "N" in at else (np.log(1e6), np.log(1e12))
        for N in (3e8, 3e9) if "N" not in at else (at["N"],):
            for D, P in ((1e10, 7.0), (2e11, 13.0)):
                start = [np.log(N), np.log(D), np.clip(P, *ends)]
                bounds = [N_ends, (np.log(1e7), np.log(1e15)), ends]
                options = {"ftol": 1e-13, "maxiter": 400}
                with np.errstate(all="ignore"):
                    found = minimize(
                        loss,
                        start,
                        method="SLSQP",
                        bounds=bounds,
                        constraints={"type": "ineq", "fun": slack},
                        options=options,
                    )
                if np.all(slack(found.x) > -1e-7) and np.isfinite(found.fun):
                    lowest = min(lowest, found.fun / 1e3 + K["E"])
    return lowest


@pytest.mark.parametrize("question", [THRIFTY, WIDE, SMALL], ids=["thrifty", "wide", "small"])
def test_every_optimum_is_the_least_loss_within_the_budget(question):
    found = plan(SOURCE, question).of("optimum")
    answers = [answer for answer in found if answer.values]
    assert len(answers) >= 12
    for answer in answers:
        N, D, P, loss, spent = (answer.values[name].value for name in ("N", "D", "P", "loss", "spent"))
        bits = answer.at.get("serve_bits")
        assert loss == pytest.approx(float(after(N, D, P, bits)), rel=1e-12)
        assert cost(N, D, P, bits, question.served_tokens) == pytest.approx(spent * question.budget, rel=1e-9)
        assert spent <= 1 + 1e-9
        assert N * (bits or P) / 8 <= answer.at.get("memory", np.inf) * (1 + 1e-9)
        assert loss == pytest.approx(least(question, answer), abs=2e-7), answer.label


def test_no_point_of_a_grid_within_the_budget_is_better():
    answers = [answer for answer in plan(SOURCE, THRIFTY).of("optimum") if answer.values]
    N, D, P = np.meshgrid(np.geomspace(1e8, 1e11, 50), np.geomspace(1e9, 1e13, 80), np.linspace(4.01, 16, 25))
    for answer in answers:
        bits, given = answer.at.get("serve_bits"), answer.at.get("train_bits")
        n, p = (answer.at["N"] + 0 * N if "N" in answer.at else N), (given + 0 * P if given else P)
        allowed = cost(n, D, p, bits, THRIFTY.served_tokens) <= THRIFTY.budget
        allowed &= n * (p if bits is None else bits) / 8 <= answer.at.get("memory", np.inf)
        assert answer.values["loss"].value <= after(n, D, p, bits)[allowed].min() + 1e-12


def test_the_optimum_stops_at_the_turn_and_says_so():
    found = plan(SOURCE, THRIFTY)
    [turn] = found.of("critical_tokens")
    ways = {(a.setting, a.at.get("serve_bits"), a.at.get("train_bits")): a for a in found.of("optimum")}
    plain = ways[Setting.PARAMS, 4, 16.0]
    assert plain.stops_at_critical
    assert plain.to_dict()["stops_at_critical"] is True
    assert plain.values["D"].value == pytest.approx(turn.values["D"].value, rel=1e-9)
    assert plain.values["loss"].value == pytest.approx(2.9837, abs=5e-5)
    assert plain.values["spent"].value == pytest.approx((6e9 * plain.values["D"].value + 0.5e9 * 1e13) / 1e22, rel=1e-9)
    between = ways[Setting.PARAMS, 4, None]
    assert between.values["P"].value == 16
    assert between.values["loss"].value == plain.values["loss"].value  # 16 bits themselves are among the candidates
    free = ways[Setting.FREE, 4, None]
    assert free.values["P"].value == pytest.approx(12.304, abs=2e-3)
    assert free.values["loss"].value == pytest.approx(2.948174, abs=1e-6)
    assert not free.stops_at_critical
    lines = " ".join(sentences(found))
    assert "N = 1B, trained at 16 bits and served at 4 bits: more tokens than D_crit = 295B would harm" in lines
    assert "spends 67.7 % of the budget" in lines
    assert "6.84 bits are best, and 16 bits are more than the budget pays for: lower precision wins" in lines
    assert "by –" not in lines


@few
@given(power=st.floats(18, 25), served=st.sampled_from([0.0, 1e11]), slack=st.floats(1e-4, 20), way=st.integers(0, 2))
def test_a_limit_that_is_not_reached_changes_nothing(power, served, slack, way):
    P, bits = [((1.0, 16.0), None), ((4.0, 16.0), 4.0), (16.0, 3.0)][way]
    planner = Planner(SOURCE, Question(budget=10**power, served_tokens=served))
    free = planner.search(P, bits)
    used = free.N[0] * (free.P[0] if bits is None else bits) / 8
    limited = planner.search(P, bits, memory=float(used * np.exp(slack)))
    assert limited.loss[0] == pytest.approx(free.loss[0], abs=1e-10)
    for name in ("N", "D"):
        assert np.log(getattr(limited, name)[0] / getattr(free, name)[0]) == pytest.approx(0, abs=1e-4)
    assert limited.P[0] == pytest.approx(free.P[0], abs=1e-3)
    assert free.spent[0] == pytest.approx(1)  # with N free it is never left
    assert planner.search(P, bits, N=float(free.N[0])).loss[0] == pytest.approx(free.loss[0], abs=1e-10)


@few
@given(power=st.floats(18, 25), size=st.floats(7, 10), bits=st.sampled_from([3.0, 4.0, 5.0]))
def test_at_given_size_more_budget_is_never_worse_and_no_token_harms(power, size, bits):
    N, losses = 10.0**size, []
    for compute in (10**power, 3 * 10**power):
        planner = Planner(SOURCE, Question(budget=compute))
        found = planner.search(16.0, bits, N=N)
        turn = planner.formulas.critical_tokens(N, bits)[0]
        assert found.D[0] == pytest.approx(min(turn, compute / (6 * N)), rel=1e-9)
        assert found.stops == (turn < compute / (6 * N))
        assert planner.search((bits, 16.0), bits, N=N).loss[0] <= found.loss[0]
        losses.append(found.loss[0])
    assert losses[1] <= losses[0]
