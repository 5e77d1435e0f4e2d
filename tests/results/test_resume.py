"""Recovery: killed, sharded, out of space, or grown, an output folder ends up with the same numbers."""

import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager

import pandas as pd
import pytest

import ptq_eval
from ptq_eval.errors import OutputFullError, UnreadableCheckpointError
from ptq_eval.jobs import job as job_module
from ptq_eval.results.store import Store
from tests.support.processes import environ
from tests.support.steps import PER_CHECKPOINT, lines


def command(folder, out, options):
    """The same run as a command line."""
    flags = {name: ",".join(map(str, v)) if isinstance(v, tuple) else v for name, v in options.items()}
    pairs = [part for name, value in flags.items() for part in ("--" + name.replace("_", "-"), str(value))]
    return [sys.executable, "-m", "ptq_eval", "run", str(folder), "-o", str(out), *pairs]


def start(arguments):
    pipe = subprocess.PIPE
    return subprocess.Popen(arguments, stdout=pipe, stderr=subprocess.STDOUT, text=True, env=environ())


def finish(process):
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output
    return output


def wait_for_records(process, out):
    deadline = time.monotonic() + 120
    while lines(out) == 0:
        assert process.poll() is None, "the run ended before it stored anything: " + process.stdout.read()
        assert time.monotonic() < deadline
        time.sleep(0.002)


@pytest.mark.slow
def test_killed_and_continued_equals_uninterrupted(trajectory, small, complete, tmp_path):
    out = tmp_path / "out"
    process = start(command(trajectory, out, small))
    wait_for_records(process, out)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    stored = lines(out)
    assert 0 < stored < 3 * PER_CHECKPOINT, "the kill came too late to test anything"
    assert not (out / "degradation.csv").exists()

    # The kill could as well have come in the middle of a line, or between two trials of one checkpoint.
    (path,) = out.glob("records/*.jsonl")
    path.write_bytes(path.read_bytes()[:-200])
    kept = path.read_bytes().rpartition(b"\n")[0]

    ptq_eval.run(trajectory, out, **small)
    assert path.read_bytes().startswith(kept), "what was stored has been changed"
    assert (out / "degradation.csv").read_bytes() == (complete[0] / "degradation.csv").read_bytes()
    records = Store(out).measurements()
    assert len(records) == 3 * PER_CHECKPOINT
    assert lines(out) == 3 * PER_CHECKPOINT, "something was measured twice"
    for one, other in zip(sorted(records, key=key), sorted(Store(complete[0]).measurements(), key=key)):
        assert (one.nll, one.kl, one.agree, one.bits_per_weight) == (
            other.nll,
            other.kl,
            other.agree,
            other.bits_per_weight,
        )


def key(measurement):
    return measurement.trial.key()


@pytest.mark.slow
def test_two_shards_at_once_equal_one_process(trajectory, small, complete, tmp_path):
    out = tmp_path / "out"
    call = "import ptq_eval; ptq_eval.run({!r}, {!r}, write_report=False, **{!r})"
    other = start([sys.executable, "-c", call.format(str(trajectory), str(out), {**small, "shard": (1, 2)})])
    wait_for_records(other, out)
    ptq_eval.run(trajectory, out, write_report=False, **{**small, "shard": (2, 2)})
    finish(other)
    assert sorted(p.name for p in (out / "records").iterdir()) == ["worker-1-of-2.jsonl", "worker-2-of-2.jsonl"]
    assert lines(out) == 3 * PER_CHECKPOINT
    result = ptq_eval.load(out, bootstrap=10)
    pd.testing.assert_frame_equal(result.table, complete[1].table, check_exact=True)
    assert not [w for w in result.fit["warnings"] if "records of one trial differ" in w]


def test_the_same_call_again_measures_nothing(complete, trajectory, small, monkeypatch):
    def never(*_args, **_kwargs):
        raise AssertionError("measured again")

    monkeypatch.setattr(job_module, "sweep", never)
    before = lines(complete[0])
    again = ptq_eval.run(trajectory, complete[0], write_report=False, **small)
    assert lines(complete[0]) == before
    pd.testing.assert_frame_equal(again.table, complete[1].table, check_exact=True)
    assert again.fit == complete[1].fit


