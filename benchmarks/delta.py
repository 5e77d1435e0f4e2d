"""Is delta right?  `ptq_eval.run` against code that replaces the weights and loops over the windows.

The naive code (`tests/reference/delta.py`) takes only the token windows from the package.  For RTN both do the same
arithmetic up to the order of sums in a forward pass.  GPTQ and AWQ decide between codes and exponents by comparing
sums, so a last bit can change a code; the difference is then compared with the standard error of delta.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch

import ptq_eval
from benchmarks.harness import Claim, Outcome, Setup
from benchmarks.subjects import demo_options, last_of_each_run
from ptq_eval.config.run import RunConfig
from ptq_eval.measure.trials import Workload, make_plan
from tests.reference import delta as reference

METHODS = {
    "rtn": (reference.round_to_nearest, False),
    "gptq": (reference.solve_gptq, True),
    "awq": (reference.solve_awq, False),
}
"""Quantizer: (naive code, whether each layer sees inputs from already quantized layers)."""


def measure(setup: Setup) -> Outcome:
    """The last checkpoint of the largest model, under the options of the demo."""
    checkpoint = last_of_each_run(setup.trajectory)[-1]
    options = {
        **demo_options(),
        "eval_windows": 64 if setup.quick else 256,
        "bits": (2, 3) if setup.quick else (2, 3, 4, 8),
    }
    work = make_plan([checkpoint], RunConfig(**options)).workloads[0]
    with tempfile.TemporaryDirectory() as out:
        table = ptq_eval.run(checkpoint.location, Path(out) / "run", write_report=False, **options).table
    measured = {(row["quantizer"], row["bits"]): row for row in table.to_dict("records")}
    outcome = Outcome(details={"checkpoint": checkpoint.name, "options": options, "cells": []})
    for name in METHODS:
        for bits in options["bits"]:
            row = measured[name, bits]
            direct = naive_delta(work, name, bits)
            outcome.details["cells"].append(
                {
                    "quantizer": name,
                    "bits": bits,
                    "delta": float(row["delta"]),
                    "delta_se": float(row["delta_se"]),
                    "naive": direct,
                }
            )
    outcome.claims = [
        _claim(outcome, "rtn", "difference of δ from naive code, nats", 1e-6),
        _claim(outcome, "gptq", "difference of δ from naive code, in standard errors of δ", 1.0),
        _claim(outcome, "awq", "difference of δ from naive code, in standard errors of δ", 1.0),
    ]
    return outcome


def naive_delta(work: Workload, name: str, bits: int) -> float:
    """Loss after minus loss before, by the naive code."""
    solve, sequential = METHODS[name]
    assert work.calibration is not None
    assert work.trials[-1].scheme is not None
    size = work.trials[-1].scheme.group_size
    windows, calibration = (torch.tensor(w.ids, dtype=torch.long) for w in (work.evaluation, work.calibration))
    calibrated = {"calibration": calibration, "sequential": sequential}
    return reference.naive_delta(work.folder, windows, None, bits, size, solve, **calibrated)[1]


def _claim(outcome: Outcome, name: str, what: str, limit: float) -> Claim:
    cells = [cell for cell in outcome.details["cells"] if cell["quantizer"] == name]
    gaps = [abs(cell["delta"] - cell["naive"]) / (1 if name == "rtn" else cell["delta_se"]) for cell in cells]
    bits = ", ".join(str(cell["bits"]) for cell in cells)
    return Claim(f"{name}: {what}, largest over {bits} bits", max(gaps), min(gaps), max(gaps), limit)
