"""Oracle and contract: what the arena holds out and scores, by slow references, and what it says it cannot tell."""

import json
import math

import numpy as np
import pytest
from scipy import integrate, stats

from ptq_eval.laws.catalogue import make_law
from ptq_eval.laws.compare.arena import MAX_FACTOR, POWER, STAYING, Place, contest, crps, log_error, p_value
from ptq_eval.laws.compare.crossval import held_out_rows
from ptq_eval.laws.findings import Finding, Why
from ptq_eval.laws.fit.fit import fit
from ptq_eval.laws.simulate import grid, simulate
from tests.laws.synthetic import KUMAR, RATIO

RATIOS = (5.0, 20.0, 80.0, 160.0)
SIZES = (1e7, 3e7, 1e8)
LAWS = {name: make_law(name) for name in ("kumar_ptq", "kumar_ptq_ratio", "ouyang")}
WITHOUT_OUYANG = {name: law for name, law in LAWS.items() if name != "ouyang"}
KUMAR_ALONE = {"kumar_ptq": LAWS["kumar_ptq"]}


def table(sizes=SIZES, ratios=RATIOS, bits=(3.0, 4.0, 5.0), seeds=2, law="kumar_ptq", theta=KUMAR, noise=0.05):
    """Every combination, a run for each size and seed; δ has 5 % scatter and no errors."""
    design = grid({"N": sizes, "ratio": ratios, "P": bits, "seed": tuple(map(float, range(seeds)))}, run=("N", "seed"))
    design["D"] = design.pop("ratio") * design["N"]
    places = zip(design["run"], design["D"])
    design["checkpoint"] = np.array([f"{run} {D:g}" for run, D in places])
    return simulate(make_law(law), theta, design, noise=noise)


@pytest.fixture(scope="module")
def data():
    return table()


@pytest.fixture(scope="module")
def found(data):
    return contest(LAWS, data)


def asked(found, name):
    return next(one for one in found.questions if one.held_out == name)


def score(found, name, law):
    return next(one for one in asked(found, name).scores if one.law == law)


def is_good(found, name, law):
    """Best or not significantly different; without an error, where fewer than three runs are held out, the least."""
    own, least = score(found, name, law), min(one.score for one in asked(found, name).scores)
    if asked(found, name).n_runs < 3:
        return own.place is Place.UNKNOWN and own.score < 1.5 * least
    return own.place in (Place.BEST, Place.ALIKE)


@pytest.mark.parametrize("name", ["last", "N", "P"])
def test_the_law_that_made_a_table_is_not_significantly_worse_than_the_best(found, name):
    assert is_good(found, name, "kumar_ptq")
    own = score(found, name, "kumar_ptq")
    assert own.score == pytest.approx(0.05, abs=0.02)


@pytest.mark.slow
def test_another_law_that_made_a_table_is_not_significantly_worse_either():
    found = contest(WITHOUT_OUYANG, table(law="kumar_ptq_ratio", theta=RATIO))
    for name in ("last", "N", "P"):
        assert is_good(found, name, "kumar_ptq_ratio")


def test_wrong_laws_and_baselines_are_significantly_worse(found):
    assert score(found, "P", "ouyang").place is Place.WORSE
    assert score(found, "last", STAYING).place is Place.WORSE
    for name in ("last", "N", "P"):
        scores = [one.score for one in asked(found, name).scores]
        assert scores == sorted(scores)
        best = Place.BEST if asked(found, name).n_runs >= 3 else Place.UNKNOWN
        assert asked(found, name).scores[0].place is best
    json.dumps(found.to_dict(), allow_nan=False)


def test_the_largest_d_of_each_run_is_held_out(data):
    (rows,) = held_out_rows(data, "last", np.ones(len(data["D"]), bool))
    slow = [i for i in range(len(data["D"])) if data["D"][i] == max(data["D"][data["run"] == data["run"][i]])]
    assert rows.tolist() == slow


def test_runs_of_one_d_are_held_out_by_size(data):
    alone = {**data, "run": data["checkpoint"]}
    (rows,) = held_out_rows(alone, "last", np.ones(len(data["D"]), bool))
    slow = [i for i in range(len(data["D"])) if data["D"][i] == max(data["D"][data["N"] == data["N"][i]])]
    assert rows.tolist() == slow


def test_a_score_is_that_of_a_fit_by_hand(data, found):
    keep = data["N"] < max(SIZES)
    law = LAWS["kumar_ptq"]
    result = fit(law, {name: column[keep] for name, column in data.items()}, intervals="none")
    rest = {name: column[~keep] for name, column in data.items()}
    gaps = [math.log(f / y) for f, y in zip(law.predict(result.values, rest), rest["delta"])]
    own = score(found, "N", "kumar_ptq")
    assert own.score == pytest.approx(math.sqrt(sum(gap**2 for gap in gaps) / len(gaps)))
    assert own.crps == pytest.approx(np.mean(crps(np.array(gaps), np.full(len(gaps), result.tau))))


