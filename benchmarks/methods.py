"""One model at 4 bits by every package: seconds of quantizing, peak memory, and the loss that results.

Every side runs in a fresh process of its own environment, under the same driver, on the same checkpoint, calibration
windows, group size and number of threads, by turns; the order is reversed at every other turn.  What is timed is the
call that quantizes, after imports, loading and a warm-up.  It leaves each package with what it leaves: GPTQModel has
packed its layers, the others hold dense or simulated ones, this package codes and the dense weights made of them.

The loss is measured on the dense weights that the quantized layers multiply by, by one evaluator for all.  RTN
and GPTQ are compared on symmetric grids, which every package has; AWQ on the asymmetric ones of its paper and, for
ModelOpt, which has none, on symmetric ones.  "Symmetric" means three different grids among these packages (see
docs/concepts.md), and each uses its own.
"""

from __future__ import annotations

import math
import os
import statistics
import tempfile
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from benchmarks.harness import Claim, Outcome, Setup, claim_of
from benchmarks.peers.environments import QUANTIZING
from benchmarks.peers.jobs import OURS, Cell, run_driver
from benchmarks.report import LEFT_OUT
from benchmarks.subjects import TRAINED_GROUP, bare_model, prepared, trained_llama
from ptq_eval.measure.evaluate import evaluate
from ptq_eval.measure.trials import Workload
from ptq_eval.models.language_model import LanguageModel

BITS = 4
METHODS = (("rtn", True), ("gptq", True), ("awq", False), ("awq", True))
"""(method, whether on a symmetric grid)."""

LACKS = {
    "neural-compressor": {("awq", True)},
    "gptqmodel": {("awq", True)},
    "llm-compressor": {("awq", True)},
    "modelopt": {("awq", False)},
    "auto-round": {("gptq", True), ("awq", True)},
}
"""What a package does not have, or has in the other grid and is measured there."""

AT_LEAST = {("gptq", True): 1.5, ("awq", False): 5.0}
TURNS, WINDOWS, CALIBRATION = 3, 256, 64

Times = dict[str, list[dict[str, Any]]]
"""Side: its driver's results, one a turn."""


def measure(setup: Setup) -> Outcome:
    """All packages that can be installed, by turns."""
    threads = int(os.environ.get("OMP_NUM_THREADS", "1"))
    checkpoint = trained_llama(setup.quick)[-1]
    outcome = Outcome()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sizes = {"calib_windows": 4 if setup.quick else CALIBRATION, "eval_windows": 16 if setup.quick else WINDOWS}
        work, calibration = prepared(checkpoint, folder, quantizers=("gptq",), bits=(BITS,), **sizes)
        results: Times = {}
        for turn in range(1 if setup.quick else TURNS):
            sides = [OURS, *QUANTIZING]
            for side in sides if turn % 2 == 0 else reversed(sides):
                cells = [_cell(folder, side, method, turn) for method in METHODS if method not in LACKS.get(side, ())]
                result = run_driver(side, work.folder, calibration, cells, threads=threads)
                if result is not None:
                    results.setdefault(side, []).append(result)
        full, losses = losses_of(work, _saved(results))
    for method in METHODS:
        outcome.claims += _claims(method, results, losses)
    table = [row for method in METHODS for row in _rows(method, results, losses)]
    outcome.details = {
        f"{BITS} bits, groups of {TRAINED_GROUP}": {
            "note": f"{work.checkpoint.name}, {work.checkpoint.params} parameters, perplexity {math.exp(full):.3f} in "
            f"full precision; {sizes['calib_windows']} calibration windows and {sizes['eval_windows']} evaluation "
            f"windows of {work.evaluation.ids.shape[1]} tokens, {threads} threads; medians of {len(results[OURS])} "
            "turns. Memory is the peak of a process that had run the methods above it in this table too; in brackets, "
            "after its imports.",
            "columns": ["method", "package", "wall s", "CPU s", "ratio to ours", "perplexity", "peak MB"],
            "rows": table,
        },
        "runs": results,
        "losses": {Path(path).stem: sum(nll) / len(nll) for path, nll in losses.items()},
    }
    if missing := [side for side in QUANTIZING if side not in results]:
        outcome.details[LEFT_OUT] = f"{', '.join(missing)}, which cannot be installed or run here"
    for cell in (cell for runs in results.values() for run in runs for cell in run["cells"]):
        cell["weights"] = None  # a file of this run, gone with its folder
    return outcome


