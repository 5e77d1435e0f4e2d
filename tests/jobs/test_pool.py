"""Contract and recovery: jobs in several processes give the records of one, whatever happens to a process."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import ptq_eval
from ptq_eval.checkpoints import discover, verify_all
from ptq_eval.config.run import RunConfig
from ptq_eval.errors import MeasurementFailedError, OptionError, OutputFullError, PtqEvalError
from ptq_eval.jobs import grid, pool
from ptq_eval.jobs.files import error_from_dict, error_to_dict, read_job, write_job
from ptq_eval.jobs.job import Conditions, Job
from ptq_eval.measure.trials import make_plan
from ptq_eval.results.store import Store
from tests.support.numbers import COMPARED, numbers
from tests.support.processes import environ
from tests.support.steps import PER_CHECKPOINT


def children():
    """Numbers of this process's children that measure jobs."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            state = (folder / "stat").read_text().rpartition(")")[2].split()
            if int(state[1]) == os.getpid() and b"work" in (folder / "cmdline").read_bytes().split(b"\0"):
                found.append(int(folder.name))
        except (OSError, IndexError):
            continue
    return found


class Killer:
    """A progress function that kills a process at each of these shares of the work."""

    def __init__(self, *shares):
        self.left, self.killed = list(shares), 0

    def __call__(self, what, done, total):
        if what.startswith("measuring") and self.left and done > self.left[0] * total and (alive := children()):
            self.left.pop(0)
            os.kill(alive[0], signal.SIGKILL)
            self.killed += 1


@pytest.fixture(scope="module")
def alone(trajectory, small, tmp_path_factory):
    out = tmp_path_factory.mktemp("alone") / "out"
    ptq_eval.run(trajectory, out, write_report=False, **small)
    return numbers(out)


@pytest.fixture
def started(monkeypatch):
    """The numbers of the processes that were started."""
    count, start = [], pool.Pool._start

    def noted(self, number):
        count.append(number)
        return start(self, number)

    monkeypatch.setattr(pool.Pool, "_start", noted)
    return count


@pytest.mark.slow
def test_processes_begin_while_the_jobs_are_planned_and_give_the_records_of_one(
    trajectory, small, alone, tmp_path, monkeypatch, started
):
    """With fewer checkpoints than processes (2 for 3 of them), those that have more cores take their place."""
    out, planned, make_plan = tmp_path / "out", [], grid.make_plan

    def plan(*arguments, **more):
        planned.append(len(children()))
        return make_plan(*arguments, **more)

    monkeypatch.setattr(grid, "make_plan", plan)
    options = {**small, "jobs": 3, "exclude": (400,), "write_report": False}
    assert ptq_eval.run(trajectory, out, **options).problems == ()
    assert (planned, len(started)) == ([3], 3 + 2)
    assert len(list((out / "records").glob("*-job-*.jsonl"))) == 2
    found = numbers(out)
    assert len(found) == PER_CHECKPOINT * 2
    assert found == {key: alone[key] for key in found}
    ptq_eval.run(trajectory, out, **options)  # all is stored
    assert (planned, len(started)) == ([3, 0], 3 + 2)
    assert children() == []


@pytest.mark.slow
def test_a_request_that_is_refused_leaves_no_process_and_no_file(trajectory, small, tmp_path):
    with pytest.raises(PtqEvalError, match=r"none\.txt"):
        ptq_eval.run(trajectory, tmp_path / "out", jobs=2, **{**small, "eval_text": str(tmp_path / "none.txt")})
    assert children() == []
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_recovery_from_processes_that_are_killed(trajectory, small, alone, tmp_path, started):
    """Those that began ahead, with more jobs than processes, and those that replace them."""
    killer = Killer(0.05, 0.6)
    result = ptq_eval.run(trajectory, tmp_path / "out", write_report=False, jobs=2, progress=killer, **small)
    assert killer.killed == 2
    assert len(started) <= 2 + 2
    assert result.problems == ()
    assert numbers(tmp_path / "out") == alone


@pytest.mark.slow
def test_a_checkpoint_whose_processes_all_die_is_failed_and_the_others_are_measured(
    trajectory, small, alone, tmp_path, monkeypatch
):
    give = pool.Pool._give

    def deadly(self, process):
        give(self, process)
        if process.job is not None and process.job.name == "0001.json":
            process.handle.kill()

    monkeypatch.setattr(pool.Pool, "_give", deadly)
    result = ptq_eval.run(trajectory, tmp_path / "out", write_report=False, jobs=2, **small)
    (problem,) = result.problems
    assert isinstance(problem, MeasurementFailedError)
    assert "2 processes that measured a checkpoint died | got exit code -9" in str(problem)
    failed = result.table[result.table["status"] == "failed"]
    assert set(failed["step"]) == {200}
    monkeypatch.undo()
    again = ptq_eval.run(trajectory, tmp_path / "out", write_report=False, **small)
    assert again.problems == ()
    good = {m.trial.key(): tuple(getattr(m, n) for n in COMPARED) for m in Store(tmp_path / "out").measurements()}
    assert good == alone


