"""Whether a device changes what a sweep finds: a trained checkpoint, on a CPU and on the device, in float32.

Kernels, sums and products differ between devices, so codes on the edge between two values may differ and so may the
last digits of a loss.  What must not differ is δ: its difference is given in units of its own paired standard error.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from benchmarks.harness import ROOT, Claim
from benchmarks.subjects import last_of_each_run
from ptq_eval.config.run import RunConfig
from ptq_eval.measure.sweep import sweep
from ptq_eval.measure.trials import make_plan
from ptq_eval.records import Checkpoint

BITS, GROUP, LENGTH = (2, 3, 4, 8), 16, 128
LIMIT = 1.0
"""Standard errors of δ."""

Deltas = dict[tuple[str, int], np.ndarray]
"""Per method and bits, δ per token of every window [windows]."""


def compared(device: str, eval_windows: int, calib_windows: int) -> tuple[dict[str, Any], list[Claim]]:
    """δ of RTN, GPTQ and AWQ on a CPU and on `device`, nats per token, as a table, and the claim that they agree."""
    checkpoint = last_of_each_run(ROOT / "examples" / "trajectory")[-1]
    sizes = {"eval_windows": eval_windows, "calib_windows": calib_windows}
    here, there = (_deltas(checkpoint, where, sizes) for where in ("cpu", device))
    rows, apart = [], []
    for (method, bits), on_cpu in here.items():
        on_device = there[method, bits]
        error = float(on_cpu.std(ddof=1)) / math.sqrt(len(on_cpu))
        gap = float(on_device.mean() - on_cpu.mean())
        rows.append([method, bits, float(on_cpu.mean()), float(on_device.mean()), error, gap])
        apart.append(abs(gap) / error)
    columns = ["method", "bits", "δ on a CPU", f"δ on {device}", "s.e.", "difference"]
    name = f"δ on {device} less that on a CPU, in standard errors of δ, largest of {len(rows)}"
    claim = Claim(name, max(apart), min(apart), max(apart), LIMIT)
    return {"checkpoint": checkpoint.name, **sizes, "columns": columns, "rows": rows}, [claim]


def _deltas(checkpoint: Checkpoint, device: str, sizes: dict[str, int]) -> Deltas:
    config = RunConfig(bits=BITS, group_size=GROUP, seq_len=LENGTH, device=device, **sizes)
    work = make_plan([checkpoint], config).workloads[0]
    losses = {}
    for measured in sweep(work, work.trials, device=device, tick=lambda _: None):
        scheme = measured.trial.scheme
        losses[measured.trial.quantizer, scheme.bits if scheme else 0] = np.divide(measured.nll, measured.n_tokens)
    full = losses.pop(("none", 0))
    return {key: nll - full for key, nll in losses.items()}
