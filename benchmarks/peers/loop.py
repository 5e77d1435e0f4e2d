"""The loop over other packages that a user would write: its cells measured, and counted for a whole grid.

For every checkpoint, method and bit-width: load, calibrate, quantize, evaluate, with the fastest package of each method
(`FASTEST`, from what `methods` measures).  Its cells are measured on one checkpoint, in one process per package, and
counted once for every checkpoint, because the time of a cell depends on shapes alone; a bit-width that a package does
not have counts as its 4 bits do.  Two ways to count what follows quantizing:

- *as its packages offer it*, all of it measured: each model is saved as its package packs it, reloaded, and evaluated
  by a plain loop over the same windows in the same batches (see `kept`).  Granted are two things that a loop need not
  have: imports are paid once a package, and full precision is evaluated once a checkpoint.
- *granted*, a lower bound: nothing is saved or reloaded, and a cell's evaluation is a bare pass of the dense model
  within this process, looking at no logits.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.harness import clock
from benchmarks.peers.jobs import Cell, run_driver
from benchmarks.subjects import TRAINED_GROUP, bare_model, bare_passes, prepared
from ptq_eval.measure.evaluate import batch_size
from ptq_eval.models.language_model import LanguageModel
from ptq_eval.records import Checkpoint

FASTEST = {"rtn": "llm-compressor", "gptq": "neural-compressor", "awq": "auto-round"}
BITS = (2, 3, 4, 8)
AFTER = ("save", "reload", "evaluate")
PARTS = ("load", "quantize", *AFTER)

Loop = dict[str, Any]
"""{"packages": {name: {"import", "full"}}, "cells": {method: {bits: cell}}, "bare": seconds of a bare pass}."""


def weights_of(folder: Path, method: str, bits: int) -> Path:
    """The file of the dense weights that a cell leaves below `folder`."""
    return folder / f"{method}-{bits}.safetensors"


def measured(
    checkpoint: Checkpoint, folder: Path, windows: dict[str, Any], threads: int, measuring: Sequence[int] = BITS
) -> Loop | None:
    """The loop's cells on one checkpoint, those of `measuring` bits standing in for the others (4 among them); None if
    a package of the loop is missing.  `windows` are options of a run."""
    work, calibration = prepared(checkpoint, folder, **windows)
    module, ids = bare_model(work.folder), torch.tensor(work.evaluation.ids, dtype=torch.long)
    batch, evaluation = batch_size(LanguageModel(module), ids.shape[1]), folder / "evaluation.npy"
    np.save(evaluation, ids.numpy())
    found: Loop = {"packages": {}, "cells": {}}
    for side in dict.fromkeys(FASTEST.values()):
        methods = [method for method in FASTEST if FASTEST[method] == side]
        cells = [
            Cell(method, bits, TRAINED_GROUP, False, str(weights_of(folder, method, bits)))
            for method in methods
            for bits in measuring
        ]
        job = {"evaluation": str(evaluation), "batch": batch}
        result = run_driver(side, work.folder, calibration, cells, threads=threads, **job)
        done = [cell for cell in result["cells"] if "error" not in cell] if result else []
        if not result or {cell["method"] for cell in done} != set(methods):
            return None
        found["packages"][side] = {"import": result["import"]["wall"], "full": _seconds(result["full"])}
        for method in methods:
            own = {cell["bits"]: _seconds(cell) for cell in done if cell["method"] == method}
            stand_in = own.get(4, next(iter(own.values())))
            found["cells"][method] = {bits: own.get(bits, {**stand_in, "stands in": True}) for bits in BITS}
    found["bare"] = statistics.median(clock(lambda: bare_passes(module, ids, batch, 1)).wall for _ in range(3))
    return found


def _seconds(cell: dict[str, Any]) -> dict[str, Any]:
    """What is kept of a driver's cell: wall seconds by part, and what says which model was evaluated."""
    shown = ("form", "reason", "type", "bytes", "loss")
    return {**{part: cell[part]["wall"] for part in PARTS if part in cell}, **{k: cell[k] for k in shown if k in cell}}


def seconds(loop: Loop, checkpoints: int) -> dict[str, float]:
    """Seconds of the loop over all checkpoints: "quantizing" alone, and everything in the two ways of counting.

    "again" is "offered" with a full-precision evaluation, a bare pass, in every cell instead of one a checkpoint;
    "evaluations" what the same evaluations are if each is a bare pass.
    """
    cells = [cell for of_method in loop["cells"].values() for cell in of_method.values()]
    quantizing = checkpoints * sum(cell["load"] + cell["quantize"] for cell in cells)
    imports = sum(package["import"] for package in loop["packages"].values())
    evaluations = checkpoints * (1 + len(cells)) * loop["bare"]
    full = min(package["full"]["load"] + package["full"]["evaluate"] for package in loop["packages"].values())
    offered = quantizing + imports + checkpoints * (full + sum(cell[part] for cell in cells for part in AFTER))
    return {
        "quantizing": quantizing,
        "granted": quantizing + imports + evaluations,
        "offered": offered,
        "again": offered + checkpoints * (len(cells) - 1) * loop["bare"],
        "evaluations": evaluations,
    }


def table(loops: Sequence[Loop], losses: dict[str, float], folder: Path) -> dict[str, Any]:
    """What became of the loop's models: seconds by part, medians of the turns, and the loss after reloading.

    `losses` are those of the dense weights below `folder`, under our evaluator.
    """
    rows: list[list[Any]] = []
    for method, cells in loops[-1]["cells"].items():
        for bits, cell in cells.items():
            if cell.get("stands in"):
                continue
            times = [[loop["cells"][method][bits][part] for loop in loops] for part in PARTS]
            off = cell["loss"] - losses[str(weights_of(folder, method, bits))]
            form = f"{cell['form']}, {cell['type'].removeprefix('torch.')}"
            size, reason = cell["bytes"] / 1e6, cell.get("reason")
            rows.append([method, bits, FASTEST[method], *map(statistics.median, times), form, size, off, reason])
    return {
        "note": "Wall seconds, medians, of one checkpoint. The difference is that of the loss, nats per token, that "
        "the reloaded model has in its package's environment, from that of the dense weights under our evaluator.",
        "columns": ["method", "bits", "package", *PARTS, "form", "MB", "difference", "why dense"],
        "rows": rows,
    }
