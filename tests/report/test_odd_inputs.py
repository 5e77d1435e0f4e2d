"""Contract, on inputs at the edge: few points, nothing measured, nothing fitted, negative and exploding deltas."""

from __future__ import annotations

import io

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from ptq_eval.report import render, write
from ptq_eval.report.common.data import Study
from ptq_eval.report.common.tables import grid
from ptq_eval.report.run import delta_figure
from ptq_eval.report.run.loss_figure import ceiling
from ptq_eval.report.run.loss_figure import data as loss_data
from tests.report.synthetic import make_fit, make_run, make_table

EMPTY = {"fits": [], "critical_tokens": [], "warnings": []}


def one_run():
    return make_table(runs=("small",), ratios=(20, 50, 100), quantizers=("gptq",), bits=(2, 8))


def one_checkpoint():
    return make_table(runs=("small",), ratios=(20,), quantizers=("rtn",))


def full_precision_only():
    table = one_run()
    return table[table["quantizer"] == "none"]


def no_full_precision_rows():
    table = one_run()
    return table[table["quantizer"] != "none"]


def all_failed():
    table = one_run().assign(status="failed", message="no memory")
    table[["loss_fp", "loss_q", "delta", "delta_se", "windows"]] = np.nan
    return table


def all_negative():
    table = one_run()
    return table.assign(delta=-table["delta"].abs(), delta_se=0.001)


def mixed_signs():
    table = one_run()
    return table.assign(delta=table["delta"] * np.where(np.arange(len(table)) % 2, 1, -1e-3), delta_se=2e-4)


def no_errors_known():
    return one_run().assign(delta_se=np.nan)


def no_tokens_known():
    return one_run().assign(tokens=None, params=None, tokens_per_param=None, step=None)


def each_run_one_checkpoint():
    table = make_table(ratios=(20, 50, 100), quantizers=("rtn",))
    return table.assign(run=table["run"] + "-" + table["tokens"].astype(str))


CASES = (
    one_run, one_checkpoint, full_precision_only, no_full_precision_rows, all_failed, all_negative, no_errors_known,
    no_tokens_known, each_run_one_checkpoint,
)  # fmt: skip


@pytest.mark.drawn("png")
@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_a_report_is_written_whole(case, tmp_path):
    table = case()
    paths = write(tmp_path, table, EMPTY, make_run(table))
    assert len(paths) == 11
    assert all(path.stat().st_size for path in paths)
    text = (tmp_path / "report.md").read_text()
    reason = "D is unknown for 3 measured checkpoints" if case is no_tokens_known else "the fit has no entry"
    assert f"Not identifiable: {reason}" in text
    assert "nan" not in text.lower().replace("finance", "")
    console = Console(file=io.StringIO(), width=120)
    console.print(render(table, EMPTY, {}))
    assert "loss before" in console.file.getvalue()


def test_checkpoints_whose_tokens_are_unknown_keep_their_rows(tmp_path):
    table = one_run().assign(tokens=None, tokens_per_param=None)
    study = Study(table, EMPTY, {})
    (run,) = study.runs
    rows = grid(study, run).rows
    assert [row[:3] for row in rows] == [[str(step), "–", "–"] for step in sorted(set(table["step"]))]
    assert not any("–" in row[3:] for row in rows)
    write(tmp_path, table, EMPTY, make_run(table))
    text = (tmp_path / "report.md").read_text()
    assert "3 checkpoints of 1 run" in text
    assert "D is unknown for 3 measured checkpoints" in text
    assert all(way in text for way in ("--tokens-per-step", "--tokens`", "trajectory.yaml"))


@pytest.mark.parametrize("case", [all_negative, no_errors_known, mixed_signs], ids=lambda case: case.__name__)
def test_every_delta_stands_at_its_value_inside_the_axes(case):
    study = Study(case(), EMPTY, {})
    axes = delta_figure.draw(delta_figure.data(study)).axes[0]
    low, high = axes.get_ylim()
    drawn = sorted(y for line in axes.lines if line.get_linestyle() == "None" for y in line.get_ydata())
    assert drawn == sorted(study.measured["delta"])
    assert low < drawn[0]
    assert drawn[-1] < high
    assert axes.get_yscale() == ("symlog" if drawn[0] <= 0 else "log")


def test_an_exploding_curve_does_not_flatten_the_others():
    table = make_table(runs=("small",), quantizers=("rtn",))
    wild = table["bits"] == 2
    table.loc[wild, "loss_q"] = 20.0
    panel = loss_data(Study(table, EMPTY, {}))
    bottom, top, above = ceiling(panel)
    assert above == [2.0]
    assert bottom < table["loss_fp"].min()
    assert top < 5.0
    table.loc[wild, "loss_q"] = table.loc[wild, "loss_fp"] + 2.0
    assert ceiling(loss_data(Study(table, EMPTY, {})))[2] == []


def test_runs_of_one_checkpoint_each_form_one_curve_per_size():
    study = Study(each_run_one_checkpoint(), EMPTY, {})
    assert len(study.runs) == 2
    curve = loss_data(study)
    assert set(curve[curve["kind"] == "before"].groupby("run").size()) == {3}


def test_a_far_prediction_is_named_and_a_near_one_drawn():
    table = make_table(runs=("small",), quantizers=("gptq",))
    fit = make_fit(table)
    for entry in fit["critical_tokens"]:
        entry["extrapolation_factor"] = {2: 0.5, 3: 2.0, 4: 50.0, 8: 500.0}[entry["bits"]]
    marks = loss_data(Study(table, fit, {})).set_index("kind")["bits"]
    assert {kind: marks[[kind]].tolist() for kind in ("observed", "predicted", "far", "unidentified")} == {
        "observed": [2.0], "predicted": [3.0], "far": [4.0], "unidentified": [8.0]
    }  # fmt: skip


@pytest.mark.parametrize(
    "change",
    [{"law": "no_such_law"}, {"status_kind": "not_identified", "reason": {"kind": "not_finite"}}, {"parameters": {}}],
    ids=str,
)
def test_a_fit_without_use_gives_points_without_a_curve(change, tmp_path):
    table = one_run()
    fit = make_fit(table)
    fit["fits"] = [{**entry, **change} for entry in fit["fits"]]
    write(tmp_path, table, fit, {})
    assert "fit" not in set(pd.read_csv(tmp_path / "figures/delta_vs_ratio.csv")["kind"])


def test_a_missing_column_is_named():
    with pytest.raises(KeyError, match="delta_se"):
        Study(one_run().drop(columns="delta_se"), EMPTY, {})
