"""Contract: what the package promises from outside: metadata, plug-ins, types, the two commands."""

import re
import subprocess
import sys
from importlib.metadata import entry_points, metadata, requires
from importlib.resources import files
from pathlib import Path

import pytest

import ptq_eval
from ptq_eval import plugins
from ptq_eval.errors import PtqEvalError, UnknownPluginError

ROOT = Path(__file__).resolve().parents[1]
CORE = {
    "torch",
    "transformers",
    "accelerate",
    "datasets",
    "safetensors",
    "click",
    "rich",
    "numpy",
    "scipy",
    "pandas",
    "matplotlib",
    "pyyaml",
    "numba",
    "psutil",  # accelerate requires it as well
    "markdown-it-py",  # rich requires it as well
}


def test_core_dependencies_are_the_agreed_ones():
    names = {re.split(r"[<>=\[; ]", line)[0].lower() for line in requires("ptq-eval") or () if "extra ==" not in line}
    assert names == CORE


def test_metadata_names_licence_and_python():
    about = metadata("ptq-eval")
    assert about["License-Expression"] == "MIT"
    assert about["Requires-Python"] == ">=3.11"
    assert "MIT License" in (ROOT / "LICENSE").read_text()


@pytest.mark.parametrize("package", ["ptq_eval", "quantizers"])
def test_packages_are_typed(package):
    assert files(package).joinpath("py.typed").is_file()


@pytest.mark.parametrize("kind", plugins.KINDS)
def test_every_entry_point_of_every_kind_loads(kind):
    found = [point for point in entry_points(group=f"ptq_eval.{kind}") if point.dist and point.dist.name == "ptq-eval"]
    assert found
    for point in found:
        assert isinstance(point.load(), type)
        assert plugins.get(kind, point.name) is point.load()


def test_an_unknown_plugin_is_answered_with_the_nearest_name():
    with pytest.raises(UnknownPluginError, match="did you mean 'gptq'"):
        plugins.get("quantizers", "gpqt")


def test_exit_codes_are_distinct():
    def below(cls):
        return [cls, *(deeper for sub in cls.__subclasses__() for deeper in below(sub))]

    codes = [cls.exit_code for cls in below(PtqEvalError) if cls.__module__ == "ptq_eval.errors"]
    assert len(codes) == len(set(codes))
    assert 0 not in codes
    assert 130 not in codes


def test_the_newcomer_needs_two_commands():
    makefile = (ROOT / "Makefile").read_text()
    readme = (ROOT / "README.md").read_text()
    for command in ("demo", "test"):
        assert re.search(rf"^{command}: \$\(STAMP\)$", makefile, re.MULTILINE), "sets up what it needs by itself"
        assert f"make {command}" in readme
    assert "make test" in (ROOT / ".ci" / "run").read_text().splitlines()


def test_importing_loads_no_torch_and_help_is_light():
    code = (
        "import sys, ptq_eval, ptq_eval.cli.main\n"
        "try:\n    ptq_eval.cli.main.cli.main(['--help'], standalone_mode=False)\n"
        "finally:\n    assert not {'torch', 'transformers', 'pandas', 'numba'} & set(sys.modules), 'heavy import'\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "ptq-eval inspect" in done.stdout


WITHOUT = """
import sys

class NotInstalled:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "transformers", "accelerate", "datasets", "quantizers"):
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, NotInstalled())
import ptq_eval
result = ptq_eval.load({out!r}, bootstrap=10)
ptq_eval.save_report({out!r}, result)
print(len(result.table))
"""


@pytest.mark.slow
def test_a_run_is_loaded_fitted_and_reported_where_there_is_no_torch(trajectory, small, tmp_path, python):
    result = ptq_eval.run(trajectory, tmp_path / "out", write_report=False, **{**small, "quantizers": ("rtn",)})
    done = python("-c", WITHOUT.format(out=str(tmp_path / "out")))
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == len(result.table)
    assert (tmp_path / "out" / "report.md").is_file()
