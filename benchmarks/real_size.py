"""One checkpoint of 135 M parameters: where the time of its sweep goes, and what memory it takes.

A Llama of SmolLM2-135M's shape with random weights, which cost what trained ones cost, is measured by `ptq-eval run`
with RTN, GPTQ (sequential) and AWQ at 2, 3, 4 and 8 bits, in a process of its own.  The stages are timed within that
process; memory is what a process takes beyond the libraries, in multiples of the weights in float32.  `--layers` and
`--windows` make the model and the texts smaller: ratios change little with the windows, times are proportional to them.

Another process estimates the sweep as `ptq-eval run --estimate` does: the C library keeps what that frees, which in one
process would count as taken before the sweep.  The loop over other packages is in
`real_loop`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

from benchmarks.harness import ROOT, Claim, Outcome, Setup, claim_of
from benchmarks.memory import Peak, warm_up

if TYPE_CHECKING:
    from ptq_eval.measure.trials import Workload

SHAPE = {
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "max_position_embeddings": 1024,
    "tie_word_embeddings": True,
}
QUICK_SHAPE = {"vocab_size": 512, "hidden_size": 144, "intermediate_size": 384, "num_hidden_layers": 4}
WINDOWS = 64
QUANTIZERS, BITS, GROUP = ("rtn", "gptq", "awq"), (2, 3, 4, 8), 64
OPTIONS = {"quantizers": QUANTIZERS, "bits": BITS, "group_size": GROUP, "device": "cpu"}
LOW_MEMORY = 2.0
"""What `--memory` is set to in the second run, in multiples of the weights."""

STAGES = {
    "loading": ("ptq_eval.models.language_model", "LanguageModel.load"),
    "noise floor": ("ptq_eval.measure.floor", "_measured"),
    "noise floor, arithmetic": ("ptq_eval.measure.floor", "_again"),
    "calibration: forward passes": ("ptq_eval.measure.calibration", "_calibrating_pass"),
    "calibration: statistics": ("ptq_eval.measure.calibration", "_stats_of"),
    "solver": ("ptq_eval.measure.calibration", "_solve"),
    "evaluation": ("ptq_eval.measure.evaluate", "Evaluator.score"),
    "second order of each variant": ("ptq_eval.measure.doubts", "Plausibility.ratio"),
}
"""What is timed, by stage; time of a stage within another counts for the inner one alone."""


def measure(setup: Setup) -> Outcome:
    """The sweep with default memory and with little."""
    shape = {**SHAPE, **(QUICK_SHAPE if setup.quick else {})}
    shape["num_hidden_layers"] = setup.layers or shape["num_hidden_layers"]
    windows = setup.windows or (4 if setup.quick else WINDOWS)
    from benchmarks.subjects import random_llama

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        random_llama(folder, windows, **shape)
        weights = 4 * parameters(shape)
        estimated = _apart("estimate", folder, windows, None)
        default = _apart("sweep", folder, windows, None)
        low = _apart("sweep", folder, windows, int(LOW_MEMORY * weights))
    claims = [
        _claim("peak of memory beyond the libraries / weights", default["peak"] / weights, 4.0),
        _claim("the same with --memory set low", low["peak"] / weights, 2.5),
        _claim("time with --memory set low / default", low["seconds"] / default["seconds"], 1.2),
        _claim(
            "records with --memory set low equal to the others", low["records"] == default["records"], 1, "at least"
        ),
    ]
    claims.append(_claim("time / the estimate", default["seconds"] / sum(estimated["seconds"].values())))
    claims.append(_claim("peak of memory / the estimate", default["peak"] / estimated["memory"]))
    rows = [[stage, seconds, seconds / default["seconds"]] for stage, seconds in default["stages"].items()]
    details = {
        "shape": shape,
        "windows": windows,
        "weights_bytes": weights,
        "estimate": estimated,
        "peak_bytes": {"default": default["peak"], "low": low["peak"]},
        "seconds": {"note": "Of the default sweep.", "columns": ["stage", "seconds", "share"], "rows": rows},
    }
    return Outcome(claims=claims, details=details)


def _claim(what: str, value: float, limit: float | None = None, sense: Any = "at most") -> Claim:
    return claim_of(f"135M: {what}", [float(value)], limit=limit, sense=sense)


def parameters(shape: dict[str, int]) -> int:
    """The parameters of a Llama with a tied head."""
    width, inner = shape["hidden_size"], shape["intermediate_size"]
    keys = width * shape["num_key_value_heads"] // shape["num_attention_heads"]
    block = 2 * width * width + 2 * width * keys + 3 * width * inner + 2 * width
    return shape["vocab_size"] * width + shape["num_hidden_layers"] * block + width


def _apart(what: str, folder: Path, windows: int, memory: int | None) -> dict[str, Any]:
    """What `_sweep` or `_estimate` gives in a process of its own."""
    arguments = [sys.executable, "-m", "benchmarks.real_size", what, str(folder), str(windows), json.dumps(memory)]
    done = subprocess.run(arguments, stdout=subprocess.PIPE, text=True, cwd=ROOT, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def _work(folder: Path, windows: int) -> Workload:
    """The work on the model in `folder`, in a process that is set up as the command line's."""
    from ptq_eval.checkpoints import discover, verify_all
    from ptq_eval.config.run import RunConfig
    from ptq_eval.measure.memory import keep_freed_memory
    from ptq_eval.measure.trials import make_plan

    texts = {"eval_text": f"{folder}/evaluation.npy#any", "calib_text": (f"{folder}/calibration.npy#any",)}
    config = RunConfig(**OPTIONS, **texts, eval_windows=windows, calib_windows=(windows,))
    work = make_plan(verify_all(discover([folder / "random-llama"])), config).workloads[0]
    keep_freed_memory()
    warm_up()
    return work


