"""Contract: bad data end in a status and words, never in a crash; what is returned is JSON."""

import json
import math

import numpy as np
import pytest

from ptq_eval import plugins
from ptq_eval.errors import OptionError
from ptq_eval.laws import Caution, Coverage, Estimate, FitStatus, Law, Why, analyse, fit
from ptq_eval.laws.base import Method, Noise
from ptq_eval.laws.findings import why
from ptq_eval.laws.formulas.chinchilla import ChinchillaD
from ptq_eval.laws.formulas.kumar import KumarPTQ, KumarPTQRatio
from ptq_eval.report.common.words import coverage_text
from ptq_eval.results.points import Skipped, read
from tests.laws.synthetic import RATIO, RATIOS, points, ratio, table


@pytest.fixture
def data():
    return points(ratio, RATIO, [80e3], RATIOS, (2, 3, 4), np.random.default_rng(0), scatter=0.05)


def cut(data, keep):
    return {name: column[keep] for name, column in data.items()}


def test_one_point_is_not_identified(data):
    result = fit(KumarPTQRatio(), cut(data, slice(0, 1)))
    assert result.status.reason == why(Why.TOO_FEW_POINTS, points=1, constants=3)
    assert not result.identified
    assert math.isnan(result.values["gamma"])


def test_all_negative_deltas_are_not_identified(data):
    result = fit(KumarPTQRatio(), {**data, "delta": -data["delta"]})
    assert result.status.reason == why(Why.TOO_FEW_CLEAR_DELTAS, clear=0, deltas=30, needed=3)


def test_equal_bits_are_not_identified(data):
    result = fit(KumarPTQRatio(), cut(data, data["P"] == 3))
    assert result.status.reason == why(Why.TOO_FEW_VALUES, variable="P", distinct=1, needed=2)


def test_one_size_does_not_identify_equation_2(data):
    reason = fit(KumarPTQ(), data).status.reason
    assert reason == why(Why.TOO_FEW_VALUES, variable="N", distinct=1, needed=2)


def test_nan_and_unknown_tokens_are_dropped_and_counted(data):
    data["delta"][0], data["D"][1], data["D"][2] = math.nan, math.nan, 0
    result = fit(KumarPTQRatio(), data)
    assert (result.status.kind, result.n_dropped, result.n_points) == ("ok", 3, 27)


def test_nothing_but_nan_is_not_identified(data):
    result = fit(KumarPTQRatio(), {**data, "delta": np.full(30, math.nan)})
    assert result.status.reason == why(Why.TOO_FEW_POINTS, points=0, constants=3)
    assert result.n_dropped == 30


def test_a_constant_at_its_bound_is_named(data):
    steep = {**data, "delta": data["delta"] * (data["D"] / data["N"]) ** 4}
    assert "gamma" in fit(KumarPTQRatio(), {**steep, "windows": np.empty((30, 0))}).status.at_bound


@pytest.mark.parametrize("loss", [np.full(8, 3.0), np.linspace(3, 3.1, 8), 3 + 0.01 * (-1.0) ** np.arange(8)])
def test_a_loss_that_does_not_fall_is_not_identified(loss):
    result = fit(ChinchillaD(), {"D": np.geomspace(1e6, 1e8, 8), "loss": loss})
    assert result.status == FitStatus.not_identified(why(Why.LOSS_DOES_NOT_FALL))


def test_unknown_standard_errors_and_windows_are_allowed(data):
    bare = {name: data[name] for name in ("N", "D", "P", "delta")}
    result = fit(KumarPTQRatio(), bare)
    assert result.status.kind == "ok"
    assert result.covers.noise is Noise.NONE
    assert result.estimates["gamma"].low < result.estimates["gamma"].high


def test_a_result_says_what_its_interval_covers(data):
    result = fit(KumarPTQRatio(), data)
    assert result.n_runs == 1
    assert result.covers == Coverage(0.9, Method.BOOTSTRAP, 1, 10, False, Noise.WINDOWS, 48)
    assert "48 evaluation windows" in coverage_text(result.covers.to_dict())
    assert "not another training run" in coverage_text(result.covers.to_dict())
    three = fit(KumarPTQRatio(), {**data, "run": np.arange(30) % 3})
    assert (three.covers.covers_runs, three.covers.n_clusters) == (True, 3)
    assert "over 3 runs" in coverage_text(three.covers.to_dict())


@pytest.mark.parametrize("wrong", [{"loss": "cauchy"}, {"level": 1.5}, {"huber_delta": 0}, {"n_boot": -1}])
def test_a_wrong_option_is_an_error(data, wrong):
    with pytest.raises(OptionError):
        fit(KumarPTQRatio(), data, **wrong)


