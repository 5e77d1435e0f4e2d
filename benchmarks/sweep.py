"""How much of a sweep is forward passes: all trials of one checkpoint, against bare passes and by its own parts.

A sweep loads the checkpoint, calibrates, quantizes with three methods at four bit-widths, evaluates these twelve
models and the full-precision one, and stores thirteen records.  Three questions, with limits of their own:

* Speed of the whole.  The bare loop calls `model(ids)` thirteen times over the same windows in the same batches, on a
  model that is already loaded, and looks at no logits; speed is the ratio bare / sweep.  The sweep also passes the
  calibration windows through the model, once for all variants with shared statistics and once for each with sequential
  ones; in a further line the bare loop makes these passes too.
* Overhead.  From the sweep's own parts, timed by `breakdown`: what is neither a forward pass nor scoring (load,
  statistics, quantize, dequantize, store, bookkeeping) over all forward passes, those of the evaluation and of the
  calibration.  Scoring, from logits to loss, KL and top-1, is what an evaluation is for; it is held to a limit of its
  own in `throughput`, and a further line counts it as overhead too.
* Checks.  What a sweep finds out about its own numbers, the noise floor (`measure.floor`) and the detectors
  (`measure.doubts`), with their own passes: its share of the sweep's CPU time.
"""

from __future__ import annotations

import tempfile
from dataclasses import asdict
from pathlib import Path

import torch

from benchmarks.breakdown import CHECKS, PASSES, SCORING, Breakdown
from benchmarks.harness import Claim, Outcome, Setup, by_turns, claim_of, clock
from benchmarks.subjects import bare_model, bare_passes, demo_options, last_of_each_run, random_llama
from ptq_eval.config.run import RunConfig
from ptq_eval.measure.evaluate import batch_size
from ptq_eval.measure.sweep import sweep
from ptq_eval.measure.trials import Workload, make_plan
from ptq_eval.models.language_model import LanguageModel
from ptq_eval.results.store import Store

SPEED, OVERHEAD = 0.80, 0.15
SHARE_OF_CHECKS = 0.10
PEER_WINDOWS, PEER_CALIBRATION = 64, 16
"""Windows of 512 tokens; a quarter as many for calibration as for evaluation, as in the demo."""

MANY_WINDOWS = 512
"""Evaluation windows of 128 tokens: what calibration and quantizing cost once is spread over more of them."""


def measure(setup: Setup) -> Outcome:
    """Both models: the largest of the embedded trajectory, and one of random weights that is 30 times as large."""
    outcome = Outcome()
    largest = last_of_each_run(setup.trajectory)[-1]
    options = demo_options()
    if setup.quick:
        options.update(eval_windows=32, calib_windows=8)
    for windows in (options["eval_windows"], *([] if setup.quick else [MANY_WINDOWS])):
        work = make_plan([largest], RunConfig(**{**options, "eval_windows": windows})).workloads[0]
        _one(outcome, f"{largest.name} (embedded), {windows} windows", work, repeats=2 if setup.quick else 5)
    with tempfile.TemporaryDirectory() as folder:
        part = 8 if setup.quick else 1
        checkpoint, evaluation, calibration = random_llama(Path(folder), PEER_WINDOWS // part)
        config = RunConfig(
            eval_text=str(evaluation),
            calib_text=str(calibration),
            seq_len=512,
            eval_windows=PEER_WINDOWS // part,
            calib_windows=PEER_CALIBRATION // part,
        )
        work = make_plan([checkpoint], config).workloads[0]
        _one(outcome, "random Llama, 5.1 M", work, repeats=1 if setup.quick else 2, warm_up=False)
    return outcome


def _one(outcome: Outcome, name: str, work: Workload, *, repeats: int, warm_up: bool = True) -> None:
    bare, ids = bare_model(work.folder), torch.tensor(work.evaluation.ids, dtype=torch.long)
    batch = batch_size(LanguageModel(bare), ids.shape[1])
    calibration = torch.tensor(work.calibration.ids, dtype=torch.long) if work.calibration else ids[:0]
    passes = sum(t.calibration == "sequential" for t in work.trials) + any(
        t.calibration == "shared" for t in work.trials
    )
    calibrating = [clock(lambda: bare_passes(bare, calibration, batch, passes)).wall for _ in range(repeats)]
    extra = min(calibrating) if len(calibration) else 0.0
    pairs = by_turns(
        lambda: bare_passes(bare, ids, batch, len(work.trials)),
        lambda: run_sweep(work),
        repeats,
        warm_up=warm_up,
    )
    broken_down = sorted((_parts(work) for _ in range(repeats)), key=overhead)
    outcome.claims += [
        _speed(f"speed of a whole sweep: bare evaluation passes / sweep, {name}", [(a.wall, b.wall) for a, b in pairs]),
        _speed("the same speed in CPU time", [(a.cpu, b.cpu) for a, b in pairs], None),
        _speed(
            f"speed of a whole sweep, calibration passes among the bare ones, {name}",
            [(a.wall + extra, b.wall) for a, b in pairs],
        ),
        claim_of(
            f"overhead of a sweep beyond its forward passes, {name}", [overhead(p) for p in broken_down], limit=OVERHEAD
        ),
        claim_of("the same overhead, scoring counted in it", [overhead(p, "scoring") for p in broken_down]),
        claim_of(
            f"noise floor and detectors, share of a sweep's CPU time, {name}",
            [sum(p[part]["cpu_share"] for part in CHECKS) for p in broken_down],
            limit=SHARE_OF_CHECKS,
        ),
        *(claim_of(f"the {part} alone", [p[part]["cpu_share"] for p in broken_down]) for part in CHECKS),
    ]
    outcome.details[name] = {
        "parts": broken_down[len(broken_down) // 2],
        "overheads": [overhead(parts) for parts in broken_down],
        "trials": len(work.trials),
        "evaluation_windows": list(work.evaluation.ids.shape),
        "calibration_windows": list(work.calibration.ids.shape) if work.calibration else None,
        "batch": batch,
        "params": work.checkpoint.params,
        "bare": [asdict(a) for a, _ in pairs],
        "sweep": [asdict(b) for _, b in pairs],
    }


def run_sweep(work: Workload) -> None:
    """All trials of a workload, from loading to records on the disk."""
    with tempfile.TemporaryDirectory() as folder, Store(folder).writer() as writer:
        for measurement in sweep(work, work.trials, tick=lambda _: None):
            writer.append(measurement)


def _parts(work: Workload) -> dict[str, dict[str, float]]:
    parts = Breakdown()
    with parts.watching():
        run_sweep(work)
    return parts.shares()


def overhead(parts: dict[str, dict[str, float]], *more: str) -> float:
    """Wall time beyond passes, scoring and checks, with the parts `more` added to it, over the time of all passes."""
    passes = sum(parts[part]["wall"] for part in PASSES if part in parts)
    apart = (*PASSES, SCORING, *CHECKS)
    beyond = sum(times["wall"] for part, times in parts.items() if part in more or part not in apart)
    return beyond / passes


def _speed(what: str, pairs: list[tuple[float, float]], limit: float | None = SPEED) -> Claim:
    return claim_of(what, [bare / swept for bare, swept in pairs], limit=limit, sense="at least")