def test_failed_trials_are_tried_again(measure, complete, monkeypatch, tmp_path):
    original = job_module.sweep

    def failing(work, missing, **options):
        if work.checkpoint.step == 200:
            raise UnreadableCheckpointError("the disk hiccuped")
        return original(work, missing, **options)

    with monkeypatch.context() as patch:
        patch.setattr(job_module, "sweep", failing)
        result = measure()
    failed = result.table[result.table.step == 200]
    assert failed["status"].tolist() == ["failed"] * PER_CHECKPOINT
    assert set(failed["message"]) == {"the disk hiccuped"}
    assert failed["delta"].isna().all()
    assert [str(p) for p in result.problems] == ["the disk hiccuped"]
    result = measure()
    assert lines(tmp_path / "out") == 4 * PER_CHECKPOINT
    pd.testing.assert_frame_equal(result.table, complete[1].table, check_exact=True)


def test_an_unforeseen_error_does_not_stop_the_other_checkpoints(measure, monkeypatch):
    original = job_module.sweep

    def failing(work, missing, **options):
        if work.checkpoint.step == 100:
            raise ZeroDivisionError("of a kind nobody thought of")
        return original(work, missing, **options)

    monkeypatch.setattr(job_module, "sweep", failing)
    result = measure(quantizers=("rtn",))
    assert result.table["status"].value_counts().to_dict() == {"ok": 6, "failed": 3}
    assert "ZeroDivisionError" in str(result.problems[0])


def test_ctrl_c_keeps_what_is_stored(measure, complete, monkeypatch, tmp_path):
    original = job_module.sweep

    def interrupted(work, missing, **options):
        if work.checkpoint.step == 400:
            raise KeyboardInterrupt
        return original(work, missing, **options)

    with monkeypatch.context() as patch:
        patch.setattr(job_module, "sweep", interrupted)
        with pytest.raises(KeyboardInterrupt):
            measure()
    assert lines(tmp_path / "out") == 2 * PER_CHECKPOINT
    pd.testing.assert_frame_equal(measure().table, complete[1].table, check_exact=True)


@contextmanager
def tiny_disk(folder, size):
    """A file system of `size` bytes in memory; skips where this machine does not allow it."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if sys.platform != "linux" or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a file system takes root")
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_keeps_what_is_stored_and_goes_on_when_there_is_room(measure, complete, tmp_path):
    pages = -(-(complete[0] / "run.json").stat().st_size // 4096)
    out = tmp_path / "out"
    with tiny_disk(out, (pages + 5) * 4096):
        with pytest.raises(OutputFullError, match="no space left"):
            measure()
        stored = Store(out).keys()
        assert 0 < len(stored) < 3 * PER_CHECKPOINT
        subprocess.run(["mount", "-o", "remount,size=4m", str(out)], check=True)
        result = measure()
        assert stored <= Store(out).keys()
        assert lines(out) <= 3 * PER_CHECKPOINT + 1  # perhaps one torn line
        pd.testing.assert_frame_equal(result.table, complete[1].table, check_exact=True)


def test_progress_ends_at_its_total(measure, trajectory, small, tmp_path):
    seen = []
    ptq_eval.run(
        trajectory,
        tmp_path / "other",
        write_report=False,
        progress=lambda what, done, total: seen.append((what, done, total)),
        **{**small, "quantizers": ("rtn", "gptq", "awq")},
    )
    measuring = [(done, total) for what, done, total in seen if what.startswith("measuring")]
    assert measuring[0][0] == 0
    assert measuring[-1][0] == pytest.approx(measuring[-1][1])
    assert [done for done, _ in measuring] == sorted(done for done, _ in measuring)
    named = {what.rpartition(", ")[2] for what, _, _ in seen if what.startswith("measuring: ")}
    assert named == {"quantizing", "evaluating", "noise floor"}
