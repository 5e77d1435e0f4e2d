"""Contract: bad data end in a status and words, never in a crash; what is returned is JSON."""

import json
import math

import numpy as np
import pytest

from ptq_eval import plugins
from ptq_eval.errors import OptionError
from ptq_eval.laws import Law, analyse, fit
from ptq_eval.laws.formulas.chinchilla import ChinchillaD
from ptq_eval.laws.formulas.kumar import KumarPTQ, KumarPTQRatio
from ptq_eval.results.points import Skipped, read
from tests.laws.synthetic import RATIO, RATIOS, points, ratio, table


@pytest.fixture
def data():
    return points(ratio, RATIO, [80e3], RATIOS, (2, 3, 4), np.random.default_rng(0), scatter=0.05)


def cut(data, keep):
    return {name: column[keep] for name, column in data.items()}


def test_one_point_is_not_identified(data):
    result = fit(KumarPTQRatio(), cut(data, slice(0, 1)))
    assert result.status.startswith("not_identified: 1 points for 3 constants")
    assert not result.identified
    assert math.isnan(result.values["gamma"])


def test_all_negative_deltas_are_not_identified(data):
    result = fit(KumarPTQRatio(), {**data, "delta": -data["delta"]})
    assert result.status.startswith("not_identified: only 0 of 30 deltas are above zero")


def test_equal_bits_are_not_identified(data):
    result = fit(KumarPTQRatio(), cut(data, data["P"] == 3))
    assert result.status == "not_identified: 1 distinct value of P, at least 2 needed"


def test_one_size_does_not_identify_equation_2(data):
    assert fit(KumarPTQ(), data).status == "not_identified: 1 distinct value of N, at least 2 needed"


def test_nan_and_unknown_tokens_are_dropped_and_counted(data):
    data["delta"][0], data["D"][1], data["D"][2] = math.nan, math.nan, 0
    result = fit(KumarPTQRatio(), data)
    assert (result.status, result.n_dropped, result.n_points) == ("ok", 3, 27)


def test_nothing_but_nan_is_not_identified(data):
    result = fit(KumarPTQRatio(), {**data, "delta": np.full(30, math.nan)})
    assert result.status.startswith("not_identified: 0 points")
    assert result.n_dropped == 30


def test_a_constant_at_its_bound_is_named(data):
    steep = {**data, "delta": data["delta"] * (data["D"] / data["N"]) ** 4}
    assert "gamma" in fit(KumarPTQRatio(), {**steep, "windows": np.empty((30, 0))}).status


@pytest.mark.parametrize("loss", [np.full(8, 3.0), np.linspace(3, 3.1, 8), 3 + 0.01 * (-1.0) ** np.arange(8)])
def test_a_loss_that_does_not_fall_is_not_identified(loss):
    result = fit(ChinchillaD(), {"D": np.geomspace(1e6, 1e8, 8), "loss": loss})
    assert result.status == "not_identified: the loss is not seen to fall with D"


def test_unknown_standard_errors_and_windows_are_allowed(data):
    bare = {name: data[name] for name in ("N", "D", "P", "delta")}
    result = fit(KumarPTQRatio(), bare)
    assert result.status == "ok"
    assert "no evaluation noise" in result.interval_covers
    assert result.estimates["gamma"].low < result.estimates["gamma"].high


def test_a_result_says_what_its_interval_covers(data):
    result = fit(KumarPTQRatio(), data)
    assert result.n_runs == 1
    assert "48 evaluation windows" in result.interval_covers
    assert "not another training run" in result.interval_covers
    three = fit(KumarPTQRatio(), {**data, "run": np.arange(30) % 3})
    assert "over 3 runs" in three.interval_covers


@pytest.mark.parametrize("wrong", [{"loss": "cauchy"}, {"level": 1.5}, {"huber_delta": 0}, {"n_boot": -1}])
def test_a_wrong_option_is_an_error(data, wrong):
    with pytest.raises(OptionError):
        fit(KumarPTQRatio(), data, **wrong)


def test_a_result_is_frozen_and_json(data):
    result = fit(KumarPTQRatio(), data, loss="squared", n_boot=10)
    with pytest.raises(AttributeError):
        result.status = "fine"  # type: ignore[misc]
    text = json.dumps(result.to_dict(), allow_nan=False)
    assert {"objective", "r2", "r2_log", "n_points", "interval", "scatter", "digest"} <= set(json.loads(text))


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
    assert {"observed_tokens", "observed", "interior", "rise", "rise_se", "verdict"} <= set(first)


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
    assert not any("intermediate checkpoints" in warning for warning in out["warnings"])


def test_rows_without_tokens_or_measurement_are_counted_not_fitted():
    rows, windows = table(np.random.default_rng(0))
    rows[1]["status"], rows[2]["tokens"], rows[3]["params"] = "failed", None, None
    out = analyse(rows, windows, n_boot=10)
    assert read(rows)[1] == dict.fromkeys(Skipped, 1)
    assert out["fits"][-1]["n_points"] == 80 - 3


@pytest.mark.parametrize("rows", [[], [{"run": "a", "status": "failed"}], [{}]])
def test_an_empty_table_says_so(rows):
    out = analyse(rows, {})
    assert out["fits"] == []
    assert "nothing to fit" in out["warnings"]


def test_a_single_checkpoint_without_windows_gives_words():
    rows, _ = table(np.random.default_rng(0), sizes=(80e3,), ratios=[20.0])
    out = analyse(rows, {})
    assert all(f["status"].startswith("not_identified") for f in out["fits"])
    assert all(c["verdict"].startswith("not identifiable") for c in out["critical_tokens"])
    assert any("fewer than 4" in warning for warning in out["warnings"])
