"""One checkpoint, all its missing trials: loaded once, calibrated once, evaluated batch by batch for all lanes.

Lanes whose weights fit in memory together are calibrated and evaluated together, so the full-precision logits of a
batch are computed once for all of them.  How many fit changes the time a sweep takes and never its results.
"""

from __future__ import annotations

import os
import platform
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from importlib.metadata import version
from typing import Any

import torch

from ptq_eval.calibration import Lane, quantize
from ptq_eval.config import FULL_PRECISION
from ptq_eval.errors import DeviceError
from ptq_eval.evaluate import evaluate
from ptq_eval.models import LanguageModel
from ptq_eval.plan import Workload
from ptq_eval.records import Measurement, Trial
from ptq_eval.scoring import Scores
from quantizers import Scheme, get_quantizer

Tick = Callable[[float], None]
"""tick(amount): so many units of work are done, one unit being one pass over one evaluation window."""


def cost(work: Workload, missing: Sequence[Trial]) -> float:
    """Units of work of a sweep, for a progress bar: windows evaluated, and windows calibrated with."""
    lanes = [trial for trial in missing if trial.quantizer != FULL_PRECISION]
    calibrating = len(work.calibration.ids) if work.calibration is not None else 0
    passes = sum(trial.calibration == "sequential" for trial in lanes)
    passes += any(trial.calibration == "shared" for trial in lanes)
    return (len(lanes) + 1) * len(work.evaluation.ids) + passes * calibrating if missing else 0.0


def sweep(
    work: Workload,
    missing: Sequence[Trial],
    *,
    device: str = "cpu",
    trust_remote_code: bool = False,
    tick: Tick,
) -> Iterator[Measurement]:
    """Measure the `missing` trials of a workload, the full-precision one first.

    Raises PtqEvalError when the checkpoint cannot be loaded or the device runs out of memory.
    """
    if not missing:
        return
    started = time.time()
    first = missing[0]
    model = LanguageModel.load(
        work.folder,
        dtype=first.dtype,
        device=device,
        include_head=first.include_head,
        trust_remote_code=trust_remote_code,
        name=work.checkpoint.name,
    )
    lanes = [trial for trial in missing if trial.quantizer != FULL_PRECISION]
    full_missing = len(lanes) < len(missing)
    try:
        for group in _groups(model, lanes) or [[]]:
            measured = _measure(model, work, group, tick)
            facts = provenance(device)
            facts["seconds"] = time.time() - started
            yield from (
                replace(m, provenance=facts) for m in measured if full_missing or m.trial.quantizer != FULL_PRECISION
            )
            full_missing = False
    except torch.OutOfMemoryError as error:
        raise DeviceError(
            f"{work.checkpoint.name}: out of memory on {device}",
            got=str(error).splitlines()[0][:160],
            remedy="fewer --calib-windows, a shorter --seq-len, or --dtype bfloat16",
        ) from error


def _groups(model: LanguageModel, lanes: Sequence[Trial]) -> list[list[Trial]]:
    """Split lanes so that the weights of each group take at most half of the free memory."""
    bytes_per_lane = sum(model.weight(name).nbytes for name in model.linears())
    size = max(1, int(0.5 * free_memory(model.device) // bytes_per_lane))
    return [list(lanes[i : i + size]) for i in range(0, len(lanes), size)]


def free_memory(device: torch.device) -> float:
    """Bytes that are free on a device now; on a CPU what the system can give without swapping."""
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    try:
        with open("/proc/meminfo", encoding="ascii") as handle:
            fields = dict(line.split(":") for line in handle)
        return float(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError):
        return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")) / 2


def _measure(model: LanguageModel, work: Workload, trials: Sequence[Trial], tick: Tick) -> list[Measurement]:
    lanes = {trial.key(): _lane(trial) for trial in trials}
    calibration = work.calibration
    ids = torch.tensor(calibration.ids, dtype=torch.long, device=model.device) if calibration is not None else None
    weight = float(len(calibration.ids)) if calibration is not None else 0.0
    shared = [lanes[t.key()] for t in trials if t.calibration in ("shared", "none")]
    quantize(model, shared, ids)
    tick(weight if any(t.calibration == "shared" for t in trials) else 0.0)
    for trial in trials:
        if trial.calibration == "sequential":
            quantize(model, [lanes[trial.key()]], ids, sequential=True)
            tick(weight)
    ordered = [lanes[trial.key()] for trial in trials]
    windows = torch.tensor(work.evaluation.ids)
    full, scores = evaluate(model, windows, [lane.weights for lane in ordered], tick=tick)
    reference = work.trials[0]
    measured = [_record(reference, full, work, None)]
    return measured + [_record(t, s, work, lane) for t, s, lane in zip(trials, scores, ordered)]


def _lane(trial: Trial) -> Lane:
    assert trial.scheme is not None
    scheme = Scheme(trial.scheme.bits, trial.scheme.group_size, trial.scheme.symmetric, trial.scheme.format)
    return Lane(get_quantizer(trial.quantizer, **trial.options), scheme)


def _record(trial: Trial, scores: Scores, work: Workload, lane: Lane | None) -> Measurement:
    count, time_ = work.evaluation.ids.shape
    measurement = Measurement(
        trial=trial,
        nll=tuple(scores.nll),
        n_tokens=(time_ - 1,) * count,
        n_bytes=tuple(int(b) for b in work.evaluation.n_bytes) if work.evaluation.n_bytes is not None else (),
        kl=tuple(scores.kl),
        agree=tuple(scores.agree),
    )
    if lane is not None:
        measurement = replace(measurement, bits_per_weight=lane.bits_per_weight, details=lane.details())
        if lane.skipped and not lane.weights:
            return _failed(measurement, "no layer could be quantized: " + next(iter(lane.skipped.values())))
        if lane.skipped:
            named = ", ".join(list(lane.skipped)[:3])
            measurement = replace(
                measurement,
                status="partial",
                message=f"{len(lane.skipped)} layers left in full precision: {named}",
            )
    if not all(map(_finite, scores.nll)):
        return _failed(measurement, "the loss is not finite")
    return measurement


def _failed(measurement: Measurement, message: str) -> Measurement:
    return replace(measurement, status="failed", message=message, nll=(), n_tokens=(), n_bytes=(), kl=(), agree=())


def _finite(value: float) -> bool:
    return value == value and abs(value) != float("inf")


def provenance(device: str) -> dict[str, Any]:
    """Where and with what a number was measured."""
    facts = {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "host": socket.gethostname(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
        **{name: version(name) for name in ("ptq-eval", "torch", "transformers")},
    }
    if device.startswith("cuda"):
        facts["gpu"] = torch.cuda.get_device_name(device)
    return facts
