"""Contract of a watch: what appears is measured once it is complete, as by `run`; nothing ends it, and it goes on."""

import json
import os
import shutil
import subprocess
import sys

import pandas as pd
import pytest

import ptq_eval
import ptq_eval.errors
from ptq_eval.config.watch import END
from ptq_eval.errors import (
    EmptyFolderError,
    MeasurementFailedError,
    NoCheckpointError,
    OptionError,
    OutputFullError,
    TextSourceError,
)
from ptq_eval.jobs import grid, machine, spent
from ptq_eval.jobs import watch as watching
from ptq_eval.jobs.events import Delayed, Measured, Started, Unmeasured, Waiting
from ptq_eval.jobs.watch import watch
from ptq_eval.laws.turning.alerts import Alert
from ptq_eval.laws.turning.verdict import VerdictKind
from ptq_eval.results.store import Store, Writer

QUICK = {"every": 0.01, "settle": 0.0}
CSV = "degradation.csv"
STEPS = (100, 200, 400)


@pytest.fixture
def options(small, monkeypatch):
    """Those of a quick watch, whose report is a table alone: figures take most of the time, and one test has them."""

    def save(folder, result):
        result.table.to_csv(folder / CSV)
        (folder / "fit.json").write_text(json.dumps(result.fit, default=str))

    monkeypatch.setattr(watching, "save_report", save)
    return {**small, **QUICK, "quantizers": "rtn", "bits": 4}


@pytest.fixture
def run(tmp_path):
    return tmp_path / "live" / "small"


def save(trajectory, run, step):
    shutil.copytree(trajectory / f"checkpoint-{step}", run / f"checkpoint-{step}")


def steps_of(events):
    return [event.checkpoint.step for event in events if isinstance(event, Measured)]


def each_look(*happenings):
    """A sleep that lets one thing happen at each look, and then fails the test."""
    left = iter(happenings)

    def sleep(_seconds):
        next(left)()

    return sleep


def losses(out):
    table = pd.read_csv(out / CSV).sort_values(["step", "quantizer", "bits"])
    return table.loc[:, ["step", "quantizer", "bits", "loss_fp", "loss_q", "delta", "delta_se"]].reset_index(drop=True)


def test_checkpoints_are_measured_as_they_appear_and_as_by_run(trajectory, run, small, tmp_path):
    options = {**small, **QUICK}
    happenings = [lambda s=s: save(trajectory, run, s) for s in STEPS] + [lambda: (run / END).touch()]
    events = list(watch(run, tmp_path / "out", sleep=each_look(*happenings), **options))
    assert steps_of(events) == list(STEPS)
    started = [event.checkpoint.step for event in events if isinstance(event, Started)]
    assert started == list(STEPS)
    assert [len(event.result.table["step"].unique()) for event in events if isinstance(event, Measured)] == [1, 2, 3]
    assert events[0] == Waiting(0, 0, 0)
    assert events[-1] == Waiting(3, 0, 0)
    plain = {name: value for name, value in options.items() if name not in QUICK}
    ptq_eval.run(trajectory, tmp_path / "plain", **plain)
    pd.testing.assert_frame_equal(losses(tmp_path / "out"), losses(tmp_path / "plain"), check_exact=True)
    assert (tmp_path / "out" / "report.md").exists()


def test_the_newest_is_measured_first_and_an_old_run_is_caught_up_with(trajectory, run, options, tmp_path):
    for step in (400, 100, 200):  # the last to be written is the newest
        save(trajectory, run, step)
        (run / f"checkpoint-{step}" / "model.safetensors").touch()
    out = tmp_path / "out"
    ptq_eval.run(trajectory, out, exclude=(200, 400), **{k: v for k, v in options.items() if k not in QUICK})
    events = list(watch(run, out, once=True, **options))
    assert steps_of(events) == [200, 400]
    assert steps_of(watch(run, out, once=True, **options)) == []


