"""Contract: what is in an output folder is never mixed with anything else, and never lost."""

import json
import os
import resource
import shutil
import subprocess
import tempfile
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
import pytest
from cli_support import records, save_checkpoint


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
        (("--symmetric",), "--symmetric True"),
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


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"checkpoints": 3}', b'{"fixed": {}, "checkpoints": [1]}']
)
def test_a_damaged_run_json(ptq_eval, material, quick, out, content):
    before = records(out)
    (out / "run.json").write_bytes(content)
    for command in (["run", material.run, "-o", out, *quick], ["fit", out], ["report", out]):
        ptq_eval(*command).refuses(21, "run.json", "damaged", "delete that file")
    (out / "run.json").unlink()
    answer = ptq_eval("run", material.run, "-o", out, *quick)
    assert (answer.code, answer.err) == (0, "")
    assert records(out) == before


def test_damaged_records_are_left_out_and_measured_again(ptq_eval, material, quick, out):
    (path,) = (out / "records").iterdir()
    lines = path.read_bytes().splitlines(keepends=True)
    junk = [b"\n", b"null\n", b"[1, 2]\n", b'{"trial": 3}\n', b"\xff\xfe\n", b'{"trial": {"checkpoint": []}}\n']
    path.write_bytes(b"".join([*junk, *lines[:-1], lines[-1][:-40]]))
    answer = ptq_eval("run", material.run, "-o", out, *quick, "--bits", "3,4")
    assert (answer.code, answer.err) == (0, "")
    assert len(pd.read_csv(out / "degradation.csv")) == len(lines)
    assert path.read_bytes().count(b"\n") == len(junk) + len(lines) + 1  # the torn line was ended, and measured again


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
        ptq_eval("run", material.run, "-o", out, *quick).refuses(22, "cannot be written", "remedy: choose another -o")
    assert (tmp_path / "file").read_text() == "mine"


@contextmanager
def nobody():
    """Without the privileges of root, to whom every folder is writable."""
    if os.geteuid() == 0:
        os.seteuid(65534)
        try:
            yield
        finally:
            os.seteuid(0)
    else:
        yield


def test_a_folder_that_may_not_be_written(ptq_eval, material, quick, monkeypatch):
    with tempfile.TemporaryDirectory() as open_to_all:
        os.chmod(open_to_all, 0o755)
        run = shutil.copytree(material.run, Path(open_to_all) / "tiny")
        for text in (material.evaluation, material.calibration):
            shutil.copy(text, open_to_all)
        locked = Path(open_to_all) / "locked"
        locked.mkdir()
        locked.chmod(0o555)
        monkeypatch.chdir(open_to_all)
        texts = ("--eval-text", "evaluation.txt", "--calib-text", "calibration.txt")
        with nobody():
            answer = ptq_eval("run", run, "-o", locked / "out", *quick, *texts)
            into = ptq_eval("run", run, "-o", locked, *quick, *texts)
        answer.refuses(22, "cannot be written", "Permission denied", "remedy: choose another -o")
        into.refuses(22, "cannot be written")
        assert list(locked.iterdir()) == []


@contextmanager
def largest_file(size):
    """No file may grow beyond `size` bytes: the system refuses, as a full disk would."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


LARGE = ("--eval-windows", "80", "--bits", "3,4,5")  # records that outgrow run.json
FIRST_TO_FAIL = ["run.json", "records", "degradation.csv", "figures/delta_vs_ratio.png"]


@pytest.fixture(scope="module")
def complete(material, tmp_path_factory):
    """An uninterrupted run of the same grid."""
    import ptq_eval

    out = tmp_path_factory.mktemp("complete") / "out"
    texts = {"eval_text": str(material.evaluation), "calib_text": str(material.calibration)}
    grid = {"quantizers": ("rtn",), "bits": (3, 4, 5), "seq_len": 16, "eval_windows": 80, "calib_windows": 2}
    ptq_eval.run(material.run, out, **texts, **grid, bootstrap=10)
    return out


def numbers(out):
    """The stored records without what may differ between two identical measurements."""
    return [{name: value for name, value in json.loads(line).items() if name != "provenance"} for line in records(out)]


def test_no_room_at_each_place_that_writes(ptq_eval, material, quick, complete, tmp_path):
    """The limit is raised to just below the first file that fails, then to the next: each time work is kept."""
    command = ("run", material.run, "-o", tmp_path / "out", *quick, *LARGE)
    sizes = {path.relative_to(complete).as_posix(): path.stat().st_size for path in complete.rglob("*.*")}
    stored, room = [], 0
    steps = [100, sizes["run.json"] + 2000, sizes["records/worker-1-of-1.jsonl"] + 100]
    assert steps == sorted(steps), sizes
    for size in steps:
        with largest_file(size):
            answer = ptq_eval(*command)
        answer.refuses(22, "remedy", "kept" if room < 2 else "no measurement is lost")
        assert [*(tmp_path / "out").rglob("*tmp")] == []
        assert [*(tmp_path / "out").glob(".run.json*")] == []
        assert numbers(tmp_path / "out")[: len(stored)] == stored
        stored, room = numbers(tmp_path / "out"), room + 1
        assert (tmp_path / "out" / "run.json").exists() == (size > 100)
    assert len(stored) == 12
    assert not (tmp_path / "out" / "figures" / "delta_vs_ratio.png").exists()
    answer = ptq_eval(*command)
    assert (answer.code, answer.err) == (0, "")
    assert numbers(tmp_path / "out") == numbers(complete)
    written = (tmp_path / "out" / "degradation.csv").read_bytes()
    assert written == (complete / "degradation.csv").read_bytes()


@pytest.fixture
def small_disk(tmp_path):
    """A real file system of 24 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=24k", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("only root may mount a small file system")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_recovery_from_a_full_disk(ptq_eval, material, quick, complete, small_disk):
    command = ("run", material.run, "-o", small_disk / "out", *quick, *LARGE)
    answer = ptq_eval(*command)
    answer.refuses(22, "no space left", "free some space", "kept")
    kept = numbers(small_disk / "out")
    assert 0 < len(kept) < 12
    assert kept == numbers(complete)[: len(kept)]
    subprocess.run(["mount", "-o", "remount,size=4m", str(small_disk)], check=True)
    answer = ptq_eval(*command)
    assert (answer.code, answer.err) == (0, "")
    assert numbers(small_disk / "out") == numbers(complete)


def test_no_room_for_a_new_fit_or_report(ptq_eval, out):
    before = contents(out)
    for command in ("fit", "report"):
        with largest_file(500):
            ptq_eval(command, out).refuses(22, "cannot write", "no measurement is lost")
    assert contents(out) == before


def test_another_process_is_writing(ptq_eval, material, quick, out):
    from ptq_eval.store import Store

    with Store(out).writer():
        ptq_eval("run", material.run, "-o", out, *quick).refuses(21, "another process", "--shard 1/2, --shard 2/2")


def test_shards_fill_one_folder(ptq_eval, material, quick, tmp_path):
    for shard in ("1/4", "2/4", "3/4", "4/4"):  # one more than there are checkpoints
        answer = ptq_eval("run", material.run, "-o", tmp_path / "out", *quick, "--shard", shard)
        assert (answer.code, answer.err) == (0, "")
    assert len(pd.read_csv(tmp_path / "out" / "degradation.csv")) == 6
    assert len(records(tmp_path / "out")) == 6
