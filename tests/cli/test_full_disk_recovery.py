"""Recovery: a disk that is full at any of the places that write costs nothing that was measured."""

import subprocess

import pytest

from tests.cli.support import largest_file, mounted, numbers

LARGE = ("--eval-windows", "80", "--bits", "3,4,5")  # records that outgrow run.json


def files(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def complete(material, tmp_path_factory):
    """An uninterrupted run of the same grid."""
    import ptq_eval

    out = tmp_path_factory.mktemp("complete") / "out"
    texts = {"eval_text": str(material.evaluation), "calib_text": str(material.calibration)}
    grid = {"quantizers": ("rtn",), "bits": (3, 4, 5), "seq_len": 16, "eval_windows": 80, "calib_windows": 2}
    ptq_eval.run(material.run, out, **texts, **grid, bootstrap=10)
    return out


@pytest.mark.slow
def test_no_room_for_run_json_then_for_records(ptq_eval, material, quick, complete, tmp_path):
    out = tmp_path / "out"
    command = ("run", material.run, "-o", out, *quick, *LARGE)
    with largest_file(1500):
        ptq_eval(*command).refuses(22, "no space left", "remedy", "what is stored is kept")
    assert list(out.iterdir()) == []
    limit = (complete / "run.json").stat().st_size + 2000
    with largest_file(limit):
        ptq_eval(*command).refuses(22, "no space left", "remedy", "what is stored is kept")
    assert sorted(path.name for path in out.iterdir()) == ["planned", "records", "run.json"]
    kept = numbers(out)
    assert 0 < len(kept) < 12
    with largest_file(limit):
        ptq_eval(*command).refuses(22, "what is stored is kept")
    assert numbers(out) == kept
    answer = ptq_eval(*command)
    assert (answer.code, answer.err) == (0, "")
    assert numbers(out) == numbers(complete)
    assert (out / "degradation.csv").read_bytes() == (complete / "degradation.csv").read_bytes()


@pytest.mark.slow
@pytest.mark.drawn("png")
def test_no_room_for_the_figures(ptq_eval, material, quick, out, tmp_path):
    assert ptq_eval("report", out).code == 0  # draws the figures, which those of `measured` are not
    small = max(path.stat().st_size for path in out.rglob("*.*") if path.suffix not in (".png", ".pdf", ".html"))
    figure = (out / "figures" / "delta_vs_ratio.png").stat().st_size
    assert small + 1000 < figure
    with largest_file(small + 1000):
        answer = ptq_eval("run", material.run, "-o", tmp_path / "new", *quick, "--bits", "3,4")
    answer.refuses(22, "cannot write delta_vs_ratio.png", "no measurement is lost")
    assert numbers(tmp_path / "new") == numbers(out)
    assert not list((tmp_path / "new" / "figures").iterdir())
    answer = ptq_eval("report", tmp_path / "new")
    assert (answer.code, answer.err) == (0, "")
    new, old = ({path.relative_to(root) for path in root.rglob("*")} for root in (tmp_path / "new", out))
    assert new == old


@pytest.fixture
def small_disk(tmp_path):
    """A real file system of 24 KiB."""
    (tmp_path / "disk").mkdir()
    with mounted(tmp_path / "disk", "size=24k") as folder:
        yield folder


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
    before = files(out)
    for command in ("fit", "report"):
        with largest_file(500):
            ptq_eval(command, out).refuses(22, "cannot write", "no measurement is lost")
    assert files(out) == before
