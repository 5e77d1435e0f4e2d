"""Oracle: a sweep that is killed and repeated gives the records of one that was not killed, and repeats little."""

import json
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

import ptq_eval
from ptq_eval.errors import OutputFullError, UnsupportedModelError
from ptq_eval.measure import calibration, kept
from ptq_eval.measure import sweep as sweeping
from ptq_eval.measure.evaluate import Evaluator
from ptq_eval.measure.kept import Kept
from ptq_eval.measure.sweep import sweep
from ptq_eval.results.store import Store
from tests.support.processes import environ
from tests.support.steps import planned

GRID = {"quantizers": ("rtn", "gptq", "awq"), "bits": (2, 4)}


class Killed(BaseException):
    """The end of the process, which nothing may catch."""


@pytest.fixture
def always(monkeypatch):
    """Everything is kept, however short the work, and at once."""
    monkeypatch.setattr(sweeping, "_SHORT", 0.0)
    monkeypatch.setattr(kept, "SECONDS", 0.0)


def records(work, folder=None):
    """Everything that does not depend on when and where."""
    return [
        m.to_dict() | {"provenance": None} for m in sweep(work, work.trials, unfinished=folder, tick=lambda _: None)
    ]


def killed_at(monkeypatch, work, folder, moment):
    """Sweep until the part of this number is written; how many parts were."""
    append, written = Kept._append, 0

    def count(self, data):
        nonlocal written
        append(self, data)
        written += 1
        if written == moment:
            raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed) if moment else pytest.MonkeyPatch.context():
        patch.setattr(Kept, "_append", count)
        records(work, folder)
    return written


@pytest.mark.slow
@pytest.mark.parametrize(
    ("architecture", "options"),
    [("llama", {}), ("gpt2", {"include_embedding": True}), ("llama", {"quantizers": ("gptaq",), "precision": 0.3})],
)
def test_killed_at_any_part_a_sweep_goes_on_to_the_same_records(
    architecture, options, saved, small, tmp_path, monkeypatch, always
):
    work = planned(saved(architecture).parent, **{**small, **GRID, **options}).workloads[0]
    with monkeypatch.context() as patch:
        patch.setattr(sweeping, "_SHORT", float("inf"))
        expected = records(work)
    total = killed_at(monkeypatch, work, tmp_path / "whole", 0)
    assert not (tmp_path / "whole").exists(), "removed with the last record"
    for moment in {1, total, *np.linspace(2, total - 1, 4).astype(int).tolist()}:
        folder = tmp_path / f"at {moment}"
        killed_at(monkeypatch, work, folder, moment)
        assert (folder / "parts" / "parts.jsonl").exists()
        assert records(work, folder) == expected, f"killed at part {moment} of {total}"
        assert not folder.exists()


