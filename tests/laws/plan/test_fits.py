"""Contract: a plan's intervals and ranges are those of the fits and records that it is made from."""

import json
import math

import numpy as np
import pytest

from ptq_eval.errors import NothingToFitError, PlanError
from ptq_eval.laws import analyse, fit
from ptq_eval.laws.findings import Finding
from ptq_eval.laws.formulas.chinchilla import Chinchilla
from ptq_eval.laws.formulas.kumar import KumarPTQ
from ptq_eval.laws.formulas.n_eff import NEff
from ptq_eval.laws.formulas.presets import HOFFMANN_2022, KUMAR_2024
from ptq_eval.laws.plan.answers import Planner, Question, plan
from ptq_eval.laws.plan.curves import loss_against_tokens, loss_over_bits_and_ratio, precision_against_budget
from ptq_eval.laws.plan.question import Doubt, Reason
from ptq_eval.laws.plan.source import from_fits, from_preset
from ptq_eval.laws.plan.stored import from_stored
from ptq_eval.laws.simulate import PAPER_SIZES, PAPER_TOKENS, grid, paper_design, simulate
from ptq_eval.report.plan.words import uncertainty
from tests.laws.synthetic import KUMAR, RATIO, SMALL_LOSS, source, table

RANGES = {"N": (30e6, 220e6), "D": (1.5e9, 26e9), "bits": (3, 6)}
SIZES = (50e3, 100e3, 200e3)


@pytest.fixture(scope="module")
def small():
    """Rows and windows of three sizes and two quantizers."""
    return table(np.random.default_rng(0), sizes=SIZES, quantizers=("rtn", "gptq"))


@pytest.fixture(scope="module")
def fitted():
    """Fits to data drawn with the paper's constants, training precisions included, with replicates."""
    design = grid({"N": PAPER_SIZES, "D": PAPER_TOKENS, "P": (3.5, 5.0, 8.0, 16.0)}, run=("N", "D", "P"))
    design |= {name: design["P"] for name in ("P_w", "P_a", "P_kv")}
    law = NEff(tied=True, offsets=False)
    truth = {**{name: KUMAR_2024.constants[name] for name in ("A", "alpha", "B", "beta", "E")}, "gamma_bar": 1.6}
    loss = fit(law, simulate(law, truth, design, noise=0.003), n_boot=60)
    delta = fit(KumarPTQ(), simulate(KumarPTQ(), KUMAR_2024, paper_design(), noise=0.03), n_boot=60)
    return [delta, loss]


def test_intervals_come_from_the_replicates(fitted):
    found = plan(from_fits(fitted, name="simulated", ranges=RANGES), Question(params=220e6, tokens=26e9))
    [turn] = [answer for answer in found.of("critical_tokens") if answer.at["bits"] == 4]
    assert turn.values["D"].low < 174.7e9 < turn.values["D"].high
    [lower] = found.of("lower")
    assert lower.values["P"].low < 1.90381 * 1.6 < lower.values["P"].high
    assert lower.values["P"].value == pytest.approx(1.90381 * fitted[1].values["gamma_bar"], rel=1e-5)
    for answer in found.of("loss"):
        for value in answer.values.values():
            assert value.low < value.value < value.high
    free = next(answer for answer in found.of("optimum") if "train_bits" not in answer.at)
    assert math.isnan(free.values["spent"].low)  # all of the budget, in every replicate
    assert all(value.low < value.value < value.high for name, value in free.values.items() if name != "spent")
    given = next(answer for answer in found.of("optimum") if answer.setting == "params")
    assert math.isnan(given.values["N"].low)  # what was given is not estimated
    assert "90 % interval" in uncertainty(found.source)


def test_a_stored_fit_gives_the_same_values_without_intervals(fitted):
    entries = [
        {**result.to_dict(), "ranges": {"N": [30e6, 220e6], "D": [1.5e9, 26e9], "P": [3, 6]}} for result in fitted
    ]
    content = json.loads(json.dumps({"fits": entries, "data": {"source": "runs.csv"}}))
    question = Question(params=1e9, tokens=26e9, serve_bits=(4,))
    stored = plan(from_stored(content, name="out"), question)
    live = plan(from_fits(fitted, name="out", ranges=RANGES), question)
    assert stored.source.ranges == RANGES
    for one, other in zip(stored.answers, live.answers):
        assert one.beyond == pytest.approx(other.beyond, rel=1e-6)
        assert {n: v.value for n, v in one.values.items()} == pytest.approx(
            {n: v.value for n, v in other.values.items()}, rel=1e-6
        )
        assert all(math.isnan(value.low) for value in one.values.values())
    with pytest.raises(PlanError, match="several fits"):
        from_stored({"fits": [*entries, entries[0]]}, name="out")
    with pytest.raises(NothingToFitError):
        from_stored({"fits": []}, name="out")


