"""Contract: nothing that a figure shows is outside it, and a table's whole numbers are written as such."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from ptq_eval.report import write
from ptq_eval.report.common import figures, tables
from ptq_eval.report.common.data import Study
from ptq_eval.report.run import page
from tests.report.synthetic import QUANTIZERS, make_fit, make_table

pytestmark = pytest.mark.drawn("png")

WHOLE_NUMBERS = ["step", "tokens", "params", "bits", "group_size", "windows"]
WHOLE_NUMBERS += ["damping_retries", "dead_columns", "layers_skipped"]


@pytest.fixture
def saved(monkeypatch):
    """Every figure that is saved, as it was laid out for its PNG.  A PDF has the same layout."""
    seen, save = [], figures.saved

    def remember(figure, kinds):
        yield from save(figure, kinds)
        seen.append(figure)

    monkeypatch.setattr(figures, "saved", remember)
    return seen


def overhang(figure):
    """By how many pixels the legend reaches beyond the figure."""
    box = figure.legends[0].get_window_extent()
    return max(-box.x0, -box.y0, box.x1 - figure.bbox.x1, box.y1 - figure.bbox.y1)


@pytest.mark.parametrize("bits", [(4,), (2, 3, 4, 8)], ids=str)
@pytest.mark.parametrize(
    "panels", [pytest.param(1, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.slow), 3]
)
def test_the_legend_lies_inside_the_figure(panels, bits, saved, tmp_path):
    table = make_table(runs=("small",), ratios=(20, 50, 100), quantizers=tuple(QUANTIZERS)[:panels], bits=bits)
    table.loc[table["bits"] == bits[-1], "delta"] *= -1  # the longest entry, on points at the lower edge
    write(tmp_path, table, make_fit(table), {})
    assert len(saved) == 2
    assert all(len(figure.axes) == panels for figure in saved)
    assert all(overhang(figure) <= 0 for figure in saved)


def test_a_long_run_name_is_broken_and_the_panel_keeps_its_height(saved, tmp_path):
    table = make_table(runs=("small",), ratios=(20, 50), quantizers=("rtn",))
    for name in ("small", "a-long-name-of-a-training-run/" * 4):
        write(tmp_path, table.assign(run=name), {}, {})
    assert all(overhang(figure) <= 0 for figure in saved)
    heights = [figure.axes[0].get_window_extent().height for figure in saved]
    assert min(heights) > 0.5 * saved[0].dpi * 2.3


def test_notes_stand_on_paper(saved, tmp_path):
    table = make_table(runs=("small",), quantizers=("gptq",))
    write(tmp_path, table, make_fit(table), {})
    notes = [text for text in saved[-1].axes[0].texts if "band reaches the dashed line" in text.get_text()]
    assert [note.get_bbox_patch().get_facecolor()[:3] for note in notes] == [(1.0, 1.0, 1.0)]


@pytest.mark.slow
def test_whole_numbers_are_written_whole_and_read_back_as_they_were(out, written, table):
    texts = pd.read_csv(out / "degradation.csv", dtype=str)
    assert (texts["bits"].isna() == table["bits"].isna()).all()
    assert set(texts["bits"].dropna()) == {"2", "3", "4", "8"}
    assert set(texts["group_size"].dropna()) == {"16"}
    for name in WHOLE_NUMBERS:
        assert texts[name].dropna().str.fullmatch(r"\d+").all(), name
        np.testing.assert_array_equal(pd.read_csv(out / "degradation.csv")[name], table[name])


def test_a_fraction_in_a_column_of_whole_numbers_is_kept(tmp_path):
    table = make_table(runs=("small",), ratios=(20, 50), quantizers=("rtn",))
    table["tokens"] = table["tokens"] + 0.25
    write(tmp_path, table, {}, {})
    np.testing.assert_array_equal(pd.read_csv(tmp_path / "degradation.csv")["tokens"], table["tokens"])


def test_form_loss_points_and_scatter_are_given_with_every_fit(table, fit):
    facts = {"equation": "delta = C * (D/N)^gamma", "loss": "huber", "huber_delta": 1.345}
    facts |= {"scatter": 0.0312, "least_scatter": False, "n_points": 77, "n_dropped": 3, "fixed": {"gamma_post": 1.0}}
    entries = [{**fit["fits"][1], **facts}, fit["fits"][2]]
    section = page.document(Study(table, {"fits": entries}, {})).split("## Fits")[1].split("## ")[0]
    assert (
        "- rtn: `delta = C * (D/N)^gamma`; huber loss, linear beyond 1.345 standard deviations; 77 points, 3 dropped; "
        "scatter about the law beyond evaluation noise: 3.1 %; one bit-width: gamma_post is set to 1 and not fitted, "
        "C_T holds only together with it and for these bits.\n"
    ) in section
    assert "- gptq: form not recorded; huber loss; 80 points, 0 dropped; scatter" in section


def test_a_constant_at_its_bound_has_no_interval(table, fit):
    ends = {"low": None, "high": None}
    constants = {"C": {"value": 0.5, "low": 0.4, "high": 0.6}, "gamma": {"value": 3.0, **ends}}
    stuck = {"status_kind": "at_bound", "at_bound": ["gamma"]}
    entries = [{**fit["fits"][1], **status, "parameters": constants} for status in (stuck, {})]
    rows = tables.fit_rows(Study(table, {"fits": entries}, {}))
    assert [row[2] for row in rows] == ["C = 0.5 [0.4 to 0.6], gamma = 3 (at bound)", "C = 0.5 [0.4 to 0.6], gamma = 3"]
