"""A whole grid, 4 checkpoints × RTN, GPTQ, AWQ × 2, 3, 4, 8 bits, against the loop over other packages.

`peers.loop` says what the loop is, and how its cells, measured on one checkpoint, are counted for all.

Two ratios.  "Quantizing" is everything but what follows it: loading, calibration, quantizing, and on our side storing
records, in processes that have imported what they need.  Evaluation is left out of that clock, so it takes few windows
there.  "Everything" is the whole time of the command `ptq-eval run`, from start to report, against the loop from its
imports on; the loop makes no report.  It is held to its limit against the loop as its packages offer it, every part of
which is measured; against the loop that is granted a bare pass for all that follows quantizing, it is
only reported.

As both sides evaluate the same windows under as many models, "everything" cannot exceed the loop's seconds over those
of the evaluations alone: the table says what that comes to when each of them is a bare pass.  A run that ends variants
early sees fewer windows; its ratio is only reported.
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

from benchmarks.harness import Claim, Outcome, Setup, claim_of, clock
from benchmarks.methods import losses_of
from benchmarks.peers import loop as peers
from benchmarks.peers.loop import BITS, FASTEST, weights_of
from benchmarks.subjects import TRAINED_GROUP, TRAINED_LENGTH, prepared, trained_llama
from ptq_eval.config.run import RunConfig
from ptq_eval.measure.evaluate import Evaluator
from ptq_eval.measure.sweep import sweep
from ptq_eval.measure.trials import Workload, make_plan
from ptq_eval.records import Checkpoint, Measurement
from ptq_eval.results.store import Store

QUANTIZING = {"shared": 10.0, "default": 4.0}
"""Limits of the first ratio: with one set of statistics for all, and with GPTQ's published sequential calibration."""

EVERYTHING = {"offered": 4.0, "granted": None}
EARLY = "early"
OURS: dict[str, dict[str, Any]] = {
    **{how: {"calibration": how} for how in QUANTIZING},
    EARLY: {"calibration": "default", "precision": 0.02},
}
"""Options of our runs.  The last one sees fewer windows than the loop, so it is reported and not held to a limit."""

NAMES = {
    "shared": "shared calibration",
    "default": "sequential GPTQ",
    EARLY: "sequential GPTQ, variants ended at --precision 0.02",
    "offered": "against the loop as its packages offer it",
    "granted": "against the granted loop",
}
TURNS = 2
UNCOUNTED_WINDOWS = 16
OURS_PARTS = ("quantizing", "everything", "start, fit and report")


def measure(setup: Setup) -> Outcome:
    """The loop's cells and ours by turns, then the losses of the loop's models."""
    checkpoints = trained_llama(setup.quick)
    windows = {"eval_windows": 16 if setup.quick else 256, "calib_windows": 4 if setup.quick else 64}
    threads = int(os.environ.get("OMP_NUM_THREADS", "1"))
    turns: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for _ in range(1 if setup.quick else TURNS):
            loop = peers.measured(checkpoints[-1], folder, windows, threads)
            if loop is None:
                return Outcome(details={"left out": "a package of the loop is missing"})
            turns.append({"loop": loop, **{how: _ours(checkpoints, windows, how, folder) for how in OURS}})
        work, _ = prepared(checkpoints[-1], folder, **windows)
        paths = [str(path) for path in (weights_of(folder, m, bits) for m in FASTEST for bits in BITS) if path.exists()]
        losses = {path: sum(nll) / len(nll) for path, nll in losses_of(work, paths)[1].items()}
        quality, ratios = _quality(checkpoints[-1], folder, losses, turns[-1])
        kept = peers.table([turn["loop"] for turn in turns], losses, folder)
    outcome = Outcome(claims=_claims(turns, len(checkpoints)))
    outcome.claims.append(
        Claim(
            "grid: perplexity, ours / the loop's, largest of the cells of one checkpoint",
            max(ratios),
            min(ratios),
            max(ratios),
            1.005,
        )
    )
    outcome.details = {
        "perplexity of the last checkpoint": quality,
        "the loop's models": kept,
        "seconds": _table(turns, len(checkpoints)),
        "turns": [{**turn, **{how: {part: turn[how][part] for part in OURS_PARTS} for how in OURS}} for turn in turns],
    }
    return outcome


def _ours(checkpoints: Sequence[Checkpoint], windows: dict[str, int], how: str, folder: Path) -> dict[str, Any]:
    """Seconds of the grid: within this process without evaluation, and as a command with everything; its records."""
    options: dict[str, Any] = {"group_size": TRAINED_GROUP, "seq_len": TRAINED_LENGTH, **OURS[how], **windows}
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
        "quantizing": _without_evaluation(checkpoints, {**options, "eval_windows": UNCOUNTED_WINDOWS}),
        "everything": everything.wall,
        "start, fit and report": reporting.wall,
        "measured": Store(out).measurements(),
    }


