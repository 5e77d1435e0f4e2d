"""Contract: a plan from a fit.json alone: quantizer, the nearest run's curve, replicates, ranges and verdicts."""

import json

import numpy as np
import pytest

from ptq_eval.errors import NothingToFitError, PlanError
from ptq_eval.laws import analyse, fit
from ptq_eval.laws.formulas.chinchilla import Chinchilla
from ptq_eval.laws.formulas.kumar import KumarPTQ
from ptq_eval.laws.formulas.n_eff import NEff
from ptq_eval.laws.formulas.presets import KUMAR_2024
from ptq_eval.laws.plan.answers import Question, plan
from ptq_eval.laws.plan.source import from_fits
from ptq_eval.laws.plan.stored import from_folder, from_stored
from ptq_eval.laws.simulate import PAPER_SIZES, PAPER_TOKENS, grid, paper_design, simulate
from ptq_eval.report.plan.words import cautions
from tests.laws.synthetic import table

RANGES = {"N": [30e6, 220e6], "D": [1.5e9, 26e9], "P": [3, 6]}


@pytest.fixture(scope="module")
def report():
    """The fit.json of two sizes and two quantizers, and the rows behind it."""
    rows, windows = table(np.random.default_rng(0), sizes=(40e3, 160e3), quantizers=("rtn", "gptq"))
    return json.loads(json.dumps(analyse(rows, windows, n_boot=20))), rows


def test_a_law_over_all_sizes_that_is_not_identified_leaves_the_curve_of_the_nearest_run():
    rows, windows = table(np.random.default_rng(0), sizes=(40e3, 80e3, 160e3))
    content = json.loads(json.dumps(analyse(rows, windows, n_boot=5)))
    [over_all] = [entry for entry in content["fits"] if entry["law"] == "chinchilla"]
    assert from_stored(content, name="out", params=90e3).one_size is None
    over_all |= {"status_kind": "not_identified", "reason": {"kind": "not_finite"}}
    source = from_stored(content, name="out", params=90e3)
    assert (source.one_size, source.curve) == (80e3, "size1")
    assert "alpha" not in source.constants


@pytest.mark.parametrize(("params", "nearest"), [(160e3, 160e3), (50e3, 40e3), (79e3, 40e3), (1e6, 160e3)])
def test_the_nearest_run_and_the_quantizer_named(report, params, nearest):
    content, rows = report
    source = from_stored(content, name="out", quantizer="gptq", params=params)
    runs = {entry["runs"][0]: entry for entry in content["fits"] if entry["law"] == "chinchilla_d"}
    [gptq] = [entry for entry in content["fits"] if entry["quantizer"] == "gptq"]
    assert len(runs) == 2
    assert source.one_size == nearest
    assert source.constants["beta"][0] == runs[source.curve]["parameters"]["beta"]["value"]
    assert source.constants["gamma_post"][0] == gptq["parameters"]["gamma_post"]["value"]
    assert source.ranges["N"] == (40e3, 160e3)
    assert source.ranges["bits"] == (2, 8)
    assert source.ranges["D"] == (min(row["tokens"] for row in rows), max(row["tokens"] for row in rows))
    lines = " ".join(cautions(plan(source, Question(params=params, serve_bits=(2,)))))
    assert (f"loss curve of run {source.curve}" in lines) == (params != nearest)


def test_a_quantizer_has_to_be_named_and_be_there(report):
    with pytest.raises(PlanError, match="several quantizers"):
        from_stored(report[0], name="out", params=40e3)
    with pytest.raises(PlanError, match="awq"):
        from_stored(report[0], name="out", quantizer="awq")


def of_formats(content):
    """The same content with a second law of gptq, for nvfp4, whose D_crit at 4 bits is not identified."""
    content = json.loads(json.dumps(content))
    [gptq] = [entry for entry in content["fits"] if entry["quantizer"] == "gptq"]
    named = {"format": "nvfp4", "group_size": 16, "symmetric": True}
    content["fits"].append({**gptq, **named, "ranges": {**gptq["ranges"], "P": [4, 4]}})
    four = [e for e in content["critical_tokens"] if (e["quantizer"], e["bits"]) == ("gptq", 4)]
    content["critical_tokens"] += [{**entry, **named} for entry in four]
    return content


def test_a_number_format_has_to_be_named_and_be_there(report):
    content = of_formats(report[0])
    with pytest.raises(PlanError, match=r"several number formats.*int, nvfp4.*--bits-axis effective"):
        from_stored(content, name="out", quantizer="gptq")
    with pytest.raises(PlanError, match=r"no fit of this number format.*got mxfp4.*int, nvfp4"):
        from_stored(content, name="out", quantizer="gptq", number_format="mxfp4")
    integers = from_stored(content, name="out", quantizer="gptq", number_format="int")
    assert integers.bits == (2, 3, 4, 8)
    assert from_stored(content, name="out", quantizer="gptq", number_format="nvfp4").bits == (4,)
    assert from_stored(report[0], name="out", quantizer="rtn", number_format="int").bits == (2, 3, 4, 8)


