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
from ptq_eval.jobs import machine, spent
from ptq_eval.jobs import watch as watching
from ptq_eval.jobs.events import Delayed, Measured, Started, Unmeasured, Waiting
from ptq_eval.jobs.watch import watch
from ptq_eval.laws.turning.alerts import Alert
from ptq_eval.laws.turning.verdict import VerdictKind
from tests.jobs.support import CSV, QUICK, each_look, save, steps_of

STEPS = (100, 200, 400)


def losses(out):
    table = pd.read_csv(out / CSV).sort_values(["step", "quantizer", "bits"])
    return table.loc[:, ["step", "quantizer", "bits", "loss_fp", "loss_q", "delta", "delta_se"]].reset_index(drop=True)


@pytest.mark.slow
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


def test_checkpoints_may_be_deleted_after_they_are_measured(trajectory, run, options, tmp_path):
    def replaced(old, new):
        shutil.rmtree(run / f"checkpoint-{old}")
        save(trajectory, run, new)

    save(trajectory, run, 100)
    happenings = [lambda: replaced(100, 200), lambda: replaced(200, 400), lambda: (run / END).touch()]
    events = list(watch(run, tmp_path / "out", sleep=each_look(*happenings), **options))
    assert steps_of(events) == [100, 200, 400]
    assert set(pd.read_csv(tmp_path / "out" / CSV)["step"]) == {100, 200, 400}


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
    with used.measuring():
        cpu[0] += 3.0
    with used:  # the report on it
        cpu[0] += 1.0
    clock[0] = 99.0  # three seconds so far, and two for the next
    assert not used.allows(0.05)
    clock[0] = 101.0
    assert used.allows(0.05)
    assert used.allows(1.0)
    cpu[0] += 1.0  # reading checkpoints, outside both
    assert not used.allows(0.05)
    with used.measuring():
        cpu[0] += 2.0
    clock[0] = 109.0  # four and a half, and one: the measurement before counts no longer
    assert not used.allows(0.05)
    clock[0] = 111.0
    assert used.allows(0.05)


def test_a_watch_ends_with_the_training_process(trajectory, run, options, tmp_path):
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    save(trajectory, run, 100)

    def end():
        process.communicate(b"\n")

    events = list(watch(run, tmp_path / "out", pid=process.pid, sleep=each_look(end), **options))
    assert steps_of(events) == [100]


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


def test_an_alert_is_not_raised_again_by_a_watch_that_is_repeated(trajectory, run, options, tmp_path, monkeypatch):
    alert = Alert(VerdictKind.OBSERVED, "small", "rtn", 4.0, 1e4, 3e5, 1e5, 2e5, 3e5, 0.9)
    monkeypatch.setattr(watching, "alerts", lambda *_: [alert])
    seen = []
    for step in (100, 200):
        save(trajectory, run, step)
        seen += list(watch(run, tmp_path / "out", once=True, **options))
    assert steps_of(seen) == [100, 200]
    assert [event for event in seen if isinstance(event, Alert)] == [alert]


def test_a_training_process_that_nobody_waited_for_has_ended():
    process = subprocess.Popen([sys.executable, "-c", ""])
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert not machine.runs(process.pid)
    process.wait()
    assert machine.runs(os.getpid())
