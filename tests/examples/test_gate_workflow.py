"""Contract: the action and the workflow to copy do what they say: their steps are run by bash, as a runner would."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from benchmarks import ci
from benchmarks.ci import ROOT, gate, plan
from tests.results.gate.support import grid, moved, write

ACTION = yaml.safe_load((ROOT / "action.yml").read_text("utf-8"))
WORKFLOW = yaml.safe_load((ROOT / "examples" / "quantization-gate.yml").read_text("utf-8"))
STEPS = WORKFLOW["jobs"]["gate"]["steps"]
EXPRESSION = re.compile(r"\$\{\{ (.+?) \}\}")
RUN = """
import pathlib, sys
from ptq_eval.cli.main import cli
from tests.results.gate.support import grid, write
asked = cli.commands["run"].make_context("run", sys.argv[2:]).params
assert all(list(pathlib.Path(folder).glob("checkpoint-*")) for folder in asked["folders"])
write(pathlib.Path(asked["out"]), grid(steps=(100,), quantizers=asked["quantizers"], bits=asked["bits"]))
"""
"""`ptq-eval run` with made-up losses: that measuring works is the subject of many other tests."""


@pytest.fixture
def runner(tmp_path, monkeypatch):
    """A folder to run steps in, with `ptq-eval` on the path, whose `run` is `RUN`, and a `pip` that only notes what it
    should install."""
    tools = tmp_path / "tools"
    tools.mkdir()
    (tmp_path / "run.py").write_text(RUN)
    (tools / "ptq-eval").write_text(
        f'#!/bin/bash\n[ "$1" = run ] && exec "{sys.executable}" "{tmp_path}/run.py" "$@"\n'
        f'exec "{sys.executable}" -m ptq_eval "$@"\n'
    )
    (tools / "pip").write_text(f'#!/bin/bash\necho "$@" >> "{tmp_path}/installed"\n')
    for tool in tools.iterdir():
        tool.chmod(0o755)
    for name in ("GITHUB_STEP_SUMMARY", "GITHUB_OUTPUT"):
        monkeypatch.setenv(name, str(tmp_path / name))
    monkeypatch.setenv("PATH", f"{tools}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    (tmp_path / "work").mkdir()
    return tmp_path / "work"


def bash(step, folder, **env):
    """Run one step as a runner does: `bash -e`, with its variables."""
    command = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]]
    done = subprocess.run(command, cwd=folder, env={**os.environ, **env}, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


def act(folder, **given):
    """Run the action with these inputs: the last exit code and what was said."""
    inputs = {name: about.get("default") for name, about in ACTION["inputs"].items()} | given
    needed = {name for name, about in ACTION["inputs"].items() if about.get("required")}
    assert needed <= given.keys() <= inputs.keys()

    def filled(text):
        return EXPRESSION.sub(lambda match: inputs[match[1].removeprefix("inputs.")], text)

    for step in ACTION["runs"]["steps"]:
        assert step["shell"] == "bash"
        assert "${{" not in step["run"]  # what a user writes must not become code
        env = {name: filled(value) for name, value in step.get("env", {}).items()}
        code, said = bash(step, folder, GITHUB_ACTION_PATH=str(ROOT), **env)
        if code:
            break
    return code, said


def files(folder):
    return folder / ACTION["inputs"]["files"]["default"]


def test_the_action_stops_what_is_worse_and_leaves_its_files(runner):
    write(runner / "base-out", grid(steps=(100,)))
    write(runner / "new out", moved(grid(steps=(100,)), 0.03, quantizer="gptq", bits=3))
    code, said = act(runner, base="base-out", new="new out")
    assert code == 1, said
    assert Path(os.environ["GITHUB_OUTPUT"]).read_text() == "exit-code=1\n"
    assert "Worse: tiny@100 gptq 3 bits" in Path(os.environ["GITHUB_STEP_SUMMARY"]).read_text()
    assert {path.name for path in files(runner).iterdir()} == {"gate.xml", "gate.json", "losses.json"}
    code, said = act(runner, base="base-out", new="new out", tolerance="0.05")
    assert code == 0, said


def test_the_action_lets_other_errors_through(runner):
    code, said = act(runner, base="nowhere", new="nowhere")
    assert code == 10
    assert "no such folder of results" in said


def test_the_outputs_of_the_action_are_those_of_its_steps():
    for about in ACTION["outputs"].values():
        step, name = re.fullmatch(r"\$\{\{ steps\.(\w+)\.outputs\.([\w-]+) \}\}", about["value"]).groups()
        [own] = [s for s in ACTION["runs"]["steps"] if s.get("id") == step]
        assert f'echo "{name}=' in own["run"]


@pytest.fixture
def project(runner):
    """A git repository with checkpoints and a target branch, as the workflow expects one."""
    folder = runner / WORKFLOW["env"]["CHECKPOINTS"] / "checkpoint-100"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    for command in (["init", "-q", "-b", "main"], ["add", "-A"], ["commit", "-qm", "before"]):
        subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b", *command], cwd=runner, check=True)
    return runner


@pytest.mark.slow
def test_the_steps_of_the_workflow_measure_twice_and_compare(project):
    env = {**WORKFLOW["env"], "OLD": "main", "GRID": "--quantizers rtn --bits 4"}
    uses = [step["uses"].split("@")[0] for step in STEPS if "uses" in step]
    assert uses == ["actions/checkout", "actions/setup-python", "actions/upload-artifact"]  # nothing to fill in
    for step in STEPS:
        if "run" in step:
            code, said = bash(step, project, **env)
            assert code == 0, said
        elif "upload" in step["uses"]:
            assert (project / step["with"]["path"] / "gate.xml").exists()
    assert (project.parent / "installed").read_text() == "install ptq-eval ./old-code\ninstall .\n"
    assert json.loads((files(project) / "gate.json").read_text())["verdict"] == "not_worse"
    assert "all 1 cell has the same loss" in Path(os.environ["GITHUB_STEP_SUMMARY"]).read_text()


def test_the_workflow_names_options_that_exist():
    from ptq_eval.cli.main import cli

    context = cli.commands["run"].make_context("run", ["x", *WORKFLOW["env"]["GRID"].split()])
    assert context.params["quantizers"] == ("gptq", "awq")


@pytest.mark.slow
def test_our_own_gate_measures_both_codes(tmp_path, monkeypatch):
    """With losses that each code makes up; `make gate` measures."""
    asked = plan()
    assert all(Path(folder).is_dir() for folder in asked["run"]["folders"])
    asked["run"] |= {"quantizers": ["rtn"], "bits": [4]}
    assert shutil.which("git")
    before, measuring, _ = ci._MEASURE.partition("ptq_eval.run(")
    assert measuring
    made_up = """
from tests.results.gate.support import grid, write
write(pathlib.Path(sys.argv[1]), grid(steps=(100,), quantizers=options["quantizers"], bits=options["bits"]))
"""
    monkeypatch.setattr(ci, "_MEASURE", before + made_up)
    assert gate("HEAD", ["--json", str(tmp_path / "gate.json")], asked) == 0
    found = json.loads((tmp_path / "gate.json").read_text())
    assert [cell["outcome"] for cell in found["cells"]] == ["same"]