def _estimate(folder: Path, windows: int, memory: int | None) -> dict[str, Any]:
    from ptq_eval.measure.estimate import estimate

    work = _work(folder, windows)
    return asdict(estimate(work, work.trials, memory=memory))


def _sweep(folder: Path, windows: int, memory: int | None) -> dict[str, Any]:
    """One sweep in this process: its records, seconds by stage, and peak of memory."""
    from ptq_eval.measure.sweep import sweep

    work = _work(folder, windows)
    with Peak() as peak, timed() as stages:
        started = time.perf_counter()
        found = list(sweep(work, work.trials, memory=memory, tick=lambda _: None))
        seconds = time.perf_counter() - started
    stages["rest"] = seconds - sum(stages.values())
    records = [[m.trial.quantizer, m.nll, m.kl, m.agree, m.status] for m in found]
    return {"seconds": seconds, "stages": stages, "peak": peak.bytes, "records": records}


@contextmanager
def timed() -> Iterator[dict[str, float]]:
    """Seconds by stage of what runs within the context, in the main thread."""
    from importlib import import_module

    seconds = dict.fromkeys(STAGES, 0.0)
    inner: list[float] = []

    def around(stage: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any, **named: Any) -> Any:
            if threading.current_thread() is not threading.main_thread():
                return call(*arguments, **named)
            inner.append(0.0)
            started = time.perf_counter()
            try:
                return call(*arguments, **named)
            finally:
                taken = time.perf_counter() - started
                seconds[stage] += taken - inner.pop()
                if inner:
                    inner[-1] += taken

        return wrapped

    with ExitStack() as stack:
        for stage, (module, name) in STAGES.items():
            owner, _, attribute = name.rpartition(".")
            place = getattr(import_module(module), owner) if owner else import_module(module)
            stack.enter_context(mock.patch.object(place, attribute, around(stage, getattr(place, attribute))))
        yield seconds


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    call = {"sweep": _sweep, "estimate": _estimate}[sys.argv[1]]
    print(json.dumps(call(Path(sys.argv[2]), int(sys.argv[3]), json.loads(sys.argv[4]))))
