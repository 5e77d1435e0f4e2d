"""Contract of the hook for any loop: checkpoints are copied, measured beside the loop, and cleaned up."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from ptq_eval.checkpoints import arrivals
from ptq_eval.errors import OptionError, TextSourceError, TextTooShortError, UnknownPluginError
from ptq_eval.jobs.machine import runs
from ptq_eval.training import Monitor, monitor
from tests.checkpoints.support import nanochat_run

slow = pytest.mark.slow


@pytest.fixture
def saved_at(trajectory, tmp_path):
    """saved_at(step) -> a folder that is written again at each save, as by loops that keep the last alone."""

    def save(step):
        folder = tmp_path / "last"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(trajectory / f"checkpoint-{step}", folder)
        (folder / "optimizer.pt").write_bytes(b"much")
        (folder / "trainer_state.json").unlink()
        return folder

    return save


@slow
def test_a_loop_is_measured_and_a_new_monitor_goes_on(saved_at, quick, tmp_path):
    logged, out = [], tmp_path / "out"
    with Monitor(out, name="mine", log=lambda *numbers: logged.append(numbers), budget=1, **quick) as mine:
        for step in (100, 200):
            mine.saved(saved_at(step), step=step, tokens=step * 2000)
            deadline = time.monotonic() + 300
            while step not in [at for _, at in logged] and time.monotonic() < deadline:
                assert "optimizer.pt" not in [path.name for path in (out / "copies" / "mine").rglob("*")]
                mine.poll()
                time.sleep(0.05)
    assert [step for _, step in logged] == [100, 200]
    assert all("ptq/delta/rtn_3bit" in numbers for numbers, _ in logged)
    with Monitor(out, name="mine", budget=1, **quick) as mine:
        mine.saved(tmp_path / "missing", step=300, tokens=100_000)
        mine.saved(saved_at(400), step=400, tokens=800_000)
        assert mine._copying is not None
        mine._copying.join()
        with pytest.warns(UserWarning, match="cannot be copied"):
            mine.poll()
    table = pd.read_csv(out / "degradation.csv")
    assert set(zip(table["run"], table["step"], table["tokens"])) == {("mine", s, s * 2000) for s in (100, 200, 400)}
    assert not (out / "copies").exists()


@slow
def test_the_end_of_the_other_process_is_warned_of_once(saved_at, quick, tmp_path):
    mine = Monitor(tmp_path / "out", budget=1, **quick)
    mine._process.kill()
    mine._process.wait()
    mine.saved(saved_at(100), step=100, tokens=200_000)
    with pytest.warns(UserWarning, match="measuring ended with exit code -9, see .*watch.log"):
        mine.close()
    assert json.dumps(mine.poll()) == "[]"


@slow
@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        ({"bitz": 4}, OptionError),
        ({"budget": 2}, OptionError),
        ({"jobs": 2}, OptionError),
        ({"quantizers": "gtpq"}, UnknownPluginError),
    ],
)
def test_a_wrong_option_is_refused_at_once(quick, tmp_path, wrong, error):
    with pytest.raises(error):
        Monitor(tmp_path / "out", **{**quick, **wrong})
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("written", "error"),
    [(None, TextSourceError), (b"  \n \n", TextSourceError), (b"some words", TextTooShortError)],
)
@pytest.mark.parametrize("role", ["eval_text", "calib_text"])
def test_a_text_that_cannot_be_used_is_refused_at_once(quick, tokenizer, tmp_path, written, error, role):
    text = tmp_path / "text.txt"
    if written is not None:
        text.write_bytes(written)
    with pytest.raises(error):
        Monitor(tmp_path / "out", tokenizer=tokenizer, **{**quick, role: str(text)})
    assert not (tmp_path / "out").exists()


_TRAINING = """
import shutil, sys
from ptq_eval.training import Monitor
folder, out, options = sys.argv[1], sys.argv[2], eval(sys.argv[3])
mine = Monitor(out, name="mine", **options)
mine.saved(folder, step=100, tokens=200_000)
mine.close()
"""


@slow
def test_what_the_budget_does_not_cover_is_measured_after_the_training_process(saved_at, quick, tmp_path):
    out = tmp_path / "out"
    command = [sys.executable, "-c", _TRAINING, str(saved_at(100)), str(out), repr({**quick, "budget": 1e-9})]
    ended = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "measuring checkpoint-100 goes on in process" in ended.stderr
    assert not (out / "degradation.csv").exists()
    wait_until(lambda: not (out / "copies").exists())
    assert set(pd.read_csv(out / "degradation.csv")["step"]) == {100}
    assert (out / "watch.log").read_text() == ""


@slow
def test_a_new_monitor_takes_over_what_an_earlier_one_left(saved_at, quick, tmp_path):
    out, settings = tmp_path / "out", {**quick, "name": "mine", "budget": 1e-9}
    first = Monitor(out, **settings)
    first.saved(saved_at(100), step=100, tokens=200_000)
    with pytest.warns(UserWarning, match="checkpoint-100 goes on in process"):
        first.close()
    second = Monitor(out, **settings)
    assert not runs(first._process.pid)
    assert copies_of(second) == ["checkpoint-100"]
    found = second.close(math.inf)
    assert [event["step"] for event in found if event["event"] == "measured"] == [100]


def copies_of(monitor):
    return [path.name for path in monitor.copies.iterdir() if not path.name.startswith(".")]


def wait_until(what, seconds=300):
    deadline = time.monotonic() + seconds
    while not what() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert what()


@pytest.fixture
def beside(monkeypatch, quick, tmp_path):
    """beside(code) -> a monitor whose other process runs this code."""
    start = subprocess.Popen

    def make(code, **changes):
        with monkeypatch.context() as patch:
            patch.setattr(monitor.subprocess, "Popen", lambda _, **how: start([sys.executable, "-c", code], **how))
            return Monitor(tmp_path / "out", **{**quick, **changes})

    return make


@pytest.mark.parametrize(
    ("seconds", "spent", "left"), [(None, 0, 0), (20, 0, 50), (60, 0, 0), (20, 25, 25), (20, 45, 0)]
)
def test_the_end_is_waited_for_if_the_budget_covers_a_measurement_as_long_as_the_last(beside, seconds, spent, left):
    mine = beside("", budget=0.05)
    assert mine._left() == monitor.END_SECONDS
    mine._waiting, mine._began = [mine.copies / "checkpoint-2"], time.monotonic() - 1000
    if seconds is not None:
        place = str(mine.copies / "checkpoint-1")
        mine._hear({"event": "measured", "location": place, "seconds": seconds, "spent": spent})
    assert mine._left() == pytest.approx(left, abs=1)
    mine._events.queue.clear()
    mine.close(math.inf)


def test_lines_that_are_no_events_are_skipped(beside):
    mine = beside("""print('{"event": "wai'); print('{"event": "waiting"}')""")
    assert [event["event"] for event in mine.close()] == ["waiting"]


class Raising:
    """A tokenizer that cannot be saved."""

    def save_pretrained(self, folder):
        raise RuntimeError("no such tokenizer")


@pytest.mark.parametrize(
    ("state", "text"),
    [("{}", "no such tokenizer"), ("[1]", "it cannot be copied"), ("{", "it cannot be copied")],
)
def test_whatever_keeps_a_checkpoint_from_being_copied_is_warned_of(beside, tmp_path, state, text):
    folder = tmp_path / "saved"
    folder.mkdir()
    (folder / "trainer_state.json").write_text(state)
    mine = beside("")
    mine.saved(folder, step=1, tokens=10, tokenizer=Raising() if state == "{}" else None)
    with pytest.warns(UserWarning, match=text):
        mine.close()


def test_a_checkpoint_that_changes_while_it_is_copied_is_not_measured(beside, tmp_path, monkeypatch):
    folder = tmp_path / "saved"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"old")
    (folder / "optimizer.pt").write_bytes(b"old")
    copytree, changed = shutil.copytree, ["optimizer.pt", "model.safetensors"]

    def slow_copy(source, target, **settings):
        copytree(source, target, **settings)
        (Path(source) / changed.pop(0)).write_bytes(b"newer")

    mine = beside("input()")
    monkeypatch.setattr(monitor.shutil, "copytree", slow_copy)
    for step in (1, 2):
        mine.saved(folder, step=step, tokens=step)
    assert mine._copying is not None
    mine._copying.join()
    assert copies_of(mine) == ["checkpoint-1"]
    with pytest.warns(UserWarning, match="its files changed meanwhile"):
        mine.close(math.inf)


def test_the_end_of_training_waits_for_no_space_on_a_disk(beside, monkeypatch):
    def full(path, **_):
        raise OSError(28, "no space left on device")

    mine = beside("import time; time.sleep(600)")
    monkeypatch.setattr(Path, "touch", full)
    with pytest.warns(UserWarning, match="measuring ended with exit code -15"):
        mine.close()


@slow
def test_copies_that_wait_are_replaced_whole(saved_at, quick, tmp_path, monkeypatch):
    removed, really = [], shutil.rmtree

    def rmtree(path, **more):
        if path.exists():
            removed.append(path.name)
        really(path, **more)

    mine = Monitor(tmp_path / "out", budget=1e-9, **quick)
    monkeypatch.setattr(arrivals.shutil, "rmtree", rmtree)
    for step in (100, 200, 200):  # the last one again, with its first copy still waiting
        folder = saved_at(step)
        mine.saved(folder, step=step, tokens=step * 2000)
        assert mine._copying is not None
        mine._copying.join()
    assert copies_of(mine) == ["checkpoint-200"]
    assert {name for name in removed if "checkpoint" in name} == {".removed-checkpoint-100", ".removed-checkpoint-200"}
    place = str(mine.copies / "checkpoint-100")
    late = {"event": "unmeasured", "location": place, "error": "no config.json"}
    mine._hear(late)  # said of a copy that was replaced while it was read
    assert late not in mine.poll()
    found = mine.close(math.inf)
    assert [event["step"] for event in found if event["event"] == "measured"] == [200]
    assert not [event for event in found if event["event"] == "unmeasured"]


def test_a_file_among_others_is_copied_as_a_folder_with_its_tokens(beside, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = nanochat_run(tmp_path / "d3", "E", steps=(10, 20))
    mine = beside("")
    mine._copy(folder / "model_000020.pt", 20, None, None)
    copy = mine.copies / "checkpoint-20"
    assert {path.name for path in copy.iterdir()} == {"config.json", "pytorch_model.bin", "trainer_state.json"}
    assert not (copy / "pytorch_model.bin").is_symlink()
    state = json.loads((copy / "trainer_state.json").read_text())
    assert state == {"global_step": 20, "num_input_tokens_seen": 20 * 4096}
    (tmp_path / "other.pt").write_bytes(b"none")
    mine._copy(tmp_path / "other.pt", 30, None, None)
    with pytest.warns(UserWarning, match="no checkpoint of a known format"):
        mine.close()
