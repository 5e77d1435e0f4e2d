"""Contract of `ptq-eval average`: what it says, what it leaves on the disk, and what it refuses."""

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest

from ptq_eval.jobs import average as job

WINDOWS = ("--windows", "2,3", "--group-size", "8")


@pytest.fixture
def few(quick):
    """The options of `quick` that are no options of a fit."""
    place = quick.index("--bootstrap")
    return quick[:place] + quick[place + 2 :]


@pytest.fixture
def largest(monkeypatch):
    """The most averages that were on the disk at a time."""
    found = []
    measure = job._measure

    def counted(grid, *arguments):
        found.append(len([*(grid.store.folder / job.FOLDER).glob("*")]))
        return measure(grid, *arguments)

    monkeypatch.setattr(job, "_measure", counted)
    return found


@pytest.mark.drawn("png")
def test_averages_are_measured_one_at_a_time(ptq_eval, trajectory, few, tmp_path, largest):
    answer = ptq_eval("average", trajectory, "-o", tmp_path / "out", *few, *WINDOWS)
    assert (answer.code, answer.err) == (0, "")
    assert "average:3" in answer.out
    assert "average.json, average.csv, average.md" in answer.out
    assert max(largest) == 1
    assert not (tmp_path / "out" / "averages").exists()
    table = pd.read_csv(tmp_path / "out" / "average.csv")
    assert table.groupby("ending")["bits"].count().to_dict() == {"last": 1, "average:2": 1, "average:3": 1}
    assert len(table) == 6
    assert table["tokens"].nunique() == 1
    record = json.loads((tmp_path / "out" / "average.json").read_text())
    assert {row["ending"]: row["first_step"] for row in record["rows"]} == {
        "last": 300, "average:2": 200, "average:3": 100,
    }  # fmt: skip
    page = (tmp_path / "out" / "average.md").read_text()
    assert "least loss" in page
    assert "below the last checkpoint" in page or "above" in page
    assert (tmp_path / "out" / "figures" / "average.png").stat().st_size > 1000


def test_an_average_is_measured_as_any_checkpoint_is(ptq_eval, trajectory, few, tmp_path):
    """With --keep it is a checkpoint, which `run` measures to the same numbers."""
    out = tmp_path / "out"
    assert ptq_eval("average", trajectory, "-o", out, *few, "--windows", "2", "--group-size", "8", "--keep").code == 0
    (kept,) = (out / "averages").glob("*")
    assert ptq_eval("run", kept, "-o", tmp_path / "again", *few, "--group-size", "8").code == 0
    mine = pd.read_csv(out / "average.csv").query("ending == 'average:2' and bits == 4")
    other = pd.read_csv(tmp_path / "again" / "degradation.csv").query("bits == 4")
    assert mine["loss"].item() == pytest.approx(other["loss_q"].item(), rel=1e-12)
    assert mine["delta"].item() == other["delta"].item()
    assert mine["weights_sha"].item() == other["weights_sha"].item()


def test_a_repeated_command_measures_nothing_again(ptq_eval, trajectory, few, tmp_path, monkeypatch):
    command = ("average", trajectory, "-o", tmp_path / "out", *few, *WINDOWS)
    assert ptq_eval(*command).code == 0
    before = (tmp_path / "out" / "average.csv").read_bytes()
    records = {path: path.read_bytes() for path in (tmp_path / "out" / "records").glob("*")}
    assert ptq_eval(*command).code == 0
    assert (tmp_path / "out" / "average.csv").read_bytes() == before
    assert {path: path.read_bytes() for path in records} == records


def test_an_interrupted_command_goes_on(ptq_eval, trajectory, few, tmp_path, monkeypatch):
    command = ("average", trajectory, "-o", tmp_path / "out", *few, *WINDOWS)
    measure, calls = job._measure, iter(range(9))

    def killed(*arguments):
        if next(calls) == 2:
            raise KeyboardInterrupt
        return measure(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(job, "_measure", killed)
        assert ptq_eval(*command).code == 130
    assert ptq_eval(*command).code == 0
    assert ptq_eval("average", trajectory, "-o", tmp_path / "whole", *few, *WINDOWS).code == 0
    first, other = (pd.read_csv(tmp_path / name / "average.csv") for name in ("out", "whole"))
    pd.testing.assert_frame_equal(first, other)


def test_averages_may_end_at_every_checkpoint(ptq_eval, trajectory, few, tmp_path):
    assert ptq_eval("average", trajectory, "-o", tmp_path / "out", *few, *WINDOWS, "--steps", "all").code == 0
    table = pd.read_csv(tmp_path / "out" / "average.csv")
    assert sorted(set(zip(table["step"], table["ending"]))) == [
        (200, "average:2"), (200, "last"), (300, "average:2"), (300, "average:3"), (300, "last"),
    ]  # fmt: skip


def test_a_damaged_checkpoint_is_no_member(ptq_eval, trajectory, few, tmp_path):
    (trajectory / "checkpoint-200" / "model.safetensors").write_bytes(b"cut")
    answer = ptq_eval("average", trajectory, "-o", tmp_path / "out", *few, "--windows", "2", "--group-size", "8")
    assert answer.code == 12
    table = pd.read_csv(tmp_path / "out" / "average.csv")
    assert set(table[table["ending"] == "average:2"]["first_step"]) == {100}


def test_a_model_that_repeats_the_last_checkpoint_is_no_member(ptq_eval, trajectory, few, tmp_path):
    shutil.copytree(trajectory / "checkpoint-300", trajectory / "final")
    (trajectory / "final" / "trainer_state.json").unlink(missing_ok=True)
    answer = ptq_eval("average", trajectory, "-o", tmp_path / "out", *few, "--windows", "3", "--group-size", "8")
    assert (answer.code, answer.err) == (0, "")
    table = pd.read_csv(tmp_path / "out" / "average.csv")
    assert set(zip(table["ending"], table["first_step"], table["step"])) == {
        ("last", 300, 300),
        ("average:3", 100, 300),
    }


@pytest.mark.parametrize(
    ("flags", "code", "said"),
    [
        (("--windows", "4"), 2, ["more checkpoints than were saved", "4 with 3 checkpoints", "--windows 3"]),
        (("--windows", "1"), 2, ["an entry of --windows is too small"]),
        (("--windows", "two"), 2, ["'two'"]),
        (("--steps", "150"), 2, ["--steps names no checkpoint", "150"]),
        (("--steps", "first"), 2, ["more checkpoints than were saved", "with 1 checkpoint"]),
        (("--bits", "9"), 19, ["9"]),
    ],
)
def test_bad_requests_are_one_line(ptq_eval, trajectory, few, tmp_path, flags, code, said):
    answer = ptq_eval("average", trajectory, "-o", tmp_path / "out", *few, *WINDOWS, *flags)
    assert answer.code == code
    assert answer.err.count("\n") == 1
    assert all(part in answer.err for part in said), answer.err
    assert not (tmp_path / "out").exists()


def test_a_single_checkpoint_has_no_average(ptq_eval, trajectory, few, tmp_path):
    for step in (100, 200):
        shutil.rmtree(trajectory / f"checkpoint-{step}")
    answer = ptq_eval("average", trajectory, "-o", tmp_path / "out", *few)
    assert answer.code == 2
    assert "give the folder with all of them" in answer.err


def test_an_unknown_folder(ptq_eval, few, tmp_path):
    assert ptq_eval("average", Path(tmp_path) / "none", *few).code == 10
