"""A whole grid, 4 checkpoints × RTN, GPTQ, AWQ × 2, 3, 4, 8 bits, against the loop over other packages.

The loop is the one a user would write: for every checkpoint, method and bit-width, load, quantize, evaluate, with the
fastest package of each method (`FASTEST`, from what `methods` measures).  Its cells are measured on the last
checkpoint, each loaded anew in the package's own process, and counted once for every checkpoint, because the time of a
cell depends on shapes alone; a bit-width that a package does not have counts as its 4 bits do.  The loop is granted
what it would have to arrange itself: imports are paid once a package, full precision is evaluated once a checkpoint,
and a cell is evaluated by bare forward passes of the dense model, looking at no logits, although packed layers are
slower.

Two ratios.  "Quantizing" is everything but the evaluation: loading, calibration, quantizing, storing records, in
processes that have imported what they need.  "Everything" is the whole time of the command `ptq-eval run`, from start
to report, against imports, loading, quantizing and evaluation of the loop; the loop makes no report.
"""

from __future__ import annotations

import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from benchmarks.harness import Claim, Outcome, Setup, claim_of, clock
from benchmarks.methods import losses_of
from benchmarks.peers.jobs import Cell, run_driver
from benchmarks.subjects import TRAINED_GROUP, TRAINED_LENGTH, bare_model, bare_passes, prepared, trained_llama
from ptq_eval.config import RunConfig
from ptq_eval.evaluate import Evaluator, batch_size
from ptq_eval.models import LanguageModel
from ptq_eval.plan import Workload, make_plan
from ptq_eval.records import Checkpoint, Measurement
from ptq_eval.store import Store
from ptq_eval.sweep import sweep

FASTEST = {"rtn": "llm-compressor", "gptq": "llm-compressor", "awq": "auto-round"}
BITS = (2, 3, 4, 8)
QUANTIZING = {"shared": 10.0, "default": 4.0}
"""Limits of the first ratio: with one set of statistics for all, and with GPTQ's published sequential calibration."""

EVERYTHING = 4.0
TURNS = 2
OURS_PARTS = ("quantizing", "everything", "evaluating", "start, fit and report")


def measure(setup: Setup) -> Outcome:
    """Ours and the loop's cells by turns, then the bare passes that evaluate the loop's models."""
    checkpoints = trained_llama()
    windows = {"eval_windows": 16 if setup.quick else 256, "calib_windows": 4 if setup.quick else 64}
    threads = int(os.environ.get("OMP_NUM_THREADS", "1"))
    turns: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for turn in range(1 if setup.quick else TURNS):
            loop = _loop(checkpoints[-1], folder, windows, threads, save=turn == 0)
            if len(loop) < len(FASTEST):
                return Outcome(details={"left out": "a package of the loop could not be installed"})
            turns.append({"loop": loop, **{how: _ours(checkpoints, windows, how, folder) for how in QUANTIZING}})
        quality = _quality(checkpoints[-1], folder, windows, turns[0])
    outcome = Outcome(claims=_claims(turns, len(checkpoints)))
    outcome.claims.append(quality.pop("claim"))
    outcome.details = {"perplexity of the last checkpoint": quality, "seconds": _table(turns, len(checkpoints))}
    for turn in turns:
        for how in QUANTIZING:
            turn[how].pop("measured")
    outcome.details["turns"] = turns
    return outcome


def _loop(checkpoint: Checkpoint, folder: Path, windows: dict[str, int], threads: int, *, save: bool) -> dict[str, Any]:
    """Seconds of the loop's cells on one checkpoint, by method; "evaluate" is one bare pass over all windows."""
    work, calibration = prepared(checkpoint, folder, **windows)
    found: dict[str, Any] = {}
    for method, side in FASTEST.items():
        cells = [
            Cell(method, bits, TRAINED_GROUP, False, str(folder / f"{method}-{bits}.safetensors") if save else None)
            for bits in BITS
        ]
        result = run_driver(side, work.folder, calibration, cells, threads=threads)
        if result is None or all("error" in cell for cell in result["cells"]):
            return {}
        done = [cell for cell in result["cells"] if "error" not in cell]
        times = {cell["bits"]: cell["load"]["wall"] + cell["quantize"]["wall"] for cell in done}
        found[method] = {
            "package": side,
            "import": result["import"]["wall"],
            "cells": {bits: times.get(bits, times.get(4, max(times.values()))) for bits in BITS},
            "measured": sorted(times),
        }
    module, ids = bare_model(work.folder), torch.tensor(work.evaluation.ids, dtype=torch.long)
    batch = batch_size(LanguageModel(module), ids.shape[1])
    found["evaluate"] = statistics.median(clock(lambda: bare_passes(module, ids, batch, 1)).wall for _ in range(3))
    return found