def test_what_was_done_is_not_done_again(saved, small, tmp_path, monkeypatch, always):
    """One call of a method, or one variant's batch, may be repeated; here none is, as the kill follows the writing."""
    work = planned(saved("llama").parent, **{**small, **GRID}).workloads[0]
    calls = []
    for place, name in ((calibration, "solved"), (Evaluator, "_output")):
        original = getattr(place, name)
        note = lambda *a, _own=original, _as=name: calls.append(_as) or _own(*a)
        monkeypatch.setattr(place, name, note)
    total = killed_at(monkeypatch, work, tmp_path / "whole", 0)
    once = sorted(calls)
    for moment in (total // 3, 2 * total // 3):
        calls.clear()
        killed_at(monkeypatch, work, tmp_path / "killed", moment)
        records(work, tmp_path / "killed")
        assert sorted(calls) == once


def interrupted(folder, add):
    with Kept.opened(folder, "cpu") as found:
        found.add("x", add)
        raise KeyboardInterrupt


def test_parts_of_another_version_or_device_are_not_used(tmp_path):
    for value in (1, 2):
        with pytest.raises(KeyboardInterrupt):
            interrupted(tmp_path / "w", value)
    assert Kept(tmp_path / "w" / "parts").parts("x") == [1, 2]
    with Kept.opened(tmp_path / "w", "cuda") as found:
        assert found.parts("x") == []


def test_one_process_has_the_folder_and_another_works_without(tmp_path):
    with Kept.opened(tmp_path / "w", "cpu") as first, Kept.opened(tmp_path / "w", "cpu") as second:
        first.add("x", 1)
        assert second.folder.parent != first.folder.parent
        assert second.parts("x") == []


def test_a_part_counts_whole_or_not_at_all(tmp_path):
    one = Kept(tmp_path)
    one.add("x", [0.1, float("nan"), np.float32(0.5), torch.tensor(3)])
    together = one.together()
    together.__enter__()
    one.add("y", 1)
    assert not together.__exit__(Killed, Killed(), None)
    with (tmp_path / "parts.jsonl").open("ab") as file:
        file.write(b'["z", [1, 2')
    other = Kept(tmp_path)
    assert json.dumps(other.parts("x")) == "[[0.1, NaN, 0.5, 3]]"
    assert other.parts("y") == other.parts("z") == []
    other.add("z", 2)
    assert Kept(tmp_path).parts("z") == [2]


def test_a_full_disk_is_named(tmp_path, monkeypatch):
    def full(*_):
        raise kept.SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(kept, "save_file", full)
    with pytest.raises(OutputFullError, match="no space left"):
        Kept(tmp_path).tensors("a")["b"] = torch.ones(2)


RUN = """
import json, sys
from ptq_eval.measure import kept, sweep
sweep._SHORT, kept.SECONDS = 0.0, 0.0
import ptq_eval
ptq_eval.run(sys.argv[1], sys.argv[2], **json.loads(sys.argv[3]))
"""
MORE = (2, 40)
"""Parts after which a process is killed: while it quantizes, and while it evaluates."""


@pytest.mark.slow
def test_killed_by_the_system_and_again_where_it_went_on(saved, small, tmp_path):
    """Two moments of real processes; `test_killed_at_any_part…` has the others."""
    folder, out = saved("llama").parent, tmp_path / "killed"
    options = {**small, **GRID, "eval_windows": 24, "write_report": False}
    ptq_eval.run(folder, tmp_path / "whole", **options)

    def start():
        command = [sys.executable, "-c", RUN, str(folder), str(out), json.dumps(options)]
        return subprocess.Popen(command, env=environ(), stdout=subprocess.DEVNULL)

    def found(out):
        return [m.to_dict() | {"provenance": None} for m in Store(out).measurements()]

    def parts():
        return sum(path.read_bytes().count(b"\n") for path in out.glob("unfinished/*/parts/parts.jsonl"))

    for more in MORE:
        process, before = start(), parts()
        while process.poll() is None and parts() < before + more:
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    assert start().wait() == 0
    assert found(out) == found(tmp_path / "whole")
    assert not list(out.glob("unfinished/*"))


@pytest.mark.parametrize(("error", "stays"), [(OutputFullError("full"), True), (UnsupportedModelError("odd"), False)])
def test_what_is_kept_survives_a_full_disk_and_no_other_error(tmp_path, error, stays):
    opened = Kept.opened(tmp_path / "unfinished", "cpu")
    opened.__enter__().add("a", 1)
    assert not opened.__exit__(type(error), error, None)
    with Kept.opened(tmp_path / "unfinished", "cpu") as kept:
        assert kept.parts("a") == ([1] if stays else [])


@pytest.mark.parametrize("torn", [b'["b", 2', b'\0\0\0\0\n["c", 3]\n', b'"b"\n'])
def test_a_line_that_is_not_whole_ends_what_is_kept(tmp_path, torn):
    Kept(tmp_path).add("a", 1)
    with (tmp_path / "parts.jsonl").open("ab") as file:
        file.write(torn)
    again = Kept(tmp_path)
    assert (again.parts("a"), again.parts("b"), again.parts("c")) == ([1], [], [])
    again.add("d", 4)
    assert Kept(tmp_path).parts("d") == [4]
