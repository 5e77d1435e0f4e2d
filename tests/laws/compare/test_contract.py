"""Contract and recovery: rankings name the law that made the data, and say so where no data could tell."""

import json

import numpy as np
import pytest
from scipy import stats

from ptq_eval.laws.base import Estimate
from ptq_eval.laws.catalogue import make_law
from ptq_eval.laws.compare.candidate import undetermined
from ptq_eval.laws.compare.hypotheses import Equality, _wider, equality, excludes, phase_against_tokens
from ptq_eval.laws.compare.ranking import Difference, Outcome, compare
from ptq_eval.laws.fit.fit import fit
from ptq_eval.laws.formulas.phase import KumarPhase, PhasePTQ
from ptq_eval.laws.tables.schedule import phase_of
from ptq_eval.report.comparison import words
from tests.laws.synthetic import KUMAR, eq2

SIZES, TOKENS = (3e7, 6e7, 1.1e8), (1.5e9, 3e9, 6e9, 13e9, 26e9)


def grid(response, rng, *, bits=(3.0, 4.0, 5.0, 6.0), scatter=0.03, sizes=SIZES):
    N, D, P = (g.ravel() for g in np.meshgrid(sizes, TOKENS, bits, indexing="ij"))
    delta = response(N, D, P) * (1 + scatter * rng.normal(size=len(N)))
    run = np.array([f"{n:g} {d:g}" for n, d in zip(N, D)])
    return {"N": N, "D": D, "P": P, "delta": delta, "se": 1e-9 + 0 * N, "run": run, "checkpoint": run}


def kumar(N, D, P):
    return eq2(KUMAR, N, D, P)


def ouyang(N, D, P):
    return 0.017 * D**0.5251 / (N**0.2261 * P**5.4967)


def laws(*names):
    return {name: make_law(name) for name in names}


@pytest.mark.parametrize(
    ("truth", "best", "other"),
    [pytest.param(kumar, "kumar", "ouyang", marks=pytest.mark.slow), (ouyang, "ouyang", "kumar")],
)
def test_the_law_that_made_the_data_is_found(truth, best, other):
    found = compare(laws("kumar", "ouyang"), grid(truth, np.random.default_rng(0)), intervals="none").to_dict()
    assert [law["name"] for law in found["laws"]] == [best, other]
    assert found["laws"][1]["against_best"]["outcome"] == Outcome.WORSE
    assert words.ranking(found).startswith(f"best by held-out error: {best}; significantly better than {other} (")
    assert set(found["left_out"]) == {"D", "N", "P"}
    json.dumps(found, allow_nan=False)


def test_laws_that_are_not_distinguishable_are_named_as_such():
    """One bit-width: an exponential and a power of P are the same law."""
    data = grid(kumar, np.random.default_rng(0), bits=(4.0,))
    found = compare(laws("kumar", "ouyang"), data, intervals="none")
    assert [dict(entry.given) for entry in found.entries] == [{"gamma_post": 1.0}, {"gamma_P": 1.0}]
    assert found.differences[1].outcome == Outcome.INDISTINGUISHABLE
    assert "not distinguishable from ouyang" in words.ranking(found.to_dict())


@pytest.mark.slow
def test_a_claim_takes_more_where_many_rankings_are_read_together():
    data = grid(kumar, np.random.default_rng(0))
    alone, one_of_many = (compare(laws("kumar", "ouyang"), data, rankings=n, intervals="none") for n in (1, 50))
    n_runs = len(set(data["run"].tolist()))
    assert alone.differences[1].t == pytest.approx(stats.t.ppf(1 - 0.05 / 4, n_runs - 1))
    assert one_of_many.differences[1].t == pytest.approx(stats.t.ppf(1 - 0.05 / 200, n_runs - 1))


@pytest.mark.parametrize(("claims", "outside"), [(1, True), (40, False)])
def test_an_interval_excludes_zero_for_all_questions_together(claims, outside):
    """Three standard errors are beyond chance for one question, and not for one of forty."""
    fitted = fit(make_law("kumar"), grid(kumar, np.random.default_rng(0)), n_boot=40)
    se = stats.t.ppf(0.95, fitted.covers.n_clusters - 1)
    assert excludes(Estimate(3.0, 3.0 - se, 3.0 + se), 0.0, _wider(fitted, claims)) == outside


def test_measures_that_disagree_call_no_law_better():
    torn = Difference(error=0.2, error_se=0.01, aicc=-9.0, aicc_se=1.0, t=2.0, best_error=0.3)
    assert (torn.by_error, torn.by_aicc, torn.outcome) == (1, -1, Outcome.CONTRADICTORY)
    small = Difference(error=0.004, error_se=1e-5, aicc=1.0, aicc_se=1e-5, t=2.0, best_error=0.3)
    assert small.outcome == Outcome.INDISTINGUISHABLE


@pytest.mark.slow
def test_a_law_that_contains_another_never_fits_worse():
    """Equation 2 has one constant more than its form in D/N: the AICc of the same points differs by that at most."""
    for seed in range(2):
        data = grid(lambda N, D, P: (D / N) ** 0.4 * np.exp(-P / 0.6), np.random.default_rng(seed), scatter=0.6)
        found = compare(laws("kumar", "ratio"), data, intervals="none")
        aicc = {entry.name: entry.aicc for entry in found.entries}
        assert aicc["kumar"] - aicc["ratio"] < 2.5


