"""The command line called in this process, and a small real trajectory to call it on."""

import os
import shutil
import sys
import warnings
from types import SimpleNamespace

import pytest

from tests.cli.support import Answer, last_of_each, save_checkpoint, write_text


@pytest.fixture(scope="session")
def material(tmp_path_factory):
    """A run of three checkpoints and two texts, made once: `run`, `evaluation`, `calibration`."""
    root = tmp_path_factory.mktemp("material")
    text = write_text(root / "evaluation.txt", 0)
    for place, step in enumerate((100, 200, 300)):
        save_checkpoint(root / "tiny" / f"checkpoint-{step}", text, seed=place, step=step)
    write_text(root / "calibration.txt", 1)
    return SimpleNamespace(run=root / "tiny", evaluation=root / "evaluation.txt", calibration=root / "calibration.txt")


@pytest.fixture
def trajectory(material, tmp_path):
    """A copy of the run that a test may break."""
    return shutil.copytree(material.run, tmp_path / "tiny")


@pytest.fixture
def quick(material):
    """Options that make a run take a second."""
    return [
        *("--eval-text", str(material.evaluation), "--calib-text", str(material.calibration)),
        *("--seq-len", "16", "--eval-windows", "4", "--calib-windows", "2", "--quantizers", "rtn"),
        *("--bits", "4", "--bootstrap", "10", "--device", "cpu"),
    ]


@pytest.fixture
def ptq_eval(monkeypatch, capfd, tmp_path):
    """ptq_eval(*arguments) -> Answer: the entry point of `ptq-eval`, in an empty working directory.

    A flag replaces an earlier one of the same name (of `quick`), unless `repeated`.
    """
    from ptq_eval.cli.main import main

    def show(message, category, *_):  # as without pytest: a warning is a line on stderr
        sys.stderr.write(f"{category.__name__}: {message}\n")

    monkeypatch.setattr(warnings, "showwarning", show)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")

    def call(*arguments, repeated=False):
        arguments = arguments if repeated else last_of_each(arguments)
        monkeypatch.setattr(sys, "argv", ["ptq-eval", *map(os.fspath, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as leaving:
            main()
        return Answer(leaving.value.code, *capfd.readouterr())

    return call


@pytest.fixture(scope="session")
def measured(material, tmp_path_factory):
    """An output folder of the run, measured with the options of `quick` and RTN at 3 and 4 bits."""
    import ptq_eval

    out = tmp_path_factory.mktemp("measured") / "out"
    ptq_eval.run(
        material.run,
        out,
        eval_text=str(material.evaluation),
        calib_text=str(material.calibration),
        seq_len=16,
        eval_windows=4,
        calib_windows=2,
        quantizers=("rtn",),
        bits=(3, 4),
        bootstrap=10,
    )
    return out


@pytest.fixture
def out(measured, tmp_path):
    """A copy of that output folder."""
    return shutil.copytree(measured, tmp_path / "out")
