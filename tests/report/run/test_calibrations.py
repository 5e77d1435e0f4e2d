"""Contract: what a report says of other calibrations, and that all else is of the first one."""

import pandas as pd
import pytest
from scipy import stats

from ptq_eval.report import write
from ptq_eval.report.common.data import Study
from ptq_eval.report.run import calibrations, calibrations_figure, page
from tests.report.synthetic import make_fit, make_run, make_table

CONDITIONS = {("calib", 32, 64): 0.03, ("other", 128, 64): -0.004, ("other", 32, 64): 0.02}


@pytest.fixture(scope="module")
def alone():
    return make_table(runs=("small",), quantizers=("rtn", "gptq"), bits=(3, 4))


@pytest.fixture(scope="module")
def table(alone):
    """The same with three other calibrations of GPTQ, whose δ are very different."""
    mine = alone[alone["quantizer"] == "gptq"]
    parts = [alone]
    for text, windows, length in CONDITIONS:
        named = {"calib_text": text, "calib_windows": windows, "calib_length": length, "calib_first": False}
        parts.append(mine.assign(**named, delta=9.0, loss_q=12.0, key=mine["key"] + f"{text}{windows}"))
    return pd.concat(parts, ignore_index=True)


def entry(condition, difference, bits, covers=True):
    text, windows, length = condition
    return {
        "trajectory": "small", "quantizer": "gptq", "options": "{}", "bits": bits, "group_size": 16,
        "symmetric": False, "format": "int", "calibration": "sequential", "calib_text": text,
        "calib_windows": windows, "calib_length": length, "calib_seed": "0,1",
        "first": {"calib_text": "calib", "calib_windows": 128, "calib_length": 64, "calib_seed": "0,1"},
        "covers_calibration": covers, "checkpoints": 5, "delta_first": 0.2, "difference": difference, "error": 0.001,
        "df": 30.0, "significant": 4, "draw_sd": 0.0035,
    }  # fmt: skip


def study(table, alone, **more):
    effects = [entry(name, value, bits, **more) for name, value in CONDITIONS.items() for bits in (3, 4)]
    return Study(table, {**make_fit(alone), "calibrations": effects}, make_run(alone))


def test_tables_and_figures_are_of_the_first_calibration(table, alone):
    first, both = Study(alone, make_fit(alone), {}), study(table, alone)
    assert both.digest == first.digest
    assert both.rows.equals(first.rows)
    text = page.document(both)
    assert "9.0" not in text
    assert f"{len(first.measured)} deltas measured" in text


def test_the_page_names_the_first_and_compares_the_others(table, alone):
    text = page.document(study(table, alone)).split(f"## {calibrations.TITLE}")[1].split("\n## ")[0]
    assert "of the first calibration: calib, 128 windows of 64 tokens, seed 0. " in text
    assert "Errors cover another draw" in text
    lines = [line for line in text.splitlines() if line.startswith("| gptq | 3")]
    assert "other, 128 windows of 64 tokens | 0.2 | -0.0040(10) | −2 % |" in lines[1]
    assert "calib, 32 windows of 64 tokens | 0.2 | 0.0300(10) | +15 % |" in lines[0]
    assert "other, 32 windows" in lines[2]  # what differs in two respects comes last


def test_a_single_draw_is_said(table, alone):
    text = page.document(study(table, alone, covers=False))
    assert "a difference may come from the draw" in text
    assert "Errors cover another draw" not in text
    assert calibrations.summary(study(table, alone, covers=False))["p"].isna().all()


def test_p_is_adjusted_for_all_rows(table, alone):
    """Holm's procedure, row by row: a p-value times the number of those that are not smaller."""
    found = calibrations.summary(study(table, alone))
    alone = [2 * stats.t.sf(abs(row.difference) / row.error, row.df) for row in found.itertuples()]
    for p, adjusted in zip(alone, found["p"]):
        expected = max((min(1.0, q * sum(other >= q for other in alone)) for q in alone if q <= p), default=1.0)
        assert adjusted == pytest.approx(expected)


def test_there_is_no_section_with_one_calibration(alone):
    assert calibrations.TITLE not in page.document(Study(alone, make_fit(alone), {}))
    older = alone.drop(columns=[name for name in alone if name.startswith("calib_")])
    assert calibrations.TITLE not in page.document(Study(older, make_fit(older), {}))


@pytest.mark.slow
@pytest.mark.drawn("png")
def test_the_figure_shows_what_differs_in_one_respect(table, alone, tmp_path):
    shown = calibrations_figure.data(study(table, alone))
    assert set(shown["factor"]) == {"calib_text", "calib_windows"}
    for (factor, bits), own in shown.groupby(["factor", "bits"]):
        assert sorted(own["difference"]) == sorted([0.0, -0.004 if factor == "calib_text" else 0.03]), bits
    names = {path.name for path in write(tmp_path, table, study(table, alone).fit, make_run(alone))}
    assert {f"delta_vs_calibration.{kind}" for kind in ("png", "pdf", "csv")} <= names
    assert len(pd.read_csv(tmp_path / "degradation.csv")) == len(table)


def test_failed_rows_of_another_calibration_are_listed(table, alone):
    failed = table.copy()
    failed.loc[len(failed) - 1, ["delta", "status", "message"]] = [float("nan"), "failed", "it broke"]
    assert "it broke" in page.document(study(failed, alone))
