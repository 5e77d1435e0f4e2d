"""Contract of `run --tasks`: one command from questions to a table, a report and files that lm-eval's readers take."""

import json

import pandas as pd
import pytest

import ptq_eval as package
from ptq_eval.results.store import Store
from tests.support import tasks

COUNT = 16


@pytest.fixture(scope="module")
def folder(source, tmp_path_factory):
    return tasks.write(tmp_path_factory.mktemp("tasks"), tasks.documents(source, COUNT))


@pytest.fixture
def arguments(saved, texts, folder, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    text = ("--eval-text", texts.evaluation, "--calib-text", texts.calibration)
    size = ("--seq-len", "32", "--eval-windows", "12", "--calib-windows", "4", "--group-size", "16")
    common = ("run", str(saved("llama").parent), "-o", str(tmp_path / "out"), *text, *size, "--bootstrap", "10")
    grid = ("--quantizers", "rtn", "--bits", "3", "--device", "cpu")
    return [*common, *grid], ["--tasks", tasks.NAME, "--task-folder", str(folder)]


def test_tasks_are_added_to_a_finished_folder(ptq_eval, arguments, tmp_path):
    command, asked = arguments
    out = tmp_path / "out"
    assert ptq_eval(*command).code == 0
    assert not (out / "tasks.csv").exists()
    before = {m.trial.key(): m for m in Store(out).measurements()}
    answer = ptq_eval(*command, *asked)
    assert answer.code == 0, answer.err
    after = {m.trial.key(): m for m in Store(out).measurements()}
    assert all(after[key] == m for key, m in before.items())
    table = pd.read_csv(out / "tasks.csv")
    assert set(table["status"]) == {"ok"}, table["message"].iloc[0]
    assert len(table) == 2 * 2  # full precision and rtn, acc and acc_norm
    assert set(table["documents"]) == {COUNT}
    compared = table[table["quantizer"] == "rtn"]
    assert (compared["change"] - (compared["score_q"] - compared["score_fp"])).abs().max() < 1e-12
    assert set(compared["loss_key"]) < set(pd.read_csv(out / "degradation.csv")["key"])
    report = (out / "report.md").read_text(encoding="utf-8")
    assert "## Tasks" in report
    assert "next_line, acc,none" in report

    package.dataset(out, tmp_path / "data")
    (model,) = (tmp_path / "data" / "lm-eval").glob("*@100-rtn-3bits-next_line-*")
    (results,) = (json.loads(path.read_text()) for path in model.glob("results_*.json"))
    row = compared[(compared["step"] == 100) & (compared["metric"] == "acc,none")].iloc[0]
    assert results["results"][tasks.NAME]["acc,none"] == pytest.approx(row["score_q"])
    (full,) = (tmp_path / "data" / "lm-eval").glob("*@100-weights_kept-next_line-*")
    cells = package.compare(full, model).cells
    (cell,) = [one for one in cells if one.pair.about["metric"] == "acc"]
    assert cell.pair.evidence.worsening == pytest.approx(-row["change"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changed", "code", "words"),
    [
        (("--task-folder", "/nowhere/at/all"), 59, "not a folder"),
        (("--task-limit", "0"), 2, "--task-limit"),
    ],
)
def test_what_cannot_be_asked_is_one_line(ptq_eval, arguments, changed, code, words):
    answer = ptq_eval(*arguments[0], *arguments[1], *changed)
    assert answer.code == code
    assert words in answer.err
    assert len(answer.err.strip().splitlines()) == 1
