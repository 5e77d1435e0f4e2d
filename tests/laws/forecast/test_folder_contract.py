"""Forecasts of D_crit in the analysis of a folder: which lines have one, and what `fit.json` says of it."""

import json
import math

import numpy as np
import pytest

from ptq_eval.laws import analyse
from ptq_eval.laws.forecast.folder import forecasts
from ptq_eval.laws.forecast.series import series_of
from ptq_eval.results.points import Losses, read
from tests.laws.synthetic import table


@pytest.fixture(scope="module")
def rows():
    return table(np.random.default_rng(0), sizes=(80e3,), bits=(2, 3, 4), noise=0.02)


def test_every_entry_says_which_interval_counts(rows):
    found = analyse(*rows, n_boot=20)
    assert found["version"] == 3
    for entry in found["critical_tokens"]:
        assert entry["verdict_kind"] in ("observed", "forecast", "not_before")
        assert set(entry["answer"]) == {"low", "value", "high", "level"}
        said = entry["forecast"]
        assert said["n_checkpoints"] == entry["n_checkpoints"]
        for shares in said["weights"].values():
            assert not shares or math.isclose(sum(shares.values()), 1)
        if entry["verdict_kind"] == "not_before":
            assert entry["answer"] == {"low": said["low"], "value": None, "high": None, "level": 0.9}
        if entry["withheld"]:
            assert entry["predicted"] is None
    json.dumps(found, allow_nan=False)


def test_forecasts_repeat_with_the_seed(rows):
    points = read(rows[0])[0]
    assert forecasts(points, rows[1], seed=1) == forecasts(points, rows[1], seed=1)


def test_few_degrees_of_freedom_need_a_larger_delta(rows):
    table = [{**row, "delta_se": abs(row["delta"]) / 3} for row in rows[0] if "delta" in row]
    for df, significant in ((200, True), (1, False)):
        own = series_of(read([{**row, "delta_df": df} for row in table])[0])
        assert {s.significant for s in own} == {significant}


def test_what_calibration_adds_reaches_every_line(rows):
    rng = np.random.default_rng(0)
    quantized = [row for row in rows[0] if row["quantizer"] != "none"]
    windows = {row["key"]: Losses(*rng.normal(3, 0.1, (2, 8)), None, 0.01) for row in rows[0]}
    for s in series_of(read(quantized)[0], windows):
        assert s.calibration_se == pytest.approx(np.full(len(s.tokens), 0.01))
        assert s.until(s.tokens[2]).calibration_se.shape == (3,)


def test_three_checkpoints_and_separately_trained_models_have_no_forecast(rows):
    points = read(rows[0])[0]
    first = sorted({point.D for point in points})
    assert forecasts([point for point in points if first[2] >= point.D], {}) == {}
    assert len(forecasts([point for point in points if first[3] >= point.D], {})) == 3
    apart = [{**row, "run": f"{row['run']}-{row['tokens']}"} for row in rows[0]]
    assert forecasts(read(apart)[0], {}) == {}
    kinds = {entry["verdict_kind"] for entry in analyse(apart, {}, n_boot=20)["critical_tokens"]}
    assert kinds <= {"predicted", "not_identified"}
