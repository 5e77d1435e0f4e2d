"""Contract: a plan gives no D_crit, in its table or in its figure, where the fit to the same records gives none."""

import math
from dataclasses import replace

import numpy as np
import pytest

from ptq_eval.laws import FitKind, FitStatus, analyse, findings, fit
from ptq_eval.laws.findings import Finding
from ptq_eval.laws.formulas.chinchilla import Chinchilla
from ptq_eval.laws.formulas.ouyang import Ouyang
from ptq_eval.laws.formulas.presets import EPOCH_2024, KUMAR_2024, OUYANG_2024
from ptq_eval.laws.plan.answers import Plan, Planner, Question, plan
from ptq_eval.laws.plan.curves import loss_over_bits_and_ratio
from ptq_eval.laws.plan.question import Reason
from ptq_eval.laws.plan.source import from_fits, from_preset
from ptq_eval.laws.simulate import paper_design, simulate
from ptq_eval.laws.turning.predicted import critical_tokens
from ptq_eval.laws.turning.verdict import MAX_FACTOR
from ptq_eval.report.plan import contour_figure as plan_contour_figure
from tests.laws.synthetic import source, table

SIZES = (50e3, 100e3, 200e3)
OPTIONS = {"n_boot": 30, "seed": 2}


@pytest.fixture(scope="module")
def noisy():
    """Rows whose deltas at 8 bits scatter about zero."""
    rows, _ = table(np.random.default_rng(0), sizes=SIZES)
    rng = np.random.default_rng(1)
    for row in rows:
        if row["bits"] == 8:
            row["delta"], row["delta_se"] = rng.normal(0, 0.002), 0.003
            row["loss_q"] = row["loss_fp"] + row["delta"]
    return rows


@pytest.fixture(scope="module")
def known(noisy):
    """Their fits."""
    return source(noisy, {}, **OPTIONS)


def turns(planner):
    return [row for row in loss_over_bits_and_ratio(planner) if row["kind"] == "critical"]


def labels(planner):
    drawn = plan_contour_figure.data(Plan(planner.source, planner.question, (), planner))
    [legend] = plan_contour_figure.draw(drawn).legends
    return " | ".join(" ".join(text.get_text().split()) for text in legend.get_texts())


def test_records_are_judged_as_fit_judges_them(noisy, known):
    found = analyse(noisy, {}, **OPTIONS)["critical_tokens"]
    given = {(entry["params"], entry["bits"]): entry["predicted"] is not None for entry in found}
    assert set(given.values()) == {True, False}
    for N in SIZES:
        answers = plan(known, Question(params=N)).of("critical_tokens")
        assert {(N, a.at["bits"]): bool(a.values) for a in answers} == {
            at: known for at, known in given.items() if at[0] == N
        }
        [eight] = [answer for answer in answers if answer.at["bits"] == 8]
        assert eight.why_not[0].facts["found"].kind == "delta_not_significant"


def test_the_line_of_a_figure_is_refused_where_the_table_refuses(known):
    planner = Planner(known, Question(params=200e3))
    rows = turns(planner)
    for row in rows:
        value, why_not = planner.source.critical_tokens(200e3, row["bits"])
        assert math.isnan(row["ratio"]) == bool(row["why_not"])
        if not why_not and not row["why_not"]:
            assert row["ratio"] == pytest.approx(value.value / 200e3)
    refused = [row["bits"] for row in rows if row["why_not"]]
    assert min(refused) >= 6  # of the widths measured, 8 bits are the nearest
    assert max(refused) == 9
    reasons = [row["why_not"][0].facts["found"].kind for row in rows if row["bits"] >= 6]
    assert set(reasons) == {"delta_not_significant"}
    assert "no D_crit at" in labels(planner)
    assert "not significantly different from zero" in labels(planner)


def test_a_fit_that_identifies_nothing_draws_no_line(known):
    none = Finding(Reason.FIT_GIVES_NONE, {"found": findings.why(findings.Why.NO_LOSS_CURVE)})
    refusing = replace(known, verdicts=tuple((N, P, none) for N, P, _ in known.verdicts))
    planner = Planner(refusing, Question(params=200e3))
    assert all(math.isnan(row["ratio"]) for row in turns(planner))
    assert "no D_crit at 1 to 9 bits: no full-precision loss is known" in labels(planner)
    assert "D_crit, " not in labels(planner)


def test_the_line_is_marked_beyond_the_data_and_ends_where_it_is_not_believed():
    planner = Planner(from_preset(KUMAR_2024), Question(params=220e6, serve_bits=(2, 3, 4, 8)))
    rows = turns(planner)
    for row in rows:
        D = float(planner.source.critical_tokens(220e6, row["bits"])[0].value)
        assert bool(row["why_not"]) == (D > MAX_FACTOR * 26e9)
        assert row["why_not"] or row["beyond"] == pytest.approx(
            max(planner.source.beyond(N=220e6, D=D, bits=row["bits"]).values(), default=1.0)
        )
    assert "D_crit, beyond the data by up to" in labels(planner)
    assert "not to be believed" in labels(planner)


def test_fits_of_another_degradation_law_have_a_turn_with_its_interval():
    design = paper_design()
    delta = fit(Ouyang(), simulate(Ouyang(), OUYANG_2024, design, noise=0.03), n_boot=40)
    curve = fit(Chinchilla(), simulate(Chinchilla(), EPOCH_2024, design, noise=0.001), n_boot=40)
    known = from_fits([delta, curve], name="out", ranges={})
    [turn] = plan(known, Question(params=1e8, serve_bits=(4,))).of("critical_tokens")
    assert turn.values["D"].low < turn.values["D"].value < turn.values["D"].high
    flat = replace(delta, estimates={**delta.estimates, "gamma_D": replace(delta.estimates["gamma_D"], low=-0.1)})
    [turn] = plan(
        from_fits([flat, curve], name="out", ranges={}), Question(params=1e8, tokens=1e10, serve_bits=(4,))
    ).of("critical_tokens")
    assert turn.why_not[0].facts["found"].kind == "delta_does_not_grow"


def test_a_table_of_data_is_refused_a_turn_by_the_same_tests():
    design = paper_design()
    law = Ouyang()
    delta = fit(law, simulate(law, OUYANG_2024, design, noise=0.03), n_boot=40)
    curve = fit(Chinchilla(), simulate(Chinchilla(), EPOCH_2024, design, noise=0.001), n_boot=40)
    data = {name: design[name] for name in law.columns}
    given = list(critical_tokens(law, delta, data, curve, None))
    assert all(one.predicted is not None for one in given)
    stuck = replace(delta, status=FitStatus(FitKind.AT_BOUND, ("gamma_P",)))
    draws = delta.replicates.copy()
    draws[:, list(delta.estimates).index("k")] *= np.exp(np.linspace(-6, 6, len(draws)))
    vague = replace(delta, replicates=draws)
    for bad, reason in ((stuck, findings.Why.CONSTANT_AT_BOUND), (vague, findings.Why.WIDE_INTERVAL)):
        predictions = list(critical_tokens(law, bad, data, curve, None))
        assert all(one.predicted is None for one in predictions)
        assert all(one.verdict.reason.kind is reason for one in predictions)