def test_a_result_is_frozen_and_json(data):
    result = fit(KumarPTQRatio(), data, loss="squared", n_boot=10)
    with pytest.raises(AttributeError):
        result.status = FitStatus()  # type: ignore[misc]
    text = json.dumps(result.to_dict(), allow_nan=False)
    assert {"objective", "r2", "r2_log", "n_points", "covers", "scatter", "digest"} <= set(json.loads(text))
    assert not {"message", "interval", "status"} & set(json.loads(text))  # sentences are made in the report
    assert FitStatus.from_dict(json.loads(text)) == result.status
    assert Coverage.from_dict(json.loads(text)["covers"]) == result.covers


def test_installed_laws_keep_the_contract():
    for name in ("kumar_ptq", "kumar_ptq_ratio", "chinchilla"):
        law = plugins.get("laws", name)()
        assert isinstance(law, Law)
        assert law.name == name
        assert law.response in ("delta", "loss")
        assert law.source
        assert law.equation
        assert set(law.columns) >= {"N", "D"}


def test_analysis_of_a_whole_table_is_json_with_every_key():
    rows, windows = table(np.random.default_rng(0), quantizers=("rtn", "gptq"))
    out = json.loads(json.dumps(analyse(rows, windows, n_boot=50), allow_nan=False))
    assert [(f["quantizer"], f["law"]) for f in out["fits"]] == [
        ("none", "chinchilla_d"),
        ("none", "chinchilla_d"),
        ("rtn", "kumar_ptq"),
        ("gptq", "kumar_ptq"),
    ]
    assert len(out["critical_tokens"]) == 2 * 2 * 4
    first = out["critical_tokens"][0]
    assert {"run", "params", "quantizer", "bits", "predicted", "extrapolation_factor"} <= set(first)
    assert {"observed_tokens", "observed", "interior", "rise", "rise_se", "verdict_kind", "reason"} <= set(first)


def test_one_size_is_fitted_in_its_ratio_form_and_configurations_apart():
    rows, windows = table(np.random.default_rng(0), sizes=(80e3,))
    again = [{**row, "group_size": 64} for row in rows if row["quantizer"] != "none"]
    out = analyse([*rows, *again], windows, n_boot=20)
    laws = [(f["law"], f["group_size"]) for f in out["fits"] if f["quantizer"] == "rtn"]
    assert laws == [("kumar_ptq_ratio", 32), ("kumar_ptq_ratio", 64)]


def test_three_sizes_with_single_checkpoint_runs_share_one_chinchilla_law():
    rows, windows = table(np.random.default_rng(0), sizes=(4e4, 8e4, 16e4), ratios=RATIOS[::3])
    separate = [{**row, "run": f"{row['run']}-{row['step']}"} for row in rows]
    out = analyse(separate, windows, n_boot=20)
    assert out["fits"][0]["law"] == "chinchilla"
    assert out["fits"][0]["n_runs"] == 12
    assert {c["run"] for c in out["critical_tokens"]} == {f"runs of N = {n}" for n in ("4e+04", "8e+04", "1.6e+05")}
    assert not any(one["kind"] == Caution.SCHEDULE for one in out["cautions"])


def test_rows_without_tokens_or_measurement_are_counted_not_fitted():
    rows, windows = table(np.random.default_rng(0))
    rows[1]["status"], rows[2]["tokens"], rows[3]["params"] = "failed", None, None
    out = analyse(rows, windows, n_boot=10)
    assert read(rows)[1] == dict.fromkeys(set(Skipped) - {Skipped.OTHER_CALIBRATION, Skipped.RUNTIME}, 1)
    assert out["fits"][-1]["n_points"] == 80 - 3


@pytest.mark.parametrize("rows", [[], [{"run": "a", "status": "failed"}], [{}]])
def test_an_empty_table_says_so(rows):
    out = analyse(rows, {})
    assert out["fits"] == []
    assert out["cautions"][-1] == {"kind": "nothing_to_fit"}


def test_a_single_checkpoint_without_windows_gives_words():
    rows, _ = table(np.random.default_rng(0), sizes=(80e3,), ratios=[20.0])
    out = analyse(rows, {})
    assert all(f["status_kind"] == "not_identified" and f["reason"]["kind"] for f in out["fits"])
    assert all(c["verdict_kind"] == "not_identified" and c["reason"]["kind"] for c in out["critical_tokens"])
    assert {"kind": "no_trend", "trajectory": "size0", "points": 1, "needed": 4} in out["cautions"]


def test_a_bootstrap_interval_that_reaches_a_bound_is_open_and_comes_back_from_json(data):
    free = fit(KumarPTQRatio(), data, n_boot=50).estimates["gamma"]
    bounds = {"gamma": (-3.0, (free.value + free.high) / 2)}
    found = fit(KumarPTQRatio(), data, n_boot=50, bounds=bounds).estimates["gamma"]
    assert (found.open, found.low) == (("high",), pytest.approx(free.low, abs=0.02))
    stored = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert stored == {"value": found.value, "low": found.low, "high": None, "open": ["high"]}
    assert Estimate.from_dict(stored) == found
