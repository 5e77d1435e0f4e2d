"""Recovery: what goes wrong while a watch looks on delays it or is reported once, and ends it only where it must."""

import shutil

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
from ptq_eval.jobs import grid
from ptq_eval.jobs import watch as watching
from ptq_eval.jobs.events import Delayed, Started, Unmeasured
from ptq_eval.jobs.watch import watch
from ptq_eval.results.store import Store, Writer
from tests.jobs.support import CSV, QUICK, each_look, save, steps_of


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


def test_other_weights_at_a_measured_step_stay_refused_when_the_run_goes_on(trajectory, run, options, tmp_path):
    def resumed():
        shutil.copy(trajectory / "checkpoint-200" / "model.safetensors", run / "checkpoint-100")

    save(trajectory, run, 100)
    happenings = [resumed, lambda: save(trajectory, run, 400), lambda: None, lambda: (run / END).touch()]
    events = list(watch(run, tmp_path / "out", sleep=each_look(*happenings), **options, patience=0))
    assert steps_of(events) == [100, 400]
    assert len([event for event in events if isinstance(event, Unmeasured)]) == 1
    assert set(pd.read_csv(tmp_path / "out" / CSV)["step"]) == {100, 400}


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