def test_on_a_shared_axis_bits_are_those_of_the_axis(report):
    content = json.loads(json.dumps(report[0]))
    for entry in content["fits"]:
        entry |= {"format": ""} if entry["quantizer"] == "gptq" else {}
    for entry in content["critical_tokens"]:
        entry["axis_bits"] = entry["bits"] + 0.25
    content["bits_axis"] = "gaussian"
    source = from_stored(content, name="out", quantizer="gptq", params=40e3)
    assert source.bits == (2.25, 3.25, 4.25, 8.25)
    assert "bits are counted for an ideal code" in source.note
    assert plan(source, Question(params=40e3, serve_bits=(3.1,))).of("critical_tokens")
    with pytest.raises(PlanError, match=r"not the bits that are stored.*--memory.*--bits-axis effective"):
        plan(source, Question(params=40e3, memory=1e6))
    with pytest.raises(PlanError, match=r"share a law.*got nvfp4"):
        from_stored(content, name="out", quantizer="gptq", number_format="nvfp4")


def test_verdicts_are_those_of_the_fit(report):
    content = json.loads(json.dumps(report[0]))
    for entry in content["critical_tokens"]:
        if entry["bits"] == 3 and entry["quantizer"] == "rtn" and entry["params"] == 40e3:
            reason = {"kind": "delta_not_significant", "bits": 3.0}
            entry |= {"predicted": None, "verdict_kind": "not_identified", "reason": reason}
    for quantizer, params, known in (("rtn", 50e3, False), ("rtn", 160e3, True), ("gptq", 50e3, True)):
        source = from_stored(content, name="out", quantizer=quantizer, params=params)
        two, three = plan(source, Question(params=params, serve_bits=(2, 3))).of("critical_tokens")
        assert two.values
        assert bool(three.values) == known
        assert known or three.why_not[0].facts["found"].kind == "delta_not_significant"


@pytest.fixture(scope="module")
def fits():
    loss = fit(Chinchilla(), simulate(Chinchilla(), KUMAR_2024, paper_design(), noise=0.002), n_boot=40)
    return [fit(KumarPTQ(), simulate(KumarPTQ(), KUMAR_2024, paper_design(), noise=0.03), n_boot=40), loss]


def test_kept_replicates_give_the_intervals_of_the_fits_themselves(fits):
    content = json.loads(json.dumps({"fits": [{**one.to_dict(), "ranges": RANGES} for one in fits]}))
    kept = {str(i): one.replicates for i, one in enumerate(fits)}
    question = Question(params=220e6, tokens=26e9, serve_bits=(4,))
    live = plan(from_fits(fits, name="out", ranges={}), question)
    stored = plan(from_stored(content, name="out", replicates=kept), question)
    for one, other in zip(stored.answers, live.answers):
        for name, value in one.values.items():
            ends = [[found.value, found.low, found.high] for found in (value, other.values[name])]
            assert ends[0] == pytest.approx(ends[1], rel=1e-6, nan_ok=True), (one.label, name)
    [turn] = stored.of("critical_tokens")
    assert turn.values["D"].low < turn.values["D"].value < turn.values["D"].high
    with pytest.raises(NothingToFitError, match="another fit"):
        from_stored(content, name="out", replicates={"0": kept["1"]})


def test_training_precision_beyond_the_fitted_range_is_marked():
    design = grid({"N": PAPER_SIZES, "D": PAPER_TOKENS, "P": (4.0, 6.0, 8.0)}, run=("N", "D", "P"))
    law = NEff(("weights",), offsets=False)
    design["P_w"] = design["P"]
    truth = {name: KUMAR_2024.constants[name] for name in ("A", "alpha", "B", "beta", "E", "gamma_w")}
    entry = fit(law, simulate(law, truth, design, noise=0.003), n_boot=0).to_dict()
    entry["ranges"] = {"N": [30e6, 220e6], "D": [1.5e9, 26e9], "P_w": [4.0, 8.0]}
    found = plan(from_stored({"fits": [entry]}, name="out"), Question(params=1e8, tokens=1e10, serve_bits=(2, 4)))
    given = {a.at["train_bits"]: a for a in found.of("optimum") if "N" in a.at and "train_bits" in a.at and a.values}
    assert {P: answer.beyond.get("P") for P, answer in given.items()} == {16.0: 2.0, 2.0: 2.0, 4.0: None}
    [lower] = found.of("lower")
    assert lower.beyond == {"P": pytest.approx(4.0)}  # one bit, the least that was searched
    assert "not recorded" not in " ".join(cautions(found))


def test_a_fit_of_version_1_is_refused_as_that(tmp_path, report):
    content, _ = report
    (tmp_path / "fit.json").write_text(json.dumps({**content, "version": 1}))
    with pytest.raises(NothingToFitError, match=r"older ptq-eval, without the reasons.*got version 1.*repeat the run"):
        from_folder(tmp_path)