def test_a_checkpoint_that_is_half_written_waits_until_it_is_whole(trajectory, run, options, tmp_path):
    save(trajectory, run, 100)
    whole = (trajectory / "checkpoint-200" / "model.safetensors").read_bytes()
    save(trajectory, run, 200)
    part = run / "checkpoint-200" / "model.safetensors"
    part.write_bytes(whole[: len(whole) // 2])
    happenings = [lambda: None, lambda: part.write_bytes(whole), lambda: (run / END).touch()]
    events = list(watch(run, tmp_path / "out", sleep=each_look(*happenings), **options))
    assert not [event for event in events if isinstance(event, Unmeasured | Delayed)]
    assert steps_of(events) == [100, 200]
    assert Waiting(2, 1, 0) in events


def test_a_damaged_checkpoint_is_reported_once_after_some_patience(trajectory, run, options, tmp_path):
    save(trajectory, run, 100)
    save(trajectory, run, 200)
    (run / "checkpoint-200" / "model.safetensors").write_bytes(b"damaged")
    happenings = [lambda: None] * 5 + [lambda: (run / END).touch()]
    events = list(watch(run, tmp_path / "out", patience=0, sleep=each_look(*happenings), **options))
    (problem,) = [event for event in events if isinstance(event, Unmeasured)]
    assert problem.checkpoint.step == 200
    assert "model.safetensors" in str(problem.error)
    assert steps_of(events) == [100]


def test_checkpoints_may_be_deleted_after_they_are_measured(trajectory, run, options, tmp_path):
    def replaced(old, new):
        shutil.rmtree(run / f"checkpoint-{old}")
        save(trajectory, run, new)

    save(trajectory, run, 100)
    happenings = [lambda: replaced(100, 200), lambda: replaced(200, 400), lambda: (run / END).touch()]
    events = list(watch(run, tmp_path / "out", sleep=each_look(*happenings), **options))
    assert steps_of(events) == [100, 200, 400]
    assert set(pd.read_csv(tmp_path / "out" / CSV)["step"]) == {100, 200, 400}


def test_other_weights_at_a_step_that_was_measured_are_reported_and_the_rest_is_measured(
    trajectory, run, options, tmp_path
):
    save(trajectory, run, 100)
    out = tmp_path / "out"
    assert steps_of(watch(run, out, once=True, **options)) == [100]
    shutil.rmtree(run / "checkpoint-100")
    shutil.copytree(trajectory / "checkpoint-200", run / "checkpoint-100")
    (run / "checkpoint-100" / "trainer_state.json").write_bytes(
        (trajectory / "checkpoint-100" / "trainer_state.json").read_bytes()
    )
    save(trajectory, run, 400)
    events = list(watch(run, out, once=True, **options))
    (problem,) = [event for event in events if isinstance(event, Unmeasured)]
    assert "step 100 with weights" in str(problem.error)
    assert steps_of(events) == [400]


def test_a_full_disk_delays_and_loses_nothing(trajectory, run, options, tmp_path, monkeypatch):
    save(trajectory, run, 100)
    append, full = Writer.append, [True]

    def refused(self, measurement):
        if full[0]:
            raise OutputFullError("no space left for results", got=self._folder)
        append(self, measurement)

    monkeypatch.setattr(Writer, "append", refused)
    happenings = [lambda: None, lambda: full.clear() or full.append(False), lambda: (run / END).touch()]
    events = list(watch(run, tmp_path / "out", sleep=each_look(*happenings), **options))
    (delayed,) = [event for event in events if isinstance(event, Delayed)]
    assert isinstance(delayed.error, OutputFullError)
    assert steps_of(events) == [100]
    full[0] = True
    shutil.rmtree(tmp_path / "out")
    with pytest.raises(OutputFullError):
        list(watch(run, tmp_path / "out", once=True, **options))


def test_beyond_the_budget_checkpoints_wait_until_training_has_ended(trajectory, run, options, tmp_path):
    for step in STEPS:
        save(trajectory, run, step)
    happenings = [lambda: None, lambda: (run / END).touch()]
    events = list(watch(run, tmp_path / "out", budget=1e-9, sleep=each_look(*happenings), **options))
    assert events[0] == Waiting(3, 0, 3)
    assert len(steps_of(events)) == 3


def test_the_budget_is_a_share_of_the_time_since_the_beginning(monkeypatch):
    clock, cpu = [0.0], [2.0]
    monkeypatch.setattr(spent.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(spent.os, "times", lambda: (cpu[0], 0.0, 0.0, 0.0, 0.0))
    monkeypatch.setattr(spent.os, "sched_getaffinity", lambda _: {0, 1})
    used = spent.Spent("cpu")  # one second of two cores went into the start
    clock[0] = 39.0
    assert not used.allows(0.05)
    clock[0] = 41.0
    assert used.allows(0.05)
    with used:
        cpu[0] += 4.0
    clock[0] = 99.0  # three seconds so far, and two for the next
    assert not used.allows(0.05)
    clock[0] = 101.0
    assert used.allows(0.05)
    assert used.allows(1.0)


def test_a_watch_ends_with_the_training_process(trajectory, run, options, tmp_path):
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    save(trajectory, run, 100)

    def end():
        process.communicate(b"\n")

    events = list(watch(run, tmp_path / "out", pid=process.pid, sleep=each_look(end), **options))
    assert steps_of(events) == [100]


@pytest.mark.parametrize(
    "wrong",
    [{"budget": 0}, {"budget": 1.5}, {"every": 0}, {"evry": 1}, {"margin": -1}, {"quantizers": "no-such"}, {"pid": 0}],
)
def test_a_wrong_request_is_refused_before_the_first_look(run, options, wrong):
    with pytest.raises(ptq_eval.errors.PtqEvalError):
        watch(run, **{**options, **wrong})


def test_once_on_nothing_raises_as_run_does(run, options, tmp_path):
    run.mkdir(parents=True)
    (run / "notes.txt").write_text("nothing here")
    with pytest.raises(NoCheckpointError):
        list(watch(run, tmp_path / "out", once=True, **options))
    with pytest.raises(OptionError):
        watch(run, tmp_path / "out", budgt=1)


def test_alerts_are_said_once(trajectory, run, options, tmp_path, monkeypatch):
    entry = {
        "verdict_kind": "observed", "run": "small", "quantizer": "rtn", "bits": 3.0, "params": 1e4,
        "largest_tokens": 1e6, "answer": {"low": 1e5, "value": 2e5, "high": None, "level": 0.9},
    }  # fmt: skip
    analyse = watching.analyse

    def found(*arguments, **settings):
        result = analyse(*arguments, **settings)
        result.fit["critical_tokens"] = [*result.fit["critical_tokens"], entry]
        return result

    monkeypatch.setattr(watching, "analyse", found)
    for step in STEPS:
        save(trajectory, run, step)
    events = list(watch(run, tmp_path / "out", once=True, **options))
    said = [event for event in events if isinstance(event, Alert)]
    assert [json.loads(json.dumps(alert.to_dict()))["value"] for alert in said] == [2e5]


def test_after_training_a_look_that_fails_is_repeated_and_a_lasting_fault_is_raised(
    trajectory, run, options, tmp_path, monkeypatch
):
    save(trajectory, run, 100)
    (run / END).touch()
    discover, left = watching.discover, [OSError("renamed")]

    def failing(*arguments, **settings):
        if left:
            raise left.pop()
        return discover(*arguments, **settings)

    monkeypatch.setattr(watching, "discover", failing)
    assert steps_of(watch(run, tmp_path / "out", **options)) == [100]
    left[:] = [OSError("renamed")] * 99
    with pytest.raises(ptq_eval.errors.PtqEvalError, match="a file cannot be read"):
        list(watch(run, tmp_path / "out", **options))
    assert len(left) == 99 - watching.LAST_TRIES


def test_a_checkpoint_that_is_deleted_between_two_reads_is_no_fault(trajectory, run, options, tmp_path, monkeypatch):
    for step in (100, 200):
        save(trajectory, run, step)
    verify_all = watching.verify_all

    def rotated(checkpoints, **settings):
        shutil.rmtree(run / "checkpoint-100", ignore_errors=True)
        return verify_all(checkpoints, **settings)

    monkeypatch.setattr(watching, "verify_all", rotated)
    events = list(watch(run, tmp_path / "out", once=True, **options))
    assert steps_of(events) == [200]
    assert not [event for event in events if isinstance(event, Unmeasured)]


def test_other_weights_at_a_measured_step_stay_refused_when_the_run_goes_on(trajectory, run, options, tmp_path):
    def resumed():
        shutil.copy(trajectory / "checkpoint-200" / "model.safetensors", run / "checkpoint-100")

    save(trajectory, run, 100)
    happenings = [resumed, lambda: save(trajectory, run, 400), lambda: None, lambda: (run / END).touch()]
    events = list(watch(run, tmp_path / "out", sleep=each_look(*happenings), **options, patience=0))
    assert steps_of(events) == [100, 400]
    assert len([event for event in events if isinstance(event, Unmeasured)]) == 1
    assert set(pd.read_csv(tmp_path / "out" / CSV)["step"]) == {100, 400}


def test_a_measured_checkpoint_that_is_written_again_stays_in_the_results(trajectory, run, options, tmp_path):
    whole = (trajectory / "checkpoint-100" / "model.safetensors").read_bytes()
    part = run / "checkpoint-100" / "model.safetensors"
    save(trajectory, run, 100)
    happenings = [
        lambda: part.write_bytes(whole[:500]),
        lambda: save(trajectory, run, 200),
        lambda: part.write_bytes(whole),
        lambda: (run / END).touch(),
    ]
    events = list(watch(run, tmp_path / "out", sleep=each_look(*happenings), **options))
    measured = [event for event in events if isinstance(event, Measured)]
    assert [event.checkpoint.step for event in measured] == [100, 200]
    assert set(measured[-1].result.table["step"]) == {100, 200}


def test_tokens_that_become_known_later_are_reported(trajectory, run, options, tmp_path):
    save(trajectory, run, 100)
    (run / "checkpoint-100" / "trainer_state.json").unlink()
    out, seen = tmp_path / "out", []

    def late():
        seen.append(pd.read_csv(out / CSV)["tokens"].isna().all())
        shutil.copy(trajectory / "checkpoint-100" / "trainer_state.json", run / "checkpoint-100")

    events = list(watch(run, out, sleep=each_look(late, lambda: (run / END).touch()), **options))
    assert steps_of(events) == [100]
    assert seen == [True]
    table = pd.read_csv(out / CSV)
    assert not table["tokens"].isna().to_numpy().any()
    list(watch(run, out, once=True, tokens_per_step=500, **options))
    assert set(pd.read_csv(out / CSV)["tokens"]) == {50_000}


@pytest.mark.parametrize("last", ["config.json", "tokenizer.json", "model.safetensors"])
def test_files_may_come_in_any_order(trajectory, run, options, tmp_path, last):
    save(trajectory, run, 100)
    (run / "checkpoint-100" / last).unlink()
    happenings = [
        lambda: None,
        lambda: shutil.copy(trajectory / "checkpoint-100" / last, run / "checkpoint-100"),
        lambda: (run / END).touch(),
    ]
    events = list(watch(run, tmp_path / "out", sleep=each_look(*happenings), **options))
    assert not [event for event in events if isinstance(event, Unmeasured | Delayed)]
    assert steps_of(events) == [100]


@pytest.mark.parametrize("name", ["tmp-checkpoint-200", "checkpoint-200.tmp"])
def test_a_folder_that_is_renamed_in_the_end_waits_for_that(trajectory, run, options, tmp_path, name):
    save(trajectory, run, 100)
    shutil.copytree(trajectory / "checkpoint-200", run / name)
    happenings = [lambda: (run / name).rename(run / "checkpoint-200"), lambda: (run / END).touch()]
    events = list(watch(run, tmp_path / "out", sleep=each_look(*happenings), **options))
    assert steps_of(events) == [100, 200]
    assert {event.checkpoint.run for event in events if isinstance(event, Measured)} == {"small"}


def test_a_run_that_has_not_begun_holds_up_no_other(trajectory, run, options, tmp_path):
    later = run.with_name("later")
    save(trajectory, run, 100)
    happenings = [later.mkdir, lambda: save(trajectory, later, 200), lambda: (run / END).touch()]
    events = list(watch([run, later], tmp_path / "out", sleep=each_look(*happenings), **options))
    assert steps_of(events) == [100, 200]


def test_a_wrong_root_or_text_ends_the_watch(trajectory, run, options, tmp_path):
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(EmptyFolderError, match="a file, not a folder"):
        watch(tmp_path / "file", tmp_path / "out", **options)
    save(trajectory, run, 100)
    with pytest.raises(TextSourceError):
        list(watch(run, tmp_path / "out", sleep=each_look(), **{**options, "eval_text": str(tmp_path / "missing.txt")}))


def test_a_failure_is_not_repeated_until_the_files_change(trajectory, run, options, tmp_path, monkeypatch):
    measure, tried = grid.measure, []

    def failing(job, *others):
        tried.append(job.work.checkpoint.step)
        return MeasurementFailedError("broken") if tried[-1] == 100 else measure(job, *others)

    monkeypatch.setattr(grid, "measure", failing)
    save(trajectory, run, 100)
    happenings = [
        lambda: save(trajectory, run, 200),
        lambda: (run / "checkpoint-100" / "config.json").touch(),
        lambda: save(trajectory, run, 400),
        lambda: (run / END).touch(),
    ]
    events = list(watch(run, tmp_path / "out", sleep=each_look(*happenings), **options))
    assert tried == [100, 200, 100, 400]
    assert steps_of(events) == [200, 400]


def test_a_report_that_a_full_disk_or_a_kill_prevented_is_written_later(
    trajectory, run, options, tmp_path, monkeypatch
):
    save_report, left, out = watching.save_report, [OutputFullError("no space left")], tmp_path / "out"

    def failing(folder, result):
        if left:
            raise left.pop()
        save_report(folder, result)

    save(trajectory, run, 100)
    monkeypatch.setattr(watching, "save_report", failing)
    events = list(watch(run, out, sleep=each_look(lambda: (run / END).touch()), **options))
    assert [event for event in events if isinstance(event, Delayed)]
    assert steps_of(events) == [100]
    (out / "fit.json").unlink()
    (out / CSV).unlink()
    assert steps_of(watch(run, out, **options)) == []
    assert set(pd.read_csv(out / CSV)["step"]) == {100}


def test_after_training_a_full_disk_is_waited_for_no_longer_than_patience(
    trajectory, run, options, tmp_path, monkeypatch
):
    def full(folder, result):
        raise OutputFullError("no space left")

    monkeypatch.setattr(watching, "save_report", full)
    save(trajectory, run, 100)
    (run / END).touch()
    looks = []
    with pytest.raises(OutputFullError):
        list(watch(run, tmp_path / "out", patience=0.1, sleep=looks.append, **options))
    assert len(looks) == 9


def test_an_alert_is_not_raised_again_by_a_watch_that_is_repeated(trajectory, run, options, tmp_path, monkeypatch):
    alert = Alert(VerdictKind.OBSERVED, "small", "rtn", 4.0, 1e4, 3e5, 1e5, 2e5, 3e5, 0.9)
    monkeypatch.setattr(watching, "alerts", lambda *_: [alert])
    seen = []
    for step in (100, 200):
        save(trajectory, run, step)
        seen += list(watch(run, tmp_path / "out", once=True, **options))
    assert steps_of(seen) == [100, 200]
    assert [event for event in seen if isinstance(event, Alert)] == [alert]


def test_a_watch_beside_another_doubles_nothing_and_loses_no_checkpoint(trajectory, run, options, tmp_path):
    out, beside, other = tmp_path / "out", run.with_name("beside"), []
    quick = {name: value for name, value in options.items() if name not in QUICK}
    save(trajectory, run, 100)
    save(trajectory, run, 200)
    for event in watch(run, out, once=True, **options):
        if isinstance(event, Started) and not other:  # planned, and then measured by someone else
            save(trajectory, beside, 400)
            other.append(ptq_eval.run([run, beside], out, write_report=False, **quick))
    assert {checkpoint["run"] for checkpoint in Store(out).require()["checkpoints"]} == {"small", "beside"}
    (path,) = Store(out).records.glob("*.jsonl")
    assert len(path.read_text().splitlines()) == len(Store(out).measurements())


def test_a_training_process_that_nobody_waited_for_has_ended():
    process = subprocess.Popen([sys.executable, "-c", ""])
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert not machine.runs(process.pid)
    process.wait()
    assert machine.runs(os.getpid())