@pytest.mark.slow
def test_the_fit_of_a_run_is_planned_from_as_it_is_reported(small):
    """Three sizes: Chinchilla's law over all of them is used, though each run has its own curve."""
    rows, windows = small
    known = source(rows, windows, quantizer="gptq", n_boot=40)
    assert known.bits == (2.0, 3.0, 4.0, 8.0)
    assert known.ranges == {"N": (50e3, 200e3), "D": (250e3, 80e6), "bits": (2.0, 8.0)}
    assert known.one_size is None
    assert {"A", "alpha"} <= set(known.constants)
    assert any("learning rate" in warning for warning in known.warnings)
    found = plan(known, Question(params=100e3, tokens=1e6))
    constants = {name: values[0] for name, values in known.constants.items()}
    assert constants["gamma_D"] == pytest.approx(RATIO["gamma"], abs=0.1)
    assert len(found.of("critical_tokens")) == 4
    assert all(value.low < value.value < value.high for value in found.of("loss")[0].values.values())
    with pytest.raises(PlanError, match="several quantizers"):
        source(rows, windows, n_boot=5)
    with pytest.raises(PlanError, match="awq"):
        source(rows, windows, quantizer="awq", n_boot=5)
    with pytest.raises(NothingToFitError):
        source([], {})


def test_one_size_knows_no_other():
    rows, windows = table(np.random.default_rng(1), sizes=(80e3,))
    known = source(rows, windows, params=80e3, n_boot=40, seed=3)
    assert known.one_size == 80e3
    here = plan(known, Question(params=80e3, tokens=1e6, serve_bits=(2,)))
    [loss], [turn] = here.of("loss"), here.of("critical_tokens")
    want = SMALL_LOSS["E"] + SMALL_LOSS["B"] * 1e6 ** -SMALL_LOSS["beta"]
    assert loss.values["before"].low - 0.01 < want < loss.values["before"].high + 0.01
    elsewhere = plan(known, Question(params=1e6, tokens=1e6, serve_bits=(2,)))
    [loss] = elsewhere.of("loss")
    assert "before" not in loss.values
    assert loss.missing == ("A", "alpha")
    assert loss.why_not[0].facts == {"one_size": 80e3, "constants": ("A", "alpha")}
    assert Finding(Doubt.ONE_EXPONENT) in known.doubts
    report = analyse(rows, windows, n_boot=40, seed=3)
    [same] = [entry for entry in report["critical_tokens"] if entry["bits"] == 2]
    assert turn.values["D"].to_dict() == pytest.approx(same["predicted"], rel=1e-6)


def test_what_a_fit_does_not_determine_is_refused():
    design = grid({"N": PAPER_SIZES, "D": PAPER_TOKENS, "P": (4.0,)})
    data = simulate(KumarPTQ(), KUMAR, design, noise=0.03)
    loss = fit(Chinchilla(), simulate(Chinchilla(), KUMAR_2024, design, noise=0.002), n_boot=20)
    known = from_fits([fit(KumarPTQ(), data, n_boot=20), loss], name="one width", ranges=RANGES)
    assert "damage" in known.refused
    [turn] = plan(known, Question(params=1e8, tokens=1e10, serve_bits=(4,))).of("critical_tokens")
    assert turn.values == {}
    assert turn.why_not[0].kind == Reason.NOT_FITTED


def test_curves_are_those_of_the_answers(fitted):
    for known in (from_preset(KUMAR_2024), from_fits(fitted, name="simulated", ranges=RANGES)):
        planner = Planner(known, Question(params=220e6, tokens=26e9, serve_bits=(3, 4)))
        marks = {row["bits"]: row for row in loss_against_tokens(planner) if row["kind"] == "critical"}
        for bits, mark in marks.items():
            assert mark["tokens"] == planner.critical(bits).values["D"].value
            curve = [row for row in loss_against_tokens(planner) if row["kind"] == "curve" and row["bits"] == bits]
            assert min(row["loss"] for row in curve) >= mark["loss"]
        surface = [row for row in loss_over_bits_and_ratio(planner) if row["kind"] == "grid"]
        row = surface[1234]
        after = planner.formulas.before(220e6, row["ratio"] * 220e6)[0]
        after += planner.formulas.damage(220e6, row["ratio"] * 220e6, row["bits"])[0]
        assert row["loss"] == pytest.approx(after, rel=1e-9)
        best = [row["bits"] for row in precision_against_budget(planner) if row["setting"] == "params"]
        assert np.all(np.diff(best) >= 0)
        assert max(best) <= 16
    loss_alone = Planner(from_preset(HOFFMANN_2022), Question(params=1e9, tokens=2e10))
    for curve in (loss_against_tokens, loss_over_bits_and_ratio, precision_against_budget):
        assert curve(loss_alone) == []
