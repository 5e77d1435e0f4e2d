"""Contract: which files a report writes, what is in them, and that their numbers are the ones it was given."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from pandas.testing import assert_frame_equal
from rich.console import Console

from ptq_eval.errors import NothingToFitError, OutputFullError
from ptq_eval.laws import analyse
from ptq_eval.report import labels, render, render_fit, write, write_fit
from ptq_eval.report.common.data import COLUMNS, Study
from ptq_eval.report.run import latex, page
from ptq_eval.sampling import errors_needed
from tests.report.synthetic import make_fit, make_run, make_table

FIGURES = [f"figures/{name}.{kind}" for name in ("delta_vs_ratio", "loss_vs_tokens") for kind in ("csv", "pdf", "png")]
FILES = ["degradation.csv", "fit.json", "report.md", "report.html", "tables/degradation.tex", *FIGURES]


@pytest.fixture
def small():
    """A table of one run, three checkpoints and one quantizer at two bit-widths, its fit and its run."""
    table = make_table(runs=("small",), ratios=(20, 50, 100), quantizers=("gptq",), bits=(2, 3))
    return table, make_fit(table), make_run(table)


def printed(table, fit, run, width=200):
    console = Console(file=io.StringIO(), width=width)
    console.print(render(table, fit, run))
    return console.file.getvalue()


@pytest.mark.slow
def test_write_returns_exactly_the_files_it_wrote(out, written):
    found = sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.is_file())
    assert found == sorted(FILES) == sorted(str(path.relative_to(out)) for path in written)
    assert all(path.stat().st_size for path in written)


def test_csv_starts_with_the_agreed_columns_and_keeps_every_digit(out, written, table):
    read = pd.read_csv(out / "degradation.csv", keep_default_na=True, na_values=[""], float_precision="round_trip")
    assert list(read.columns[: len(COLUMNS)]) == COLUMNS
    assert len(read) == len(table)
    for name in ("loss_fp", "delta", "delta_se", "kl", "bpb_q"):
        np.testing.assert_array_equal(read[name], table[name])


def test_fit_json_is_valid_json_with_null_for_what_is_not_finite(tmp_path, small):
    table, fit, run = small
    fits = [{**fit["fits"][0], "r2": float("nan"), "objective": np.float64("inf"), "n_points": np.int64(7)}]
    write(tmp_path, table, {**fit, "fits": fits}, run)

    def refuse(name):
        raise AssertionError(f"{name} is not JSON")

    read = json.loads((tmp_path / "fit.json").read_text(), parse_constant=refuse)
    assert read["fits"][0]["r2"] is None
    assert read["fits"][0]["objective"] is None
    assert read["fits"][0]["n_points"] == 7
    assert read["critical_tokens"] == fit["critical_tokens"]


@pytest.mark.slow
@pytest.mark.drawn("png", "pdf")
def test_a_changed_measurement_changes_every_output(small, tmp_path):
    table, fit, run = small
    changed = table.copy()
    row = changed.index[(changed["quantizer"] == "gptq") & (changed["bits"] == 3)][1]
    changed.loc[row, ["delta", "loss_q", "delta_se"]] = [0.14418, changed.loc[row, "loss_fp"] + 0.14418, 0.00093]
    for folder, measured in (("old", table), ("new", changed)):
        write(tmp_path / folder, measured, fit, run)
    for name, shown in (("report.md", "0.14418(93)"), ("tables/degradation.tex", "0 & 14418(93)")):
        assert shown not in (tmp_path / "old" / name).read_text()
        assert shown in (tmp_path / "new" / name).read_text()
    assert "0.14418(93)" in printed(changed, fit, run)
    for name in (*FIGURES, "degradation.csv"):
        assert (tmp_path / "old" / name).read_bytes() != (tmp_path / "new" / name).read_bytes()


def test_a_changed_fit_changes_page_curves_and_terminal(small, tmp_path):
    table, fit, run = small
    fit["fits"][1]["parameters"]["gamma_D"] = {"value": 0.6125, "low": 0.6, "high": 0.7}
    write(tmp_path, table, fit, run)
    assert "gamma_D = 0.613 [0.6 to 0.7]" in (tmp_path / "report.md").read_text()
    assert "gamma_D = 0.613 [0.6 to 0.7]" in printed(table, fit, run)
    points = pd.read_csv(tmp_path / "figures/delta_vs_ratio.csv")
    curve = points[(points["kind"] == "fit") & (points["bits"] == 2)]
    slope = np.diff(np.log(curve["delta"])) / np.diff(np.log(curve["tokens"]))
    np.testing.assert_allclose(slope, 0.6125, rtol=1e-9)


@pytest.mark.drawn("png", "pdf")
def test_the_same_numbers_give_the_same_bytes(small, tmp_path):
    for folder in ("one", "two"):
        write(tmp_path / folder, *small)
    for name in FILES:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes(), name


def test_figures_hold_what_was_measured(out, written, table):
    measured = table[table["quantizer"] != "none"]
    ratio = pd.read_csv(out / "figures/delta_vs_ratio.csv")
    points = ratio[ratio["kind"] == "measured"]
    assert len(points) == len(measured)
    noise = points["delta"].abs() <= np.hypot(errors_needed(32), 1) * points["delta_se"]  # the floor is one error
    assert 0 < noise.sum() < len(points)
    assert (points["shown"] == np.where(noise, "noise", "clear")).all()
    assert points["delta"].sum() == pytest.approx(measured["delta"].sum(), rel=1e-12)
    tokens = pd.read_csv(out / "figures/loss_vs_tokens.csv", dtype={"bits": float})
    assert (tokens["kind"] == "after").sum() == len(measured)
    assert set(tokens.loc[tokens["kind"] == "before", "loss_se"]) == {0.02}  # loss_fp_se of every checkpoint
    assert tokens.loc[tokens["kind"] == "after", "loss_se"].sum() == pytest.approx(measured["delta_se"].sum())
    assert set(tokens["kind"]) == {"before", "after", "band", "ahead", "observed", "predicted", "unidentified"}


def test_fitted_curves_are_those_of_the_laws(out, written, fit):
    ratio = pd.read_csv(out / "figures/delta_vs_ratio.csv")
    theta = {k: v["value"] for k, v in fit["fits"][1]["parameters"].items()}
    curve = ratio[(ratio["kind"] == "fit") & (ratio["quantizer"] == "rtn")]
    exact = theta["C_T"] * curve["tokens"] ** theta["gamma_D"] / curve["params"] ** theta["gamma_N"]
    np.testing.assert_allclose(curve["delta"], exact * np.exp(-curve["bits"] / theta["gamma_post"]), rtol=1e-12)


def test_the_page_says_first_where_more_data_harms(out, written, fit):
    text = (out / "report.md").read_text()
    assert text.index("## The answer") < text.index("## Warnings") < text.index("## Figures")
    assert (
        "**gptq, 2 bits.** Harmful beyond D = 10.4M tokens (D/N = 130), observed inside the range. Interval of the "
        "turn: 6.24M"
    ) in text
    assert "**gptq, 4 bits.** Predicted at 8.52× the largest D seen, D = 218M tokens (D/N = 2,730)." in text
    assert "Interval of the prediction: 136M to 414M." in text
    assert "**gptq, 8 bits.** Not identifiable: the fits point to 4,378× the largest D seen, too far" in text
    for heading in ("What was quantized", "Excluded, failed", "GPTQ numerics", "What these numbers do not show"):
        assert f"## {heading}" in text
    for words in (
        *fit["warnings"],
        "99.4 % of N, 60.0 % of all parameters",
        "standard library of Python 3.11",
        "0123abcd",
    ):
        assert words in text


def test_the_terminal_shows_deltas_fits_verdicts_and_warnings_at_any_width(table, fit, run):
    for width in (60, 80, 100, 200):
        lines = printed(table, fit, run, width)
        assert "…" not in lines
        assert max(map(len, lines.splitlines())) <= width
        text = " ".join(lines.split())
        for words in ("0.04418(93)", "gamma_post = 0.72", "Harmful beyond D = 10.4M tokens", *fit["warnings"]):
            assert words in text


@pytest.mark.parametrize("method", ["gptq", "awq"])
def test_a_method_worse_than_rounding_is_named(table, fit, run, method):
    worse = table.copy()
    row = worse.index[(worse["quantizer"] == method) & (worse["bits"] == 4) & (worse["run"] == "large")][2]
    worse.loc[row, "delta"] = 0.5
    section = page.document(Study(worse, fit, run)).split("## Where a method did")[1].split("## ")[0]
    [named] = [line for line in section.splitlines() if f"| {method} | large@{worse.loc[row, 'step']} | 4 |" in line]
    assert "| 0.500" in named


def test_methods_that_are_nowhere_worse_and_tables_without_rounding_say_so(table, fit, run):
    fine = table.copy()
    fine.loc[fine["quantizer"].isin(["gptq", "awq"]), "delta"] = -1.0
    for rows, words in ((fine, "None of awq, gptq is worse"), (fine[fine["quantizer"] != "rtn"], "No measurement of")):
        assert words in page.document(Study(rows, fit, run)).split("## Where a method did")[1].split("## ")[0]


def test_failures_and_exclusions_are_named_with_their_reasons(table, fit, run):
    odd = table.copy()
    first = odd["quantizer"] == "awq"
    odd.loc[first & (odd["step"] == 195), ["delta", "loss_q", "status", "message"]] = [
        np.nan,
        np.nan,
        "failed",
        "a | b",
    ]
    odd.loc[first & (odd["step"] == 312), ["status", "message"]] = ["partial", "layer 3 left in full precision"]
    excluded = {"run": "small", "step": 13_000, "tokens": 26e6, "status": "excluded", "message": "NaN weights"}
    odd = pd.concat([odd, pd.DataFrame([excluded])], ignore_index=True)
    study = Study(odd, fit, run)
    text, tex = page.document(study), latex.document(study)
    assert "| small@195 | awq, 2 bits | failed | a \\| b |" in text
    assert "| small@13000 | none | excluded | NaN weights |" in text
    assert "layer 3 left in full precision" in text
    assert "0.1032(16)* |" in text
    assert "1032(16)$^{*}$" in tex
    assert "failed: small@195, awq 2 bits: a | b" in printed(odd, fit, run)
    assert "excluded" in printed(odd, fit, run)


def test_configurations_of_one_quantizer_get_names_of_their_own(table):
    rows = table[table["quantizer"].isin(["none", "rtn"])].head(6).copy()
    assert set(labels(rows)) == {"none", "rtn"}
    other = rows.copy()
    other["group_size"] = np.nan
    both = pd.concat([rows, other], ignore_index=True)
    assert set(labels(both)) == {"none", "rtn g16", "rtn per row"}


def test_a_report_on_what_the_laws_return(tmp_path):
    table = make_table(ratios=(5, 20, 50, 100, 200, 300, 500), quantizers=("rtn", "gptq"), bits=(2, 3, 8))
    fit = analyse(table.to_dict("records"), {}, n_boot=10)
    write(tmp_path, table, fit, make_run(table))
    text = (tmp_path / "report.md").read_text()
    assert all(f"**{quantizer}, 2 bits.**" in text for quantizer in ("rtn", "gptq"))
    curves = pd.read_csv(tmp_path / "figures/loss_vs_tokens.csv")
    bands = curves[curves["kind"] == "band"].groupby(["run", "quantizer"])["bits"].unique()
    assert len(bands) == 2 * 2
    assert all(8 not in bits for bits in bands)


def test_the_inputs_stay_as_they_were(small, tmp_path):
    table, fit, run = small
    before, fit_before = table.copy(), json.dumps(fit)
    write(tmp_path, table, fit, run)
    assert_frame_equal(table, before)
    assert json.dumps(fit) == fit_before


def test_a_table_without_rows_and_a_folder_that_is_a_file_are_plain_errors(table, fit, run, tmp_path):
    with pytest.raises(NothingToFitError):
        write(tmp_path, table.head(0), fit, run)
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputFullError):
        write(tmp_path / "file", table, fit, run)


@pytest.mark.slow
def test_the_report_imports_no_torch_and_leaves_matplotlib_alone(tmp_path):
    code = """
import sys, pathlib, matplotlib
sys.path.insert(0, sys.argv[1])
from tests.report.synthetic import make_fit, make_run, make_table
from ptq_eval.report import render, write
settings = lambda: {name: matplotlib.rcParams[name] for name in matplotlib.rcParams if name != "backend"}
before = settings()
table = make_table(runs=("small",), ratios=(20, 50), quantizers=("rtn",))
write(pathlib.Path(sys.argv[2]), table, make_fit(table), make_run(table))
assert settings() == before
assert not {"torch", "transformers", "matplotlib.pyplot"} & set(sys.modules), "imported"
"""
    folder = str(Path(__file__).parents[2])
    subprocess.run([sys.executable, "-c", code, folder, str(tmp_path)], check=True, timeout=120)


def test_the_fit_alone_can_be_shown_and_written(small, tmp_path):
    table, fit, run = small
    console = Console(file=io.StringIO(), width=100)
    console.print(render_fit(table, fit, run))
    text = console.file.getvalue()
    assert "gamma_post" in text
    assert "loss before" not in text
    [path] = write_fit(tmp_path, fit)
    assert json.loads(path.read_text()) == fit
