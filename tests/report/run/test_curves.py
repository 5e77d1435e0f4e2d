"""Property and contract: curves of the figures go through their points or are absent, and bands are forecasts."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ptq_eval.report.common.data import Study
from ptq_eval.report.run import curves, delta_figure, loss_figure
from tests.report.synthetic import make_fit, make_run, make_table


@given(st.integers(2, 30), st.floats(1e-6, 1e3), st.floats(-10, 10))
def test_a_curve_through_the_points_follows_and_one_beside_them_does_not(n, noise, level):
    values = level + np.linspace(0, 1, n)
    scale = np.full(n, noise)
    assert curves.follows(values, values, scale)
    assert not curves.follows(values + 3 * noise, values, scale)


def test_a_curve_that_bends_away_at_the_end_does_not_follow():
    points = np.zeros(10)
    away = np.r_[np.zeros(5), np.full(5, 1.3)]
    assert not curves.follows(away, points, np.ones(10))


def test_chance_hides_few_true_curves():
    noise = np.random.default_rng(0).standard_normal((2000, 10))
    assert np.mean([curves.follows(np.zeros(10), one, np.ones(10)) for one in noise]) > 0.85


def test_points_without_known_noise_have_no_curve():
    assert not curves.follows(np.zeros(3), np.zeros(3), np.zeros(3))


@pytest.fixture(scope="module")
def study():
    table = make_table(ratios=(5, 10, 20, 40, 80, 160, 320, 640), quantizers=("rtn", "gptq"), bits=(2, 3, 8))
    return Study(table, make_fit(table), make_run(table))


def test_a_law_that_misses_the_points_is_not_drawn(study):
    table = delta_figure.data(study)
    drawn = table[table["kind"] == "fit"]
    assert set(drawn["bits"]) >= {2}
    off = study.table.copy()
    gptq = off["quantizer"] == "gptq"
    off.loc[gptq, ["delta", "loss_q"]] = np.column_stack(
        [off.loc[gptq, "delta"] * 2, off.loc[gptq, "loss_fp"] + off.loc[gptq, "delta"] * 2]
    )
    found = delta_figure.data(Study(off, study.fit, study.run))
    missing = found[(found["kind"] == "fit") & (found["quantizer"] == "gptq")]
    assert not {2, 3} & set(missing["bits"])
    assert set(found[(found["kind"] == "fit") & (found["quantizer"] == "rtn")]["bits"]) >= {2}


def test_bands_start_at_the_last_measurement_and_never_reach_the_loss_before(study):
    table = loss_figure.data(study)
    bands = table[table["kind"] == "band"]
    assert len(bands)
    for (run, label, bits), band in bands.groupby(["run", "quantizer", "bits"]):
        own = table[(table["run"] == run) & (table["quantizer"] == label)]
        last = own[(own["kind"] == "after") & (own["bits"] == bits)].sort_values("tokens").iloc[-1]
        assert (band["tokens"].iloc[0], band["loss"].iloc[0]) == (last["tokens"], last["loss"])
        assert band["tokens"].iloc[-1] == pytest.approx(curves.HORIZON * last["tokens"])
        edges = band[["low", "low_50", "loss", "high_50", "high"]].to_numpy()
        assert (np.diff(edges, axis=1) >= 0).all()
        ahead = own[own["kind"] == "ahead"]
        assert (band["low"].to_numpy()[1:] > ahead["loss"].to_numpy()[1:]).all()
    assert "fit" not in set(table["kind"])


def test_separately_trained_models_have_no_band(study):
    apart = study.table.copy()
    apart["run"] = [f"{run}-{tokens:.0f}" for run, tokens in zip(apart["run"], apart["tokens"])]
    assert "band" not in set(loss_figure.data(Study(apart, {**study.fit, "critical_tokens": []}, study.run))["kind"])
