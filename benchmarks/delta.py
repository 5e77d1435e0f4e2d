"""Is delta right?  `ptq_eval.run` against code that replaces the weights and loops over the windows.

The naive code (`naive`) takes from the package only the token windows and the names of the matrices.  For RTN both do
the same arithmetic up to the order of sums in a forward pass.  GPTQ and AWQ decide between codes, exponents and column
orders by comparing sums, so a last bit can tip a code; the difference is then held to the standard error of delta.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch

import ptq_eval
from benchmarks import naive
from benchmarks.harness import Claim, Outcome, Setup
from benchmarks.subjects import bare_model, demo_options, last_of_each_run
from ptq_eval.config import RunConfig
from ptq_eval.measure.trials import Workload, make_plan

METHODS = {"rtn": (naive.rtn, False), "gptq": (naive.gptq, True), "awq": (naive.awq, False)}
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
        table = ptq_eval.run(checkpoint.location, Path(out) / "run", write_report=False, **options)
    measured = {(row["quantizer"], row["bits"]): row for row in table.to_dict("records")}
    before = naive.losses(bare_model(work.folder), torch.tensor(work.evaluation.ids, dtype=torch.long))
    outcome = Outcome(details={"checkpoint": checkpoint.name, "options": options, "cells": []})
    for name in METHODS:
        for bits in options["bits"]:
            row = measured[name, bits]
            direct = naive_delta(work, name, bits, before)
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


def naive_delta(work: Workload, name: str, bits: int, before: list[float]) -> float:
    """Mean loss under the naive quantizer minus the mean of `before`."""
    solve, sequential = METHODS[name]
    assert work.calibration is not None
    assert work.trials[-1].scheme is not None
    size = work.trials[-1].scheme.group_size
    assert size is not None
    model = bare_model(work.folder)
    calibration = torch.tensor(work.calibration.ids, dtype=torch.long)
    naive.quantize(model, naive.linear_names(model), calibration, solve, bits, size, sequential=sequential)
    after = naive.losses(model, torch.tensor(work.evaluation.ids, dtype=torch.long))
    return sum(b - a for a, b in zip(before, after)) / len(before)


def _claim(outcome: Outcome, name: str, what: str, limit: float) -> Claim:
    cells = [cell for cell in outcome.details["cells"] if cell["quantizer"] == name]
    gaps = [abs(cell["delta"] - cell["naive"]) / (1 if name == "rtn" else cell["delta_se"]) for cell in cells]
    bits = ", ".join(str(cell["bits"]) for cell in cells)
    return Claim(f"{name}: {what}, largest over {bits} bits", max(gaps), min(gaps), max(gaps), limit)
