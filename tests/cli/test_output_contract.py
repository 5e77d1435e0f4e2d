"""Contract: what is in an output folder is never mixed with anything else, and never lost."""

import os
import shutil
from contextlib import nullcontext

import pandas as pd
import pytest

from tests.cli.support import mounted, records, save_checkpoint


def contents(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_the_same_command_measures_nothing_twice(ptq_eval, material, quick, out):
    before = contents(out / "records")
    answer = ptq_eval("run", material.run, "-o", out, *quick)
    assert (answer.code, answer.err) == (0, "")
    assert contents(out / "records") == before


def test_a_grid_may_grow(ptq_eval, material, quick, out):
    before = records(out)
    answer = ptq_eval("run", material.run, "-o", out, *quick, "--bits", "4,5")
    assert (answer.code, answer.err) == (0, "")
    assert records(out)[: len(before)] == before
    assert len(records(out)) == len(before) + 3
    table = pd.read_csv(out / "degradation.csv")
    assert sorted(table["bits"].dropna().unique()) == [3, 4, 5]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--symmetric",), "got --symmetric |"),
        (("--group-size", "16"), "--group-size 16"),
        (("--seq-len", "8"), "--seq-len 8"),
        (("--eval-windows", "3"), "--eval-windows 3"),
        (("--dtype", "bfloat16"), "--dtype bfloat16"),
        (("--option", "rtn.mse=true"), "rtn {'mse': True}"),
    ],
)
def test_other_options_are_refused(ptq_eval, material, quick, out, flags, said):
    before = contents(out)
    answer = ptq_eval("run", material.run, "-o", out, *quick, *flags)
    answer.refuses(21, "other options", said, "choose another -o")
    assert contents(out) == before


def test_another_trajectory_is_refused(ptq_eval, material, trajectory, quick, out, tmp_path):
    before = contents(out)
    shutil.copytree(trajectory / "checkpoint-100", tmp_path / "other" / "checkpoint-7")
    (tmp_path / "other" / "checkpoint-7" / "trainer_state.json").unlink()
    answer = ptq_eval("run", tmp_path / "other", "-o", out, *quick)
    answer.refuses(21, "another trajectory", "runs other", "runs tiny")
    save_checkpoint(trajectory / "checkpoint-200", material.evaluation.read_text(), seed=99, step=200)
    answer = ptq_eval("run", trajectory, "-o", out, *quick)
    answer.refuses(21, "another trajectory", "tiny step 200 with weights")
    assert contents(out) == before


def test_another_text_is_refused(ptq_eval, material, quick, out, tmp_path):
    before = contents(out)
    answer = ptq_eval("run", material.run, "-o", out, *quick, "--eval-text", material.calibration)
    answer.refuses(21, "--eval-text")
    changed = tmp_path / "changed" / material.evaluation.name
    changed.parent.mkdir()
    changed.write_text("total " + material.evaluation.read_text())
    kept = material.evaluation.read_text()
    try:
        material.evaluation.write_text(changed.read_text())
        answer = ptq_eval("run", material.run, "-o", out, *quick)
    finally:
        material.evaluation.write_text(kept)
    answer.refuses(21, "another evaluation text", "digest")
    assert contents(out) == before


def test_a_damaged_run_json(ptq_eval, material, quick, out):
    before = records(out)
    damaged = [b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"checkpoints": 3}', b'{"fixed": {}, "checkpoints": [1]}']
    for content in damaged:
        (out / "run.json").write_bytes(content)
        for command in (["run", material.run, "-o", out, *quick], ["fit", out], ["report", out]):
            ptq_eval(*command).refuses(21, "run.json", "damaged", "delete that file")
    (out / "run.json").unlink()
    answer = ptq_eval("run", material.run, "-o", out, *quick)
    assert (answer.code, answer.err) == (0, "")
    assert records(out) == before


def test_damaged_records_are_excluded_and_measured_again(ptq_eval, material, quick, out):
    (path,) = (out / "records").iterdir()
    lines = path.read_bytes().splitlines(keepends=True)
    junk = [b"\n", b"null\n", b"[1, 2]\n", b'{"trial": 3}\n', b"\xff\xfe\n", b'{"trial": {"checkpoint": []}}\n']
    path.write_bytes(b"".join([*junk, *lines[:-1], lines[-1][:-40]]))
    answer = ptq_eval("run", material.run, "-o", out, *quick, "--bits", "3,4")
    assert (answer.code, answer.err) == (0, "")
    assert len(pd.read_csv(out / "degradation.csv")) == len(lines)
    assert path.read_bytes().count(b"\n") == len(junk) + len(lines)  # the torn line was removed, and measured again


@pytest.mark.parametrize("command", ["fit", "report"])
def test_folders_that_are_no_output(ptq_eval, material, out, tmp_path, command):
    (tmp_path / "nothing").mkdir()
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "missing", tmp_path / "nothing", tmp_path / "file", material.run):
        ptq_eval(command, folder).refuses(25, "not an output folder", "ptq-eval run")
    for path in (out / "records").iterdir():
        path.write_text("torn")
    ptq_eval(command, out).refuses(25, "no measurements")


def test_an_output_that_is_a_file_or_in_one(ptq_eval, material, quick, tmp_path):
    (tmp_path / "file").write_text("mine")
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        ptq_eval("run", material.run, "-o", out, *quick).refuses(32, "the output folder is a file", "choose another -o")
    assert (tmp_path / "file").read_text() == "mine"


def test_a_folder_that_may_not_be_written(ptq_eval, material, quick, tmp_path):
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o555)
    with mounted(locked, "ro") if os.geteuid() == 0 else nullcontext():  # nothing is locked to root
        for out in (locked, locked / "out"):
            answer = ptq_eval("run", material.run, "-o", out, *quick)
            answer.refuses(22, "cannot be written", str(locked), "remedy: choose another place")
        assert list(locked.iterdir()) == []


def test_another_process_is_writing(ptq_eval, material, quick, out):
    from ptq_eval.results.store import Store

    with Store(out).writer():
        ptq_eval("run", material.run, "-o", out, *quick).refuses(21, "another process", "--shard 1/2, --shard 2/2")


@pytest.mark.slow
def test_shards_fill_one_folder(ptq_eval, material, quick, tmp_path):
    for shard in ("1/4", "2/4", "3/4", "4/4"):  # one more than there are checkpoints
        answer = ptq_eval("run", material.run, "-o", tmp_path / "out", *quick, "--shard", shard)
        assert (answer.code, answer.err) == (0, "")
    assert len(pd.read_csv(tmp_path / "out" / "degradation.csv")) == 6
    assert len(records(tmp_path / "out")) == 6


def test_a_loss_no_better_than_a_guess_is_named(ptq_eval, material, quick, tmp_path):
    """The models of these tests are untrained; their tokenizer has 300 entries, and ln 300 = 5.70."""
    answer = ptq_eval("run", material.run, "-o", tmp_path / "out", *quick)
    assert "equally likely tokens have 5.70" in answer.out + answer.err
    assert "untrained" in (tmp_path / "out" / "report.md").read_text()
