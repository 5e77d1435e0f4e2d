"""The report's section on what the forecast would have been: its table, its sum, its figure, and why it is absent."""

import pytest

from ptq_eval.laws.fit.folder import fit_points
from ptq_eval.laws.forecast.folder import hindsight
from ptq_eval.report import write
from ptq_eval.report.backtest.hindsight import section, shown
from ptq_eval.report.common.data import Study
from ptq_eval.report.run.page import document
from ptq_eval.results.points import read
from tests.report.synthetic import RATIOS, make_fit, make_run, make_table


@pytest.fixture(scope="module")
def study():
    table = make_table(quantizers=("rtn",), bits=(2, 4))
    points = read(table.to_dict("records"))[0]
    fit = {**make_fit(table), "hindsight": hindsight(points, {}, fit_points(points, {}, n_boot=0).turns)}
    return Study(table, fit, make_run(table), points)


@pytest.fixture(scope="module")
def page(study, tmp_path_factory):
    out = tmp_path_factory.mktemp("asked")
    write(out, study.table, study.fit, study.run, points=study.points)
    text = (out / "report.md").read_text()
    assert (out / "figures" / "asked_large.png").exists()
    return text.split("## Had you asked earlier\n")[1].split("\n## ")[0]


@pytest.mark.slow
def test_every_line_of_every_run_is_in_a_table(study, page):
    assert page.count("\n| rtn |") == 4
    assert "**small (N = 80k)**, asked at D = 4M (D/N = 50); the last loss is at 6.4 times that D" in page
    for row in study.fit["hindsight"]["statements"]:
        if row["what"] == "loss_q":
            assert f"{row['value']:.3f} [{row['low']:.3f} to {row['high']:.3f}] | {row['truth']:.3f} |" in page


def test_it_is_summed_up_against_the_baselines(study, page):
    inside = sum(not row["refuted"] for row in study.fit["hindsight"]["statements"] if row["what"] == "loss_q")
    assert f"{inside} of 4 last losses" in page
    for words in ("δ stays as it is", "joint law (Kumar et al.)", "power of D per bit-width", "statements of D_crit"):
        assert words in page


def test_the_chart_is_of_the_largest_run(page):
    assert "](figures/asked_large.png)" in page
    assert "asked_small" not in page


def test_what_figures_have_no_panel_for_is_counted(study):
    many = Study(study.table, study.fit, study.run, study.points)
    vars(many)["panels"] = []
    assert section(many).count("2 more lines in `fit.json`.") == 2


def test_lines_of_a_run_do_not_count_as_independent(page):
    assert "these are no more than 2 independent cases" in page


def test_what_is_refuted_is_bold(study):
    asked = study.fit["hindsight"]
    wrong = [{**row, "refuted": True, "decisive": True} for row in asked["statements"]]
    fit = {**study.fit, "hindsight": {**asked, "statements": wrong}}
    page = document(Study(study.table, fit, study.run, study.points))
    assert page.count("**refuted**") == page.count("**outside**") == 4


def test_below_eight_checkpoints_the_page_says_why():
    table = make_table(quantizers=("rtn",), bits=(4,), ratios=RATIOS[:7])
    fit = {**make_fit(table), "hindsight": {"level": 0.9, "statements": [], "scores": []}}
    study = Study(table, fit, make_run(table))
    assert shown(study) is None
    assert "Not asked: a run needs 8 checkpoints" in (page := document(study))
    assert "the longest here has 7" in page
    assert "asked_" not in page


def test_what_says_little_is_counted_apart(study):
    asked = study.fit["hindsight"]
    empty = [{**row, "made": False, "refuted": False, "decisive": True} for row in asked["statements"]]
    fit = {**study.fit, "hindsight": {**asked, "statements": empty}}
    page = document(Study(study.table, fit, study.run, study.points))
    assert page.count("| says nothing |") == page.count("| inside, says little |") == 4
    assert "4 of these intervals say little" in page
    assert "0 have an upper end or exclude the D asked at; later checkpoints can decide 0 of these" in page
