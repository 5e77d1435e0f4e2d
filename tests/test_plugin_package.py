"""Architecture: a second, real package adds a quantizer without any change here."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

PACKAGE = Path(__file__).parent / "plugin_package"


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """PYTHONPATH of a folder into which pip has built and installed the package, with nothing else."""
    pytest.importorskip("hatchling", reason="building a package takes its build backend")
    pytest.importorskip("pip", reason="installing a package takes pip")
    folder = tmp_path_factory.mktemp("plugin")
    source = shutil.copytree(PACKAGE, folder / "source")
    flags = ["--no-deps", "--no-build-isolation", "--no-index", "--no-compile", "--disable-pip-version-check"]
    install = [sys.executable, "-m", "pip", "install", *flags, "--target", str(folder / "site"), str(source)]
    done = subprocess.run(install, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (folder / "site" / "ptq_eval_roundup.py").is_file()
    return os.pathsep.join(filter(None, [str(folder / "site"), os.environ.get("PYTHONPATH", "")]))


def test_it_is_not_installed_without_that_folder():
    from quantizers import available_quantizers

    assert "power-of-two" not in available_quantizers(), "the tests below would show nothing"


CHECK = """
from quantizers import get_quantizer
from quantizers.testing import check_quantizer
check_quantizer(lambda: get_quantizer("power-of-two"))
check_quantizer(lambda: get_quantizer("power-of-two", smallest=-80))
from ptq_eval.cli.main import main
main()
"""


@pytest.mark.slow
def test_it_conforms_and_is_listed(installed, python):
    done = python("-c", CHECK, "quantizers", PYTHONPATH=installed)
    assert done.returncode == 0, done.stderr
    (row,) = [line for line in done.stdout.splitlines() if "power-of-two" in line]
    assert "ptq-eval-roundup 0.3" in row
    assert "smallest" in row


@pytest.mark.slow
def test_it_works_in_a_run(installed, trajectory, small, texts, tmp_path, python):
    out = tmp_path / "out"
    flags = {
        "--quantizers": "power-of-two,rtn",
        "--bits": "3",
        "--group-size": "16",
        "--eval-text": texts.evaluation,
        "--seq-len": "32",
        "--eval-windows": "12",
        "--bootstrap": "10",
        "--device": "cpu",
        "--option": "power-of-two.smallest=-50",
    }
    flat = [part for pair in flags.items() for part in pair]
    done = python("-m", "ptq_eval", "run", trajectory, "-o", out, *flat, PYTHONPATH=installed)
    assert done.returncode == 0, done.stderr
    table = pd.read_csv(out / "degradation.csv")
    kl = table[table["bits"] == 3].pivot_table(index="step", columns="quantizer", values="kl")
    assert len(kl) == 3
    assert (kl["power-of-two"] > kl["rtn"]).all(), "coarser scales must lose more"
    info = json.loads((out / "run.json").read_text(encoding="utf-8"))
    assert info["plugins"]["power-of-two"] == "ptq-eval-roundup 0.3"
    mine = table[table["quantizer"] == "power-of-two"]
    assert mine["options"].map(json.loads).tolist() == [{"smallest": -50}] * 3