def test_a_law_whose_variable_is_unknown_is_excluded():
    data = grid(kumar, np.random.default_rng(0))
    found = compare(laws("kumar", "chen", "phase"), {**data, "S": np.ones(60)}, intervals="none")
    unknown = {"kind": "variable_unknown", "variable": "G", "unknown": 60, "points": 60}
    assert found.excluded == {"chen": unknown, "phase": {"kind": "one_phase"}}
    assert words.exclusion(unknown) == "it reads G, which is not known of 60 of 60 points"
    found = compare(laws("kumar", "chen"), {**data, "G": np.full(60, 128.0)}, intervals="none").to_dict()
    assert found["laws"][1]["ignored"] == ["P"]
    assert found["laws"][1]["given"] == {"gamma_G": 0.0}


def test_one_size_leaves_no_exponent_of_size():
    data = grid(kumar, np.random.default_rng(0), sizes=(3e7,))
    assert undetermined(make_law("kumar"), data) == {"gamma_N": 0.0}
    found = compare(laws("kumar", "ouyang"), data, intervals="none")
    assert found.entries[0].name == "kumar"
    assert "N" not in found.kinds


def annealed(gamma_S, gamma_D, rng, *, confounded):
    """Each run decays: the share of the decay grows with D, or is drawn for itself."""
    data = grid(lambda N, D, P: (D / 1e9) ** gamma_D * np.exp(-P / 0.6), rng)
    share = {d: i / 4 for i, d in enumerate(TOKENS)}
    pairs = {run: rng.uniform() for run in dict.fromkeys(data["run"].tolist())}
    S = np.array([1 + (share[d] if confounded else pairs[run]) for d, run in zip(data["D"], data["run"])])
    return {**data, "delta": data["delta"] * np.exp(gamma_S * (S - 1)), "S": S}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("gamma_S", "gamma_D", "answer"),
    [
        (0.0, 0.5, "degradation follows tokens:"),
        (1.0, 0.0, "degradation follows the learning rate's phase:"),
        (1.0, 0.5, "degradation follows both tokens and"),
    ],
)
def test_tokens_and_phase_are_told_apart_where_they_can_be(gamma_S, gamma_D, answer):
    found = phase_against_tokens(annealed(gamma_S, gamma_D, np.random.default_rng(0), confounded=False), n_boot=100)
    assert found["tested"]
    assert words.phase(found).startswith(answer)
    json.dumps(found, allow_nan=False)


@pytest.mark.slow
def test_one_decaying_run_cannot_tell_tokens_from_phase():
    """Five checkpoints with log D and phase in step: neither explanation gains by the other."""
    data = annealed(1.0, 0.0, np.random.default_rng(1), confounded=True)
    found = phase_against_tokens(data, n_boot=100)
    assert found["adding"]["tokens"]["adds"] is False
    assert found["correlation"] > 0.95


def test_without_rates_or_change_of_phase_the_answer_says_so():
    data = grid(kumar, np.random.default_rng(0))
    assert "no learning rates" in words.phase(phase_against_tokens(data))
    assert "same phase" in words.phase(phase_against_tokens({**data, "S": np.full(60, 2.0)}))


def test_phase_of_a_schedule():
    rates = np.array([1.0, 2.0, 1.0, 0.0, np.nan, 3.0, 3.0])
    tokens = np.array([1.0, 2.0, 3.0, 4.0, 5.0, 1.0, 2.0])
    phases = ["", "", "", "", "", "constant", "annealed"]
    s, _ = phase_of(rates, phases, ["a"] * 5 + ["b"] * 2, tokens)
    assert s[:4] == pytest.approx([1, 1, 1.5, 2])  # warm-up counts as peak
    assert np.isnan(s[4])
    assert s[5:] == pytest.approx([1, 2])


@pytest.mark.parametrize("law", [KumarPhase(), PhasePTQ()])
def test_derivatives_of_the_phase_laws(law):
    """Oracle: central differences."""
    theta = {"C_T": 0.3, "gamma_D": 0.4, "gamma_N": 0.3, "gamma_S": 0.7, "gamma_post": 0.6}
    theta = {p.name: np.full((1, 1), theta[p.name]) for p in law.parameters}
    data = {"N": np.array([1e7, 1e8]), "D": np.array([1e9, 3e9]), "P": np.array([3.0, 4.0]), "S": np.array([1.0, 1.7])}
    for name, derivative in law.gradient(theta, data).items():
        step = 1e-6 * theta[name]
        up, down = (law.predict({**theta, name: theta[name] + sign * step}, data) for sign in (1, -1))
        assert np.broadcast_to(derivative, (1, 2)) == pytest.approx((up - down) / (2 * step), rel=1e-5)


def test_nothing_is_said_of_the_effect_of_size_from_two_sizes():
    data = grid(kumar, np.random.default_rng(0), sizes=SIZES[:2])
    found = equality(make_law("kumar"), data, "gamma_D", "gamma_N", n_boot=20)
    assert not found["tested"]
    assert "difference" not in found
    assert words.equality(found) == (
        "not tested whether gamma_D = gamma_N: 2 sizes of model, fewer than 3: whatever else differs between the runs "
        "counts as size"
    )


def test_equal_constants_are_found_equal_and_others_not():
    rng = np.random.default_rng(0)
    same = grid(lambda N, D, P: (D / N) ** 0.4 * np.exp(-P / 0.6), rng)
    found = equality(make_law("kumar"), same, "gamma_D", "gamma_N", n_boot=100)
    assert found["outcome"] == Equality.COMPATIBLE
    assert found["difference"]["low"] < 0 < found["difference"]["high"]
    found = equality(make_law("kumar"), grid(kumar, rng), "gamma_D", "gamma_N", n_boot=100)
    assert words.equality(found).startswith("gamma_D and gamma_N differ: gamma_D - gamma_N = 0.16")