def test_the_baseline_repeats_the_last_response_of_the_run(data, found):
    gaps, by_run = [], {}
    for run, P in sorted({(str(run), P) for run, P in zip(data["run"], data["P"])}):
        rows = [i for i in range(len(data["D"])) if data["run"][i] == run and data["P"][i] == P]
        *_, before, last = sorted(rows, key=lambda i: data["D"][i])
        gaps.append(math.log(data["delta"][before] / data["delta"][last]))
        by_run.setdefault(run, []).append(gaps[-1] ** 2)
    own = score(found, "last", STAYING)
    assert own.score == pytest.approx(math.sqrt(np.mean(np.square(gaps))))
    # runs are equally large, so the error over runs is that of a mean of their means
    means = [np.mean(squares) for squares in by_run.values()]
    assert own.error == pytest.approx(np.std(means, ddof=1) / math.sqrt(len(means)) / (2 * own.score))


def test_the_probability_score_is_an_integral():
    for gap, sigma in ((0.0, 1.0), (0.3, 0.2), (-1.2, 0.5)):
        slow, _ = integrate.quad(
            lambda x, g=gap, s=sigma: (stats.norm.cdf(x, g, s) - (x >= 0)) ** 2, -9, 9, points=[0.0]
        )
        assert crps(np.array([gap]), np.array([sigma]))[0] == pytest.approx(slow, abs=1e-6)
    assert crps(np.array([-0.4]), np.array([0.0]))[0] == 0.4


def test_an_absurd_prediction_counts_as_the_worst():
    gaps = log_error(np.array([0.0, -1.0, 1e9, np.inf, np.nan, 2.0]), np.ones(6))
    most = math.log(MAX_FACTOR)
    assert gaps.tolist() == pytest.approx([-most, -most, most, most, -most, math.log(2)])


def test_p_is_that_of_a_paired_t_test():
    a = np.random.default_rng(0).normal(0.5, 1, 12)
    slow = stats.ttest_1samp(a, 0.0).pvalue
    assert p_value(a.mean(), a.std(ddof=1) / math.sqrt(12), 12) == pytest.approx(slow)
    assert math.isnan(p_value(1.0, math.nan, 2))


def test_two_sizes_leave_one_and_laws_of_n_are_named():
    found = asked(contest(WITHOUT_OUYANG, table(sizes=(1e7, 1e8))), "N")
    assert {*found.not_identified} == {"kumar_ptq", POWER}
    reason = found.not_identified["kumar_ptq"]
    assert (reason.kind, reason.facts["variable"]) == (Why.TOO_FEW_VALUES, "N")
    assert {one.law for one in found.scores} == {"kumar_ptq_ratio", STAYING}


def test_bits_that_were_not_seen_are_no_question_for_the_baselines(found):
    unknown = asked(found, "P").not_identified
    assert {name: (one.kind, one.facts) for name, one in unknown.items()} == dict.fromkeys(
        (STAYING, POWER), (Why.UNSEEN_VALUE, {"variable": "P"})
    )


def test_without_other_d_nothing_can_be_said_of_d():
    data = table(ratios=(20.0,))
    data["D"] = np.full(len(data["D"]), 1e9)
    found = contest(KUMAR_ALONE, data)
    last = asked(found, "last")
    assert isinstance(last.reason, Finding)
    assert (last.reason.kind, last.reason.facts) == (Why.NOTHING_HELD_OUT, {"variable": "D", "distinct": 1})
    assert found.held["kumar_ptq"] == {"gamma_D": 0.0}
    assert found.distinct["D"] == 1
    assert asked(found, "N").scores


def test_a_law_without_its_variable_is_excluded_with_the_reason(data):
    found = contest({**KUMAR_ALONE, "chen": make_law("chen"), "phase": make_law("phase")}, data)
    assert {name: one["variable"] for name, one in found.excluded.items()} == {"chen": "G", "phase": "S"}


def test_fewer_than_three_runs_have_scores_without_errors():
    found = contest(KUMAR_ALONE, table(sizes=(1e7, 1e8), seeds=1))
    for one in asked(found, "last").scores:
        assert math.isnan(one.error)
        assert one.score > 0
        assert one.place is Place.UNKNOWN


def test_losses_without_bits_have_a_baseline():
    data = table(bits=(3.0,))
    before = {**data, "loss": 2 + 100 * data["D"] ** -0.3, "P": np.full(len(data["D"]), np.nan)}
    last = asked(contest({"chinchilla_d": make_law("chinchilla_d")}, before), "last")
    assert {one.law for one in last.scores} == {"chinchilla_d", STAYING}


def test_points_within_their_noise_are_not_scored(data):
    noisy = {**data, "se": np.where(data["P"] == 5, 10.0, 1e-9) * data["delta"]}
    one = asked(contest(KUMAR_ALONE, noisy), "last")
    assert (one.n_points, one.n_unclear) == (12, 6)