@pytest.mark.slow
def test_processes_end_with_a_driver_that_is_killed(trajectory, small, tmp_path):
    options = {**small, "eval_windows": 400, "seq_len": 16}
    code = f"import ptq_eval; ptq_eval.run({str(trajectory)!r}, {str(tmp_path / 'out')!r}, jobs=2, **{options!r})"
    driver = subprocess.Popen([sys.executable, "-c", code], env=environ())
    records, deadline = tmp_path / "out" / "records", time.monotonic() + 120
    while not list(records.glob("*-job-*.jsonl")) and time.monotonic() < deadline:
        time.sleep(0.05)
    driver.kill()
    driver.wait()
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        time.sleep(0.2)
        commands = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if path.exists()]
        if not [command for command in commands if str(tmp_path).encode() in command]:
            return
    pytest.fail("a process outlived its driver")


@pytest.fixture
def job(trajectory, small):
    plan = make_plan(verify_all(discover([trajectory])), RunConfig.of(small))
    work = plan.workloads[0]
    return Job(work, work.trials[1:])


def test_a_job_is_read_back_as_it_was_written(job, tmp_path):
    conditions = Conditions("cpu", 10**9, False, 60, None)
    found, under = read_job(write_job(tmp_path, 3, job, conditions))
    assert under == conditions
    assert found.missing == job.missing
    assert (found.work.checkpoint, found.work.trials) == (job.work.checkpoint, job.work.trials)
    assert found.work.folder == job.work.folder.resolve()
    assert job.work.calibration is not None
    assert found.work.calibration is not None
    for mine, theirs in ((job.work.evaluation, found.work.evaluation), (job.work.calibration, found.work.calibration)):
        assert np.array_equal(mine.ids, theirs.ids)
        assert mine.n_bytes is not None
        assert theirs.n_bytes is not None
        assert np.array_equal(mine.n_bytes, theirs.n_bytes)
        assert not theirs.ids.flags.writeable
        arrays = dict.fromkeys(("ids", "n_bytes"))
        assert {**vars(mine), **arrays} == {**vars(theirs), **arrays}
    assert list(found.work.drawn) == list(job.work.drawn)
    write_job(tmp_path, 4, job, conditions)
    assert len(list(tmp_path.glob("*.npz"))) == 2


@pytest.mark.parametrize(
    "error",
    [OutputFullError("full", got=Path("here"), remedy="free some"), PtqEvalError("odd"), OptionError("no", got=3)],
)
def test_an_error_crosses_to_another_process(error):
    found = error_from_dict(error_to_dict(error))
    assert (type(found), str(found)) == (type(error), str(error))


_NOISY = """
import os, sys, types
without_torch = types.ModuleType("jobs")
for name in ("process", "files"):
    sys.modules[f"ptq_eval.jobs.{name}"] = without_torch
def work(files, out, shard, name, say):
    print("noise")
    os.system("echo noise")
    say({"done": list(files)})
without_torch.work, without_torch.error_from_dict = work, None
from ptq_eval.cli.work import work
work(["out", "1/1", "job-1"])
"""


def test_what_a_plug_in_prints_does_not_come_between_the_answers():
    done = subprocess.run(
        [sys.executable, "-c", _NOISY], input="a\nb\n", capture_output=True, text=True, env=environ(), check=True
    )
    assert done.stdout == '{"done": ["a", "b"]}\n'
    assert done.stderr.split() == ["noise", "noise"]


def test_the_end_of_a_process_is_heard_of_after_half_an_answer(tmp_path):
    code = """print('{"tick": 1}'); print('{"do', end="")"""
    handle = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    started = pool._Process(0, handle, tmp_path / "log")
    mine = pool.Pool(Store(tmp_path), 1, "cpu")
    mine._listen(started)
    assert [mine._answers.get_nowait()[1] for _ in range(2)] == [{"tick": 1}, None]


@pytest.mark.parametrize(
    ("device", "count", "limit", "expected"),
    [
        ("cpu", 4, None, 300), ("cpu", 4, 500, 500), ("cuda", 2, None, None), ("cuda", 3, None, 600),
        ("cuda:1", 2, None, 600),
    ],
)  # fmt: skip
def test_processes_share_the_memory_of_a_device(monkeypatch, device, count, limit, expected):
    monkeypatch.setattr(pool, "_gpus", lambda: ["0", "1"])
    monkeypatch.setattr(pool.Budget, "of", lambda *_: pool.Budget(1200.0))
    assert pool._shared(Conditions(device, limit), count).memory == expected