def _cell(folder: Path, side: str, method: tuple[str, bool], turn: int) -> Cell:
    name, symmetric = method
    cell = Cell(name, BITS, TRAINED_GROUP, symmetric)
    path = str(folder / f"{side}-{name}-{symmetric}.safetensors")
    return replace(cell, weights=path) if turn == 0 else cell


def _saved(results: Times) -> list[str]:
    cells = [cell for runs in results.values() for cell in runs[0]["cells"] if "error" not in cell]
    return [cell["weights"] for cell in cells]


def losses_of(work: Workload, paths: Iterable[str]) -> tuple[float, dict[str, list[float]]]:
    """Mean loss per token in full precision, and per window under the weights of each file, by our evaluator."""
    module = bare_model(work.folder)
    own = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    ids = torch.tensor(work.evaluation.ids, dtype=torch.long)
    tokens = ids.shape[1] - 1
    full = [nll / tokens for nll in evaluate(LanguageModel(module), ids)[0].nll]
    losses = {}
    for path in paths:
        module.load_state_dict({**own, **load_file(path)})
        losses[path] = [nll / tokens for nll in evaluate(LanguageModel(module), ids)[0].nll]
    return sum(full) / len(full), losses


def _found(results: Times, side: str, method: tuple[str, bool]) -> list[dict[str, Any]]:
    """The cells of one side and method, one a turn, that have no error."""
    return [
        cell
        for run in results.get(side, [])
        for cell in run["cells"]
        if (cell["method"], cell["symmetric"]) == method and "error" not in cell
    ]


def _claims(method: tuple[str, bool], results: Times, losses: dict[str, list[float]]) -> list[Claim]:
    """Speed against the fastest other package, and perplexity against that package's."""
    ours = _found(results, OURS, method)
    others = {side: _found(results, side, method) for side in results if side != OURS}
    others = {side: cells for side, cells in others.items() if len(cells) == len(ours)}
    if not others:
        return []
    fastest = min(others, key=lambda side: statistics.median(cell["quantize"]["wall"] for cell in others[side]))
    ratios = [b["quantize"]["wall"] / a["quantize"]["wall"] for a, b in zip(ours, others[fastest])]
    name = f"{method[0]}, {'symmetric' if method[1] else 'asymmetric'}"
    ratio = _perplexity(ours, losses) / _perplexity(others[fastest], losses)
    return [
        claim_of(
            f"speed: {name}, one model, wall time of the fastest package ({fastest}) / ours",
            ratios,
            limit=AT_LEAST.get(method),
            sense="at least",
        ),
        claim_of(f"{name}: perplexity, ours / {fastest}", [ratio], limit=1.005),
    ]


def _perplexity(cells: list[dict[str, Any]], losses: dict[str, list[float]]) -> float:
    nll = losses[cells[0]["weights"]]
    return math.exp(sum(nll) / len(nll))


def _rows(method: tuple[str, bool], results: Times, losses: dict[str, list[float]]) -> list[list[Any]]:
    name = f"{method[0]}, {'symmetric' if method[1] else 'asymmetric'}"
    own = [cell["quantize"]["wall"] for cell in _found(results, OURS, method)]
    rows = []
    for side, runs in results.items():
        cells = _found(results, side, method)
        if not cells:
            continue
        wall, cpu = (statistics.median(cell["quantize"][kind] for cell in cells) for kind in ("wall", "cpu"))
        peak = max(cell["memory_peak"] for cell in cells) / 2**20
        memory = f"{peak:.0f} ({runs[0]['memory_imported'] / 2**20:.0f})"
        package = f"{side} {_version(runs[0])}"
        rows.append([name, package, wall, cpu, wall / statistics.median(own), _perplexity(cells, losses), memory])
    return rows


def _version(run: dict[str, Any]) -> str:
    return next(number for name, number in run["versions"].items() if name not in ("torch", "transformers"))
