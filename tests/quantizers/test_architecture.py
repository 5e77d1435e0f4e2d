"""Architecture: what `quantizers/` may import, and that an outside package adds a quantizer."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import quantizers

FOLDER = Path(quantizers.__file__).parent
ALLOWED = {"torch", "quantizers", *sys.stdlib_module_names}
COMPILED = {"cpu.py": {"numpy", "numba"}, "cuda.py": {"triton"}}  # loaded by need, and only where installed

OUTSIDE = '''
"""A quantizer of another distribution."""
from dataclasses import dataclass
from quantizers import Quantizer, option
from quantizers.rtn import RTN

@dataclass(frozen=True)
class Outside(Quantizer):
    """Rounds to nearest."""
    name = "outside"
    version = "1"
    needs_stats = False
    default_calibration = "none"
    mse: bool = option(False, "Passed on to RTN.")

    def quantize(self, weight, scheme, stats=None):
        return RTN(mse=self.mse).quantize(weight, scheme, stats)
'''


def run(code, **env):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **env}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_only_torch_is_imported_in_the_sources():
    for path in FOLDER.glob("**/*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{path.name} has a relative import"
                names = [node.module or ""]
            else:
                continue
            more = COMPILED.get(path.name, set()) if path.parent.name == "kernels" else set()
            for name in names:
                assert name.split(".")[0] in ALLOWED | more, f"{path.name} imports {name}"


def test_importing_changes_nothing_in_torch_and_loads_neither_ptq_eval_nor_transformers_nor_a_compiler():
    code = (
        "import sys, torch\n"
        "before = torch.get_rng_state(), torch.get_default_dtype(), torch.get_num_threads(),"
        " torch.is_grad_enabled()\n"
        "import quantizers, quantizers.testing\n"
        "[point.load() for name, point in quantizers.available_quantizers().items()]\n"
        "after = torch.get_rng_state(), torch.get_default_dtype(), torch.get_num_threads(),"
        " torch.is_grad_enabled()\n"
        "loaded = {m.split('.')[0] for m in sys.modules} & {'ptq_eval', 'transformers', 'pandas', 'numba'}\n"
        "print(torch.equal(before[0], after[0]) and before[1:] == after[1:], *sorted(loaded))"
    )
    assert run(code) == "True"


def test_an_outside_package_adds_a_quantizer(tmp_path):
    """A second distribution, as an installer lays it down, is found, listed, and conforms."""
    (tmp_path / "outside_package.py").write_text(OUTSIDE, encoding="utf-8")
    info = tmp_path / "outside_package-0.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: outside-package\nVersion: 0.1\n")
    (info / "entry_points.txt").write_text("[ptq_eval.quantizers]\noutside = outside_package:Outside\n")
    code = (
        "from quantizers import get_quantizer, available_quantizers\n"
        "from quantizers.testing import check_quantizer\n"
        "check_quantizer(lambda: get_quantizer('outside', mse=False))\n"
        "print(*available_quantizers())"
    )
    path = os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    assert "outside" in run(code, PYTHONPATH=path).split()
