"""Architecture: laws are numpy and scipy only, and fast enough to be rerun at will."""

import subprocess
import sys
import time

import numpy as np

from ptq_eval.laws import analyse
from tests.laws.synthetic import table


def test_importing_laws_loads_no_heavy_package():
    code = (
        "import sys, ptq_eval.laws, ptq_eval.laws.fit.folder\n"
        "import ptq_eval.laws.formulas.chinchilla, ptq_eval.laws.formulas.kumar\n"
        "print(sorted({'torch', 'pandas', 'transformers', 'quantizers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_whole_grid_is_analysed_within_ten_seconds():
    rows, windows = table(np.random.default_rng(0), quantizers=("rtn", "gptq", "awq"), windows=128)
    assert len(rows) == 2 * 10 * (1 + 3 * 4)
    start = time.process_time()
    analyse(rows, windows, n_boot=200)
    assert time.process_time() - start < 10
