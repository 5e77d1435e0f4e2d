"""What measuring a backend costs beyond the backend's own quantizing and the evaluation, in processor time.

    overhead = (sweep's CPU + workers' CPU) / (the packages' quantizing + the sweep's CPU without the hand-over)

The last term is evaluation and loading; the hand-over is `measure.foreign.handover.quantize`: writing the model,
reading weights back, checking them.  A worker's CPU beyond quantizing is its start, which is the import of torch and of
the package, the loss of one window in full precision, and reading the weights as they multiply.  Whoever uses a package
imports it, so the ratio is also given with one start among the package's own costs.  The checkpoints are measured with
workers that are kept from one to the next, as in a run, and with a new one for each, by turns.  A backend whose
environment is not installed is not measured.  The larger a model, the smaller the share of what is done once: so there
are the last two embedded 160k checkpoints, and Llamas of random weights of 6 and 21 million parameters, one each, with
the same tokenizer and windows.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from benchmarks.harness import Claim, Outcome, Setup, claim_of
from ptq_eval.backends.environments import backend_of, place_of, status_of
from ptq_eval.backends.process import Worker
from ptq_eval.backends.workers import Workers
from ptq_eval.checkpoints import discover, verify_all
from ptq_eval.config.run import RunConfig
from ptq_eval.measure.foreign import handover
from ptq_eval.measure.sweep import sweep
from ptq_eval.measure.trials import make_plan
from ptq_eval.records import Checkpoint

LIMIT = 1.1
METHODS = (
    "gguf:q4_0",
    "hqq:hqq",
    "llmcompressor:gptq",
    "gptqmodel:gptq",
)


@dataclass(frozen=True)
class Cost:
    """Seconds of processor time: all of it, the package's quantizing, the parts of what is neither, and one start."""

    total: float
    quantizing: float
    worker_rest: float
    hand_over: float
    start: float

    @property
    def ratio(self) -> float:
        """All of it over what quantizing and evaluating take."""
        return self.total / (self.total - self.worker_rest - self.hand_over)

    @property
    def started(self) -> float:
        """All of it over what one start, quantizing and evaluating take."""
        return self.total / (self.total - self.worker_rest - self.hand_over + self.start)


SIZES = {"6M": (256, 7), "21M": (448, 8)}
"""Hidden size and layers of the random models."""


def measure(setup: Setup) -> Outcome:
    """The overhead of every installed backend by size of model."""
    outcome = Outcome(details={"parts": [], "not_installed": []})
    usable = [name for name in METHODS if status_of(backend_of(name.partition(":")[0])).usable]
    outcome.details["not_installed"] = sorted(set(METHODS) - set(usable))
    options = {"group_size": 32, "eval_windows": 192, "calib_windows": 48}
    small = verify_all(discover([setup.trajectory / "llama-160k"]))[-2:]
    with tempfile.TemporaryDirectory() as folder:
        sizes = {} if setup.quick else SIZES
        subjects = {name: _random(Path(folder) / name, small[-1], *size) for name, size in sizes.items()}
        for name in usable[:2] if setup.quick else usable:
            start = start_of(name)
            outcome.claims += _claims(
                outcome, "2 checkpoints of 160k", name, small, options, start, modes=(True, False)
            )
            for size, found in subjects.items():
                outcome.claims += _claims(outcome, f"1 checkpoint of {size}", name, found, options, start)
    return outcome


def _random(folder: Path, like: Checkpoint, hidden: int, layers: int) -> list[Checkpoint]:
    """A Llama of random weights below `folder`, with the tokenizer and the context of another checkpoint."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(like.location)
    config.update({"hidden_size": hidden, "intermediate_size": 3 * hidden, "num_hidden_layers": layers})
    config.update({"num_attention_heads": hidden // 64, "num_key_value_heads": hidden // 64, "head_dim": 64})
    torch.manual_seed(0)
    target = folder / "checkpoint-1"
    AutoModelForCausalLM.from_config(config).save_pretrained(target)
    for path in Path(like.location).glob("*token*"):
        shutil.copyfile(path, target / path.name)
    return verify_all(discover([folder]))


def _claims(
    outcome: Outcome,
    subject: str,
    name: str,
    checkpoints: Sequence[Checkpoint],
    options: dict[str, Any],
    start: float,
    *,
    modes: Sequence[bool] = (True,),
) -> list[Claim]:
    found: dict[bool, list[Cost]] = {True: [], False: []}
    for keep in modes:
        found[keep].append(cost(checkpoints, name, options, start, keep=keep))
    for keep, costs in found.items():
        outcome.details["parts"] += [{"subject": subject, "method": name, "kept": keep, **asdict(c)} for c in costs]
    what = f"{name}, {subject}: CPU time / that of quantizing and evaluating"
    claims = [
        claim_of(what, [c.ratio for c in found[True]], limit=LIMIT),
        claim_of(f"{what}, with one import of the package", [c.started for c in found[True]], limit=LIMIT),
    ]
    if found[False]:
        claims.append(claim_of(f"{what}, a new process for each checkpoint", [c.ratio for c in found[False]]))
    return claims


def start_of(name: str) -> float:
    """CPU seconds of a worker that is started and asked for nothing, the second time."""
    place = place_of(name.partition(":")[0])
    for _ in range(2):
        before = _times()[1]
        worker = Worker(place, 1)
        while worker.alive and not worker.ready:
            time.sleep(0.05)
        worker.close()
    return _times()[1] - before


def cost(checkpoints: Sequence[Checkpoint], name: str, options: dict[str, Any], start: float, *, keep: bool) -> Cost:
    """What measuring one method at 4 bits on all checkpoints takes; with `keep`, one process does them all."""
    plan = make_plan(checkpoints, RunConfig(quantizers=(name,), bits=(4,), **options))
    before, quantizing = _times(), 0.0
    with _hand_over() as spent:
        workers = Workers()
        for work in plan.workloads:
            for record in sweep(work, work.trials, workers=workers, tick=lambda _: None):
                if record.status == "failed":
                    raise RuntimeError(f"{name}: {record.message}")
                quantizing += record.details.get("backend", {}).get("cpu_seconds", 0.0)
            if not keep:
                workers.__exit__()
        workers.__exit__()
    own, children = (after - start for after, start in zip(_times(), before))
    return Cost(own + children, quantizing, children - quantizing, sum(spent), start)


def _times() -> tuple[float, float]:
    """CPU seconds of this process, and of those that it has waited for."""
    times = psutil.Process().cpu_times()
    return time.process_time(), times.children_user + times.children_system


@contextmanager
def _hand_over() -> Iterator[list[float]]:
    """The CPU seconds of each call that hands a model to a worker and takes its weights back."""
    spent: list[float] = []
    real = handover.quantize

    def timed(*arguments: Any, **named: Any) -> None:
        start = time.process_time()
        real(*arguments, **named)
        spent.append(time.process_time() - start)

    handover.quantize = timed
    try:
        yield spent
    finally:
        handover.quantize = real
