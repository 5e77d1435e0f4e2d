"""Contract and recovery against a real SLURM (make cluster-test): tasks give the records of one process."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

import ptq_eval
from ptq_eval.errors import ClusterError, OutputMismatchError
from ptq_eval.jobs.submit import retry, submit
from tests.support import slurm
from tests.support.numbers import numbers, working

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    assert slurm.installed(), "make cluster-test installs SLURM"
    with slurm.cluster(tmp_path_factory.mktemp("slurm")) as environment:
        yield environment


@pytest.fixture(autouse=True)
def here(environment, monkeypatch):
    monkeypatch.setenv("SLURM_CONF", environment["SLURM_CONF"])
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="module")
def alone(trajectory, small, tmp_path_factory):
    out = tmp_path_factory.mktemp("alone") / "out"
    ptq_eval.run(trajectory, out, write_report=False, **small)
    return numbers(out)


def test_an_array_gives_the_records_of_one_process_and_a_report(trajectory, small, alone, tmp_path, environment):
    out = tmp_path / "my out"
    found = submit(trajectory, out, cpus=1, time="10", array_limit=1, **small)
    assert (found.count, found.problems) == (3, ())
    assert found.folder == out / "slurm" / "1"
    assert json.loads((found.folder / "submission.json").read_text())["job"] == found.job
    with pytest.raises(OutputMismatchError, match=r"queued or running \| got [123] of ptq-eval-my-out-.*scancel"):
        submit(trajectory, out, **small)
    with pytest.raises(OutputMismatchError, match="queued or running"):
        ptq_eval.run(trajectory, out, **small)
    assert retry(out).count == 0
    slurm.wait_until_empty(environment)
    assert numbers(out) == alone
    assert len(list((out / "records").glob("*-slurm-1-*.jsonl"))) == 3
    assert (out / "report.md").is_file(), (found.folder / "report.log").read_text()
    assert retry(out).count == 0
    assert submit(trajectory, out, **small).count == 0


def test_recovery_of_what_was_cancelled_or_killed(trajectory, small, alone, tmp_path, environment):
    """Of three tasks one is killed as the kernel would when memory runs out, one is cancelled before it starts."""
    found = submit(trajectory, tmp_path / "out", array_limit=1, **small)
    subprocess.run(["scancel", f"{found.job}_2"], env=environment, check=True)
    victim = _measuring(tmp_path / "out")
    os.kill(victim, signal.SIGKILL)
    slurm.wait_until_empty(environment)
    assert numbers(tmp_path / "out").items() < alone.items()
    again = retry(tmp_path / "out", mem="500M")
    assert 1 <= again.count <= 2
    assert "#SBATCH --mem=500M" in (again.folder / "measure.sh").read_text()
    slurm.wait_until_empty(environment)
    assert numbers(tmp_path / "out") == alone
    assert retry(tmp_path / "out").count == 0


def test_a_task_that_is_requeued_goes_on_in_its_own_file(trajectory, small, alone, tmp_path, environment):
    found = submit(trajectory, tmp_path / "out", array_limit=1, **small)
    _measuring(tmp_path / "out")
    subprocess.run(["scontrol", "requeue", f"{found.job}_0"], env=environment, check=True)
    subprocess.run(["scontrol", "update", f"JobId={found.job}_0", "StartTime=now"], env=environment, check=True)
    slurm.wait_until_empty(environment)
    assert numbers(tmp_path / "out") == alone


def test_what_slurm_refuses_is_one_line_and_can_be_submitted_by_hand(trajectory, small, alone, tmp_path, environment):
    out = tmp_path / "out"
    with pytest.raises(ClusterError, match=r"refuses the job \| got .*artition.*remedy: .*sinfo.*measure.sh") as caught:
        submit(trajectory, out, partition="nowhere", **small)
    assert "\n" not in str(caught.value)
    script = out / "slurm" / "1" / "measure.sh"
    script.write_text(script.read_text().replace("--partition=nowhere", "--partition=debug"))
    subprocess.run(["sbatch", str(script)], env=environment, check=True, cwd=tmp_path)
    with pytest.raises(OutputMismatchError, match="queued or running"):  # recognised, though submitted by hand
        submit(trajectory, out, **small)
    slurm.wait_until_empty(environment)
    assert numbers(out) == alone


def test_this_slurm_has_no_accounting(environment):
    """What the tests above need not; else they would show less than they seem to."""
    done = subprocess.run(["sacct"], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode or "disabled" in done.stdout + done.stderr


def test_a_slurm_that_does_not_answer(trajectory, small, tmp_path, monkeypatch):
    conf = Path(os.environ["SLURM_CONF"])
    text = "".join(
        line.replace(line.partition("=")[2].strip(), "1") if line.startswith("SlurmctldPort") else line
        for line in conf.read_text().splitlines(keepends=True)
    )
    (tmp_path / "slurm.conf").write_text(text + "MessageTimeout=5\n")
    monkeypatch.setenv("SLURM_CONF", str(tmp_path / "slurm.conf"))
    with pytest.raises(ClusterError, match=r"SLURM refuses the job \| got .*remedy"):
        submit(trajectory, tmp_path / "out", **small)
    with pytest.raises(ClusterError, match=r"SLURM does not answer \| got .*remedy"):
        retry(tmp_path / "out")


def _measuring(out):
    """The number of a task's process once it measures into `out`."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if list(out.glob("records/*-slurm-*.jsonl")):
            for process in working(out):
                return process
        time.sleep(0.02)
    raise TimeoutError("no task measures")
