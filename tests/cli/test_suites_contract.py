"""Contract of `ptq-eval suites` and of `run suite:NAME`: what is listed, what is fetched, what is said in one line."""

import json
import os
import subprocess
import sys

import pytest

from ptq_eval.checkpoints.suites import SUITES

MODEL = "EleutherAI/pythia-70m"


@pytest.fixture
def pythia(hub, revisions):
    for name, folder in revisions.items():
        hub.add(MODEL, name, folder)
    return hub


def test_every_suite_is_listed(ptq_eval):
    rows = [json.loads(line) for line in ptq_eval("suites", "--json").out.splitlines()]
    assert [row["suite"] for row in rows] == [suite.name for suite in SUITES]
    by_name = {row["suite"]: row for row in rows}
    pythia = by_name["Pythia"]
    assert (pythia["status"], pythia["rule"]) == ("verified", "step × batch")
    assert (pythia["sizes"][0], pythia["sizes"][-1]) == (14_000_000, 12_000_000_000)
    assert pythia["tokens"] == [2_097_152, 299_892_736_000]
    assert [round(ratio) for ratio in pythia["last_tokens_per_param"]] == [25, 21_421]
    assert by_name["K2-65B"]["rule"] == "asked for"
    listing = ptq_eval("suites").out
    assert "suite:pythia-14m" in listing
    assert "cosine" in listing


def test_the_choice_for_a_model_with_its_size(ptq_eval, pythia, revisions):
    answer = ptq_eval("suites", "pythia-70m", "--checkpoints", "3", "--json")
    rows = [json.loads(line) for line in answer.out.splitlines()]
    assert [row["revision"] for row in rows] == ["step1", "step64", "step1000"]
    assert rows[1]["tokens"] == 64 * 2_097_152
    assert rows[1]["bytes"] == sum(path.stat().st_size for path in revisions["step64"].iterdir())
    text = ptq_eval("suites", "pythia-70m", "--checkpoints", "3").out
    assert "To fetch:" in text
    assert "step64" in text
    assert pythia.fetched() == []
    assert len(ptq_eval("suites", "pythia-70m", "--json").out.splitlines()) == 6


def test_offline_a_size_is_unknown(ptq_eval, pythia, revisions, monkeypatch):
    import shutil

    from huggingface_hub import constants

    folder = pythia.cache / "models--EleutherAI--pythia-70m"
    for place, name in enumerate(("step1", "step8", "step64")):
        shutil.copytree(revisions[name], folder / "snapshots" / (str(place) * 40))
        (folder / "refs").mkdir(exist_ok=True)
        (folder / "refs" / name).write_text(str(place) * 40)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    answer = ptq_eval("suites", "pythia-70m", "--checkpoints", "2")
    assert "To fetch: unknown" in answer.out
    assert answer.code == 0


def test_what_is_wrong_is_one_line(ptq_eval, pythia, quick, tmp_path):
    ptq_eval("suites", "pythia-70n").refuses(11, "'pythia-70n'", "did you mean 'pythia-70m'?")
    ptq_eval("run", "suite:pythia-75m", *quick).refuses(58, "pythia-75m", "no such repository")
    ptq_eval("suites", "pythia-70m", "--checkpoints", "1").refuses(2, "--checkpoints is too small")
    ptq_eval("suites", "--checkpoints", "4").refuses(2, "no NAME", "ptq-eval suites pythia-70m --checkpoints 4")
    pythia.gated.add(MODEL)
    ptq_eval("run", "suite:pythia-70m", "--checkpoints", "2", *quick).refuses(12, "gated", "hf auth login")


@pytest.mark.slow
def test_one_command_from_the_hub_to_the_report(pythia, small, tmp_path):
    """As a user types it: the hub is known from the environment alone."""
    options = [
        *("--quantizers", "rtn", "--bits", "4", "--group-size", "16", "--seq-len", "32", "--eval-windows", "8"),
        *(
            "--eval-text",
            small["eval_text"],
            "--calib-text",
            small["calib_text"],
            "--bootstrap",
            "10",
            "--device",
            "cpu",
        ),
    ]
    command = [sys.executable, "-m", "ptq_eval", "run", "suite:pythia-70m", "--checkpoints", "3", "--prune", *options]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1", **pythia.environment},
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "pythia-70m-ptq" / "report.html").is_file()
    assert len(pythia.fetched()) == 3
    assert not list((tmp_path / "hf" / "hub").glob("models--*/blobs/*"))
