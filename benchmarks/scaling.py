"""How time and memory grow: with checkpoints, bit-widths, parameters and calibration tokens; as numbers and a figure.

Times are of whole sweeps (load, calibrate, quantize with RTN, GPTQ and AWQ, evaluate, store), one factor varied
at a time around the trained Llama, and of random Llamas of four blocks for the number of parameters.  Memory is the
peak of a fresh process that loads one model and quantizes it with GPTQ, less what its imports take.
"""

from __future__ import annotations

import itertools
import math
import os
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness import Claim, Outcome, Setup, claim_of, clock
from benchmarks.peers.jobs import OURS, Cell, run_driver
from benchmarks.subjects import prepared, random_llama, trained_llama
from benchmarks.sweep import run_sweep
from ptq_eval.config.run import RunConfig
from ptq_eval.measure.trials import Workload, make_plan
from ptq_eval.records import Checkpoint

BITS = ((4,), (3, 4), (2, 3, 4), (2, 3, 4, 8))
WIDTHS = (128, 256, 512, 1024)
CALIBRATION = (16, 32, 64, 128, 256)
LENGTH = 128

Curve = list[tuple[float, float]]


def measure(setup: Setup) -> Outcome:
    """All curves; in a rehearsal, two points each."""
    curves: dict[str, Curve] = {}
    windows = {"eval_windows": 16 if setup.quick else 32, "calib_windows": 8 if setup.quick else 64}
    checkpoints = trained_llama(setup.quick)
    repeats = 1 if setup.quick else 2
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        last = checkpoints[-1]
        works = [prepared(checkpoint, folder, bits=BITS[-1], **windows)[0] for checkpoint in checkpoints]
        run_sweep(works[0])  # what is compiled or read for the first time is no part of any curve
        laps = [list(itertools.accumulate(map(_lap, works))) for _ in range(repeats)]
        curves["checkpoints"] = [(n, statistics.median(lap[n - 1] for lap in laps)) for n in _few((1, 2, 3, 4), setup)]
        curves["bit-widths"] = [
            (len(bits), _seconds(prepared(last, folder, bits=bits, **windows)[0], repeats))
            for bits in _few(BITS, setup)
        ]
        sizes = [{**windows, "calib_windows": count} for count in _few(CALIBRATION, setup)]
        curves["calibration tokens"] = [
            (size["calib_windows"] * 256, _seconds(prepared(last, folder, bits=(4,), **size)[0], repeats))
            for size in sizes
        ]
        curves["parameters"], curves["memory"] = _by_parameters(folder, _few(WIDTHS, setup), windows, repeats)
    outcome = Outcome(claims=_claims(curves), figures={"scaling.png": _figure(curves)})
    outcome.details = {
        "curves": {
            "note": "Seconds of sweeps; memory in bytes beyond imports, against bytes of the model's weights.",
            "columns": ["against", "points"],
            "rows": [[name, "; ".join(f"{x:g}: {y:.4g}" for x, y in curve)] for name, curve in curves.items()],
        }
    }
    return outcome


def _few(points: Sequence[Any], setup: Setup) -> Sequence[Any]:
    return (points[0], points[-1]) if setup.quick and points is not WIDTHS else points[:2] if setup.quick else points


def _lap(work: Workload) -> float:
    return clock(lambda: run_sweep(work)).wall


def _seconds(work: Workload, repeats: int) -> float:
    """Median seconds of a sweep."""
    return statistics.median(_lap(work) for _ in range(repeats))


def _by_parameters(folder: Path, widths: Sequence[int], windows: dict[str, int], repeats: int) -> tuple[Curve, Curve]:
    times: Curve = []
    memory: Curve = []
    for width in widths:
        home = folder / str(width)
        home.mkdir()
        shape = {
            "hidden_size": width,
            "intermediate_size": 3 * width,
            "num_hidden_layers": 4,
            "num_attention_heads": width // 64,
            "num_key_value_heads": width // 64,
            "max_position_embeddings": LENGTH,
        }
        checkpoint, evaluation, calibration = random_llama(home, max(windows.values()), **shape)
        options = {"eval_text": str(evaluation), "calib_text": str(calibration), "seq_len": LENGTH, **windows}
        work = make_plan([checkpoint], RunConfig(bits=(4,), group_size=64, **options)).workloads[0]
        times.append((float(checkpoint.params or 0), _seconds(work, 1 if width > 512 else repeats)))
        memory.append(_memory(checkpoint, work, home))
    return times, memory


def _memory(checkpoint: Checkpoint, work: Workload, home: Path) -> tuple[float, float]:
    """(bytes of the weights, bytes of the process's peak beyond its imports)."""
    assert work.calibration is not None
    np.save(home / "windows.npy", np.asarray(work.calibration.ids))
    threads = int(os.environ.get("OMP_NUM_THREADS", "1"))
    result = run_driver(OURS, work.folder, home / "windows.npy", [Cell("gptq", 4, 64, False)], threads=threads)
    assert result is not None
    cell = result["cells"][0]
    return 4.0 * (checkpoint.params_total or 0), float(cell["memory_peak"] - result["memory_imported"])


def _claims(curves: dict[str, Curve]) -> list[Claim]:
    claims = []
    for name in ("checkpoints", "bit-widths", "calibration tokens"):
        (few, fast), (many, slow) = curves[name][0], curves[name][-1]
        claims.append(claim_of(f"scaling: time of a sweep, {many:g} {name} / {few:g}", [slow / fast]))
    (small, fast), (large, slow) = curves["parameters"][-2:]
    power = math.log(slow / fast) / math.log(large / small)
    claims.append(
        claim_of(f"scaling: power of parameters in the time of a sweep, from {small:.3g} to {large:.3g}", [power])
    )
    (small, low), (large, high) = curves["memory"][-2:]
    claims.append(
        claim_of(
            f"scaling: peak memory per byte of weights, from {small:.3g} to {large:.3g} bytes",
            [(high - low) / (large - small)],
        )
    )
    return claims


def _figure(curves: dict[str, Curve]) -> Any:
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator

    figure = Figure(figsize=(14, 3), layout="constrained")
    for axes, (name, curve) in zip(figure.subplots(1, len(curves)), curves.items()):
        x, y = zip(*curve)
        memory = name == "memory"
        axes.plot(
            [v / 2**20 for v in x] if memory else x, [v / 2**20 for v in y] if memory else y, "o-", color="#1f5c99"
        )
        axes.set_xlabel("weights, MB" if memory else name)
        axes.set_ylabel("peak beyond imports, MB" if memory else "seconds of a sweep")
        if name in ("parameters", "calibration tokens"):
            axes.set_xscale("log", base=10 if name == "parameters" else 2)
        if name == "parameters":
            axes.set_yscale("log")
            axes.yaxis.set(major_locator=LogLocator(subs=(1, 2, 5)), major_formatter="{x:g}", minor_formatter="")
        else:
            axes.set_ylim(bottom=0)
            if name in ("checkpoints", "bit-widths"):
                axes.set_xticks(x)
        axes.spines[["top", "right"]].set_visible(False)
    return figure
