"""GPTQ and AWQ exports in GPTQModel itself, in its own environment: `make backends-test BACKENDS=gptqmodel`."""

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest

from ptq_eval import export
from ptq_eval.backends.environments import backend_of, install, place_of, status_of
from ptq_eval.checkpoints import discover, verify_all
from ptq_eval.config.run import RunConfig
from ptq_eval.measure.trials import make_plan

pytestmark = [pytest.mark.backends, pytest.mark.slow, pytest.mark.timeout(1800)]

CHECKPOINT = Path(__file__).parents[2] / "examples" / "trajectory" / "llama-160k" / "checkpoint-31288"
SIZES = {"eval_windows": 16, "calib_windows": 8, "group_size": 32}
EXPORTS = {
    "gptq-4-symmetric": ("gptq", {"quantizers": "gptq", "bits": 4, "symmetric": True}),
    "gptq-4": ("gptq", {"quantizers": "gptq", "bits": 4}),
    "gptq-4-reordered": ("gptq", {"quantizers": "gptq", "bits": 4, "options": {"gptq": {"act_order": True}}}),
    "gptq-3": ("gptq", {"quantizers": "gptq", "bits": 3}),
    "gptq-2": ("gptq", {"quantizers": "gptq", "bits": 2}),
    "awq-4": ("awq", {"quantizers": "awq", "bits": 4}),
}


def test_gptqmodel_reads_exports_with_the_loss_that_was_measured(tmp_path):
    """In float16, the type of the scales in the files, which rounds the activations too."""
    if not status_of(backend_of("gptqmodel")).usable:
        install("gptqmodel")
    work = make_plan(verify_all(discover([CHECKPOINT])), RunConfig(quantizers=("gptq",), bits=(4,), **SIZES))
    np.save(tmp_path / "ids.npy", np.asarray(work.workloads[0].evaluation.ids))
    measured = {}
    for name, (file_format, options) in EXPORTS.items():
        recipe = export(CHECKPOINT, tmp_path / name, file_format=file_format, **SIZES, **options)
        measured[str(tmp_path / name)] = recipe["measured"]["loss_q"]
    place = place_of("gptqmodel")
    script = str(Path(__file__).with_name("gptqmodel_loss.py"))
    command = [str(place.python), script, str(tmp_path / "ids.npy"), *measured]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=tmp_path, env={**os.environ, **place.variables}
    )
    assert done.returncode == 0, done.stderr[-2000:]
    for folder, loss in json.loads(done.stdout.splitlines()[-1]).items():
        # At 3 and 2 bits, differences of eight exports were up to 1.7e-4: the limit is twice that.
        assert loss == pytest.approx(measured[folder], abs=1e-4 if "-4" in folder else 3.5e-4), folder