def _ours(checkpoints: Sequence[Checkpoint], windows: dict[str, int], how: str, folder: Path) -> dict[str, Any]:
    """Seconds of the grid: within this process without evaluation, and as a command with everything."""
    options: dict[str, Any] = {"group_size": TRAINED_GROUP, "seq_len": TRAINED_LENGTH, "calibration": how, **windows}
    works = make_plan(checkpoints, RunConfig(bits=BITS, **options)).workloads
    evaluating, started = 0.0, time.perf_counter()
    original = Evaluator.score

    def timed(*arguments: Any) -> Any:
        nonlocal evaluating
        before = time.perf_counter()
        try:
            return original(*arguments)
        finally:
            evaluating += time.perf_counter() - before

    with mock.patch.object(Evaluator, "score", timed):
        measured = [measurement for work in works for measurement in _swept(work)]
    total = time.perf_counter() - started
    out = folder / f"out-{how}-{time.monotonic_ns()}"
    places = [checkpoint.location for checkpoint in checkpoints]
    words = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
    command = [sys.executable, "-m", "ptq_eval", "run", *places, "-o", str(out), *words]
    whole = [*command, "--bits", ",".join(map(str, BITS))]
    # Repeated on its finished output, the command only starts, reads, fits and reports.
    everything, reporting = (
        clock(lambda: subprocess.run(whole, check=True, stdout=subprocess.DEVNULL)) for _ in range(2)
    )
    return {
        "quantizing": total - evaluating,
        "evaluating": evaluating,
        "everything": everything.wall,
        "start, fit and report": reporting.wall,
        "measured": measured,
    }


def _swept(work: Workload) -> list[Measurement]:
    with tempfile.TemporaryDirectory() as folder, Store(folder).writer() as writer:
        measured = []
        for measurement in sweep(work, work.trials, tick=lambda _: None):
            writer.append(measurement)
            measured.append(measurement)
    return measured


def loop_seconds(loop: dict[str, Any], checkpoints: int) -> tuple[float, float]:
    """(quantizing, everything) of the loop over all checkpoints."""
    quantizing = checkpoints * sum(sum(loop[method]["cells"].values()) for method in FASTEST)
    imports = sum({loop[method]["package"]: loop[method]["import"] for method in FASTEST}.values())
    passes = checkpoints * (1 + len(FASTEST) * len(BITS))
    return quantizing, quantizing + imports + passes * loop["evaluate"]


def _claims(turns: list[dict[str, Any]], checkpoints: int) -> list[Claim]:
    named = {"shared": "shared calibration", "default": "sequential GPTQ"}
    claims = []
    for how, limit in QUANTIZING.items():
        pairs = [(loop_seconds(turn["loop"], checkpoints), turn[how]) for turn in turns]
        what = f"grid of {checkpoints} × {len(FASTEST)} × {len(BITS)}, loop over other packages / ours"
        claims += [
            claim_of(
                f"speed: {what}, quantizing, {named[how]}",
                [loop[0] / ours["quantizing"] for loop, ours in pairs],
                limit=limit,
                sense="at least",
            ),
            claim_of(
                f"speed: {what}, everything, {named[how]}",
                [loop[1] / ours["everything"] for loop, ours in pairs],
                limit=EVERYTHING,
                sense="at least",
            ),
        ]
    return claims


def _table(turns: list[dict[str, Any]], checkpoints: int) -> dict[str, Any]:
    rows: list[list[Any]] = []
    for method, side in FASTEST.items():
        cells = [[turn["loop"][method]["cells"][bits] for turn in turns] for bits in BITS]
        rows.append([f"loop: {method}, {side}, one checkpoint", *map(statistics.median, cells)])
    rows.append(["loop: one bare evaluation", statistics.median(turn["loop"]["evaluate"] for turn in turns)])
    quantizing, everything = zip(*(loop_seconds(turn["loop"], checkpoints) for turn in turns))
    rows.append(["loop: quantizing the grid; everything", *map(statistics.median, (quantizing, everything))])
    for how in QUANTIZING:
        parts = [[turn[how][part] for turn in turns] for part in OURS_PARTS]
        rows.append([f"ours, {how} calibration: {'; '.join(OURS_PARTS)}", *map(statistics.median, parts)])
    width = max(map(len, rows))
    return {
        "note": "Wall seconds, medians; of a loop's method the columns are its bit-widths.",
        "columns": ["what", *map(str, BITS)],
        "rows": [row + [None] * (width - len(row)) for row in rows],
    }


def _quality(checkpoint: Checkpoint, folder: Path, windows: dict[str, int], turn: dict[str, Any]) -> dict[str, Any]:
    """Perplexities of ours, with both calibrations, beside those of the loop's models; the largest ratio as a claim."""
    work, _ = prepared(checkpoint, folder, **windows)
    paths = [str(folder / f"{method}-{bits}.safetensors") for method in FASTEST for bits in BITS]
    losses = losses_of(work, [path for path in paths if Path(path).exists()])[1]
    rows, ratios = [], []
    for method in FASTEST:
        for bits in BITS:
            nll = losses.get(str(folder / f"{method}-{bits}.safetensors"))
            theirs = math.exp(sum(nll) / len(nll)) if nll else None
            ours = [_perplexity(turn[how]["measured"], checkpoint, method, bits) for how in QUANTIZING]
            rows.append([method, bits, *ours, theirs])
            ratios += [ours[1] / theirs] if theirs else []
    return {
        "note": "The loop's under our evaluator.",
        "columns": ["method", "bits", "ours, shared calibration", "ours, published calibration", "the loop's"],
        "rows": rows,
        "claim": Claim(
            "grid: perplexity, ours / the loop's, largest of the cells of one checkpoint",
            max(ratios),
            min(ratios),
            max(ratios),
            1.005,
        ),
    }


def _perplexity(measured: Sequence[Measurement], checkpoint: Checkpoint, method: str, bits: int) -> float:
    for m in measured:
        trial = m.trial
        same = trial.quantizer == method and trial.scheme is not None and trial.scheme.bits == bits
        if same and trial.checkpoint.weights_sha == checkpoint.weights_sha:
            return math.exp(sum(m.nll) / sum(m.n_tokens))
    return math.nan
