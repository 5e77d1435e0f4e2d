"""Contract: `ptq-eval compare`, its exit codes, its files and what it refuses."""

import json
import shutil
from pathlib import Path
from xml.etree import ElementTree

import pytest

from ptq_eval.cli.compare import USAGE
from tests.results.gate.support import grid, moved, write


@pytest.fixture
def results(tmp_path):
    """Folders by name: `old`, and others that differ from it."""
    made = {
        "old": grid(steps=(100,)),
        "worse": moved(grid(steps=(100,)), 0.03, quantizer="gptq", bits=3),
        "other": grid(steps=(100,), dtype="bfloat16"),
        "fewer": grid(steps=(100,), bits=(2, 3)),
        "far": grid(steps=(300,)),
    }
    return {name: write(tmp_path / name, found) for name, found in made.items()}


@pytest.mark.parametrize(
    ("new", "code", "said"),
    [
        ("old", 0, "Not worse: all 6 cells have the same loss"),
        ("worse", 1, "Worse: tiny@100 gptq 3 bits by 0.0300"),
        ("other", 2, "Not comparable: the data type differs: float32 in the old result, bfloat16 in the new one"),
        ("fewer", 3, "Missing measurements: 2 of 6 cells of the old result are not in the new one"),
        ("far", 3, "Missing measurements: no cell is in both results"),
    ],
)
def test_the_exit_code_is_the_verdict(ptq_eval, results, new, code, said):
    answer = ptq_eval("compare", results["old"], results[new])
    assert answer.code == code
    assert answer.err == ""
    assert said in " ".join(answer.out.split())


def test_errors_are_added_only_where_something_is_compared(ptq_eval, results, tmp_path):
    """A stored study whose records were not kept has no losses window by window."""
    embedded, words = Path(__file__).parents[2] / "results" / "embedded", "The errors of both δ were added instead"
    stored = shutil.copytree(embedded, tmp_path / "stored", ignore=shutil.ignore_patterns("records"))
    assert words not in " ".join(ptq_eval("compare", results["old"], stored).out.split())
    assert words in " ".join(ptq_eval("compare", stored, stored).out.split())


def test_a_tolerance_that_is_not_exceeded_lets_the_change_pass(ptq_eval, results):
    assert ptq_eval("compare", results["old"], results["worse"], "--tolerance", "0.05").code == 0


def test_files_are_written_for_machines_and_people(ptq_eval, results, tmp_path, monkeypatch):
    summary = tmp_path / "summary.md"
    summary.write_text("before\n")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    names = {
        flag: tmp_path / "deep" / flag.strip("-") for flag in ("--markdown", "--junit", "--benchmark-json", "--json")
    }
    flags = [part for flag, path in names.items() for part in (flag, path)]
    answer = ptq_eval("compare", results["old"], results["worse"], *flags, "--summary")
    assert answer.code == 1
    markdown = names["--markdown"].read_text()
    assert summary.read_text() == "before\n" + markdown
    assert "tiny@100 | gptq 3 bits" in markdown
    assert ElementTree.parse(names["--junit"]).getroot()[0].get("failures") == "1"
    assert len(json.loads(names["--benchmark-json"].read_text())) == 6
    assert json.loads(names["--json"].read_text())["verdict"] == "worse"
    assert all(str(path) in answer.out.replace("\n", "") for path in names.values())


def test_a_place_that_cannot_be_written_has_a_remedy_that_exists(ptq_eval, results, monkeypatch, tmp_path):
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "missing" / "summary.md"))
    answer = ptq_eval("compare", results["old"], results["old"], "--summary")
    assert answer.code == 22
    assert answer.err.endswith("remedy: choose another place for it\n")


def test_a_wrong_command_line_is_no_verdict(ptq_eval, results, monkeypatch):
    monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)
    old = results["old"]
    ptq_eval("compare", old).refuses(USAGE, "NEW")
    ptq_eval("compare", old, old, "--tolerance", "-1").refuses(USAGE, "--tolerance is too small", "0 to 100")
    ptq_eval("compare", old, old, "--tolerance", "much").refuses(USAGE, "--tolerance")
    ptq_eval("compare", old, old, "--judge", "me").refuses(USAGE, "model, method")
    ptq_eval("compare", old, old, "--summary").refuses(USAGE, "GITHUB_STEP_SUMMARY")


def test_what_holds_no_results_is_refused_in_one_line(ptq_eval, results, tmp_path):
    old = results["old"]
    (tmp_path / "empty").mkdir()
    ptq_eval("compare", old, tmp_path / "empty").refuses(25, "holds no results")
    ptq_eval("compare", tmp_path / "nowhere", old).refuses(10, "no such folder of results")
    ptq_eval("compare", "nowhere:results", old).refuses(55, "git")
    (old / "run.json").write_text("{")
    ptq_eval("compare", old, results["worse"]).refuses(21, "run.json")


def test_real_results_are_compared(ptq_eval, trajectory, quick, tmp_path):
    for out in ("a", "b"):
        assert ptq_eval("run", trajectory, *quick, "-o", tmp_path / out).code == 0
    answer = ptq_eval("compare", tmp_path / "a", tmp_path / "b")
    assert answer.code == 0, answer.out
    assert "all 3 cells have the same loss" in answer.out
