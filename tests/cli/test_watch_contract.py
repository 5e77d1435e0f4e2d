"""Contract of `ptq-eval watch`: lines for people, JSON for programs, an alert command, a clean end."""

import json
import shutil
import signal
import sys
import time

import pytest

from ptq_eval.config.watch import END
from tests.cli.support import records, start


@pytest.fixture
def single(trajectory):
    """The run with its first checkpoint alone: each one that is measured costs a report."""
    for step in (200, 300):
        shutil.rmtree(trajectory / f"checkpoint-{step}")
    return trajectory


@pytest.mark.slow
def test_once_measures_what_is_there_and_says_so(ptq_eval, trajectory, quick, tmp_path):
    answer = ptq_eval("watch", trajectory, "-o", tmp_path / "out", *quick, "--once")
    assert (answer.code, answer.err) == (0, "")
    first, *_, last = answer.out.splitlines()
    assert first.startswith("tiny@300 (D/N = ")
    assert "δ rtn 4bit" in first
    assert last == "waiting; 3 checkpoints known"
    again = ptq_eval("watch", trajectory, "-o", tmp_path / "out", *quick, "--once", "--json")
    assert [json.loads(line)["event"] for line in again.out.splitlines()] == ["waiting"]
    assert ptq_eval("report", tmp_path / "out").code == 0


def test_the_alert_command_gets_the_sentence_and_the_fields(ptq_eval, single, quick, tmp_path, monkeypatch):
    from ptq_eval.jobs import watch
    from ptq_eval.laws.turning.alerts import Alert
    from ptq_eval.laws.turning.verdict import VerdictKind

    alert = Alert(VerdictKind.OBSERVED, "tiny", "rtn", 4.0, 1e4, 3e5, 1e5, 2e5, 3e5, 0.9)
    monkeypatch.setattr(watch, "alerts", lambda *_: [alert])
    script, heard = tmp_path / "say.py", tmp_path / "heard"
    script.write_text(f"import sys; open({str(heard)!r}, 'w').write(sys.argv[1] + '|' + sys.stdin.read())")
    command = f"{sys.executable} {script}"
    answer = ptq_eval("watch", single, "-o", tmp_path / "out", *quick, "--once", "--alert-command", command)
    assert answer.code == 0
    text, _, fields = heard.read_text().partition("|")
    assert f"ALERT {text}" in answer.out
    assert (json.loads(fields)["event"], json.loads(fields)["value"]) == ("alert", 2e5)
    failing = ptq_eval("watch", single, "-o", tmp_path / "new", *quick, "--once", "--alert-command", "false")
    assert failing.code == 0
    assert failing.err.startswith("ptq-eval: the alert command failed | got ")


@pytest.mark.slow
def test_ctrl_c_ends_a_watch_in_one_line(single, quick, tmp_path):
    process = start("watch", single, "-o", tmp_path / "out", *quick, "--settle", "0", "--every", "1")
    deadline = time.monotonic() + 300
    while len(records(tmp_path / "out")) < 2 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=300)
    assert (process.returncode, err.strip()) == (
        130,
        "ptq-eval: interrupted | what is done is kept; the same command goes on from there",
    )


def test_a_watch_that_is_told_so_ends_by_itself(ptq_eval, trajectory, quick, tmp_path):
    (trajectory / END).touch()
    answer = ptq_eval("watch", trajectory, "-o", tmp_path / "out", *quick, "--settle", "999", "--budget", "0.000001")
    assert answer.code == 0
    assert len(answer.out.splitlines()) == 4


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--budget", "5"], "--budget is too large | got 5 | allowed: above 0, at most 1"),
        (["--every", "never"], "--every"),
        (["--jobs", "2"], "No such option '--jobs'"),
        (["--pid", "0"], "--pid is too small"),
    ],
)
def test_wrong_options_are_one_line(ptq_eval, trajectory, quick, arguments, text):
    answer = ptq_eval("watch", trajectory, *quick, *arguments)
    assert answer.code == 2
    assert answer.err.startswith(f"ptq-eval: {text}")
    assert len(answer.err.splitlines()) == 1