def _without_evaluation(checkpoints: Sequence[Checkpoint], options: dict[str, Any]) -> float:
    """Seconds of sweeping the grid in this process, without its evaluations."""
    works = make_plan(checkpoints, RunConfig(bits=BITS, **options)).workloads
    evaluating, original = 0.0, Evaluator.score

    def timed(*arguments: Any) -> Any:
        nonlocal evaluating
        before = time.perf_counter()
        try:
            return original(*arguments)
        finally:
            evaluating += time.perf_counter() - before

    with mock.patch.object(Evaluator, "score", timed):
        started = time.perf_counter()
        for work in works:
            _swept(work)
        return time.perf_counter() - started - evaluating


def _swept(work: Workload) -> None:
    with tempfile.TemporaryDirectory() as folder, Store(folder).writer() as writer:
        for measurement in sweep(work, work.trials, tick=lambda _: None):
            writer.append(measurement)


def _claims(turns: list[dict[str, Any]], checkpoints: int) -> list[Claim]:
    loops = [peers.seconds(turn["loop"], checkpoints) for turn in turns]
    what = f"speed: grid of {checkpoints} × {len(FASTEST)} × {len(BITS)}, loop over other packages / ours"
    claims = []
    for how in OURS:
        pairs = list(zip(loops, (turn[how] for turn in turns)))
        if how in QUANTIZING:
            ratios = [loop["quantizing"] / ours["quantizing"] for loop, ours in pairs]
            name = f"{what}, quantizing, {NAMES[how]}"
            claims.append(claim_of(name, ratios, limit=QUANTIZING[how], sense="at least"))
        for kind, least in EVERYTHING.items():
            ratios = [loop[kind] / ours["everything"] for loop, ours in pairs]
            name = f"{what}, everything, {NAMES[kind]}, {NAMES[how]}"
            claims.append(claim_of(name, ratios, limit=None if how == EARLY else least, sense="at least"))
    return claims


def _table(turns: list[dict[str, Any]], checkpoints: int) -> dict[str, Any]:
    """What the ratios are made of, over all checkpoints."""
    loops = [peers.seconds(turn["loop"], checkpoints) for turn in turns]
    evaluations = checkpoints * (1 + len(FASTEST) * len(BITS))
    named = {
        "loop: quantizing": [loop["quantizing"] for loop in loops],
        "loop: everything, as its packages offer it": [loop["offered"] for loop in loops],
        "the same, full precision evaluated for each cell again": [loop["again"] for loop in loops],
        "loop: everything, granted": [loop["granted"] for loop in loops],
        f"{evaluations} evaluations, each a bare pass": [loop["evaluations"] for loop in loops],
        **{f"ours, {NAMES[how]}: {part}": [turn[how][part] for turn in turns] for how in OURS for part in OURS_PARTS},
        "window evaluations, all / those before variants are ended": [
            _windows_seen(turn["default"]) / _windows_seen(turn[EARLY]) for turn in turns
        ],
        "the most that the ratio to the granted loop can be, if evaluations cost both sides a bare pass": [
            loop["granted"] / loop["evaluations"] for loop in loops
        ],
        "the same, of the loop as its packages offer it": [loop["offered"] / loop["evaluations"] for loop in loops],
    }
    return {
        "note": "Wall seconds, and ratios of them.",
        "columns": ["what", "median", "smallest", "largest"],
        "rows": [[what, statistics.median(found), min(found), max(found)] for what, found in named.items()],
    }


def _windows_seen(run: dict[str, Any]) -> int:
    return sum(len(m.nll) for m in run["measured"])


def _quality(
    checkpoint: Checkpoint, folder: Path, losses: dict[str, float], turn: dict[str, Any]
) -> tuple[dict[str, Any], list[float]]:
    """Perplexities of ours, with both calibrations, beside the loop's models'; the published one's ratios."""
    rows, ratios = [], []
    for method in FASTEST:
        for bits in BITS:
            loss = losses.get(str(weights_of(folder, method, bits)))
            theirs = None if loss is None else math.exp(loss)
            ours = [_perplexity(turn[how]["measured"], checkpoint, method, bits) for how in QUANTIZING]
            rows.append([method, bits, *ours, theirs])
            ratios += [ours[1] / theirs] if theirs else []
    table = {
        "note": "The loop's under our evaluator.",
        "columns": ["method", "bits", "ours, shared calibration", "ours, published calibration", "the loop's"],
        "rows": rows,
    }
    return table, ratios


def _perplexity(measured: Sequence[Measurement], checkpoint: Checkpoint, method: str, bits: int) -> float:
    for m in measured:
        trial = m.trial
        same = trial.quantizer == method and trial.scheme is not None and trial.scheme.bits == bits
        if same and trial.checkpoint.weights_sha == checkpoint.weights_sha:
            return math.exp(sum(m.nll) / sum(m.n_tokens))
    return math.nan
