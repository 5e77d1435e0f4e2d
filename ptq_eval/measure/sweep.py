"""One checkpoint, all its missing trials: loaded once, calibrated once, evaluated batch by batch for all lanes.

Lanes whose weights fit in memory together are calibrated and evaluated together, so the full-precision logits of a
batch are computed once for all of them.  Where not even one lane fits beside the model, the model's blocks and the
lanes stay on disk (`offload`).  What fits changes the time a sweep takes and never its results.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ptq_eval.config import FULL_PRECISION
from ptq_eval.early_stop import StopRule
from ptq_eval.errors import DeviceError
from ptq_eval.measure.calibration import input_groups, quantize
from ptq_eval.measure.evaluate import Evaluator
from ptq_eval.measure.memory import Budget, keep_freed_memory, out_of_memory
from ptq_eval.measure.provenance import provenance
from ptq_eval.measure.scoring import Scores
from ptq_eval.measure.trials import Workload
from ptq_eval.measure.variants import Lane, OnDisk
from ptq_eval.models.language_model import DTYPES, LanguageModel
from ptq_eval.models.offload import OffloadedModel
from ptq_eval.records import Measurement, Trial
from quantizers import Quantizer, Scheme, get_quantizer

_FOR_REUSE = 0.05
"""Share of the budget that may lie idle between one activation and the next."""

_FOR_REFERENCES = 0.1
"""Share of the budget for full-precision results that are kept from one group of lanes to the next."""

_FOR_SOLVING = 0.2
"""Share of the budget for schemes that are solved together."""

_LESS = "a smaller --memory, fewer --calib-windows, a shorter --seq-len, or --dtype bfloat16"
_MAPPING = "limits (ulimit -v, -d) above the largest file of the weights, which is mapped whole, or smaller shards"

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
    memory: int | None = None,
    tick: Tick,
) -> Iterator[Measurement]:
    """Measure the `missing` trials of a workload, the full-precision one first.

    `memory` is what the weights of the model and its lanes may take on the device (bytes); by default most of what
    is free.  Raises PtqEvalError when the checkpoint cannot be loaded or the device runs out of memory.
    """
    if not missing:
        return
    started = time.time()
    lanes = [trial for trial in missing if trial.quantizer != FULL_PRECISION]
    full_missing = len(lanes) < len(missing)
    try:
        with _Sweep.started(work, missing[0], device, trust_remote_code, memory, tick) as running:
            for group in running.groups(lanes):
                measured = running.measure(group)
                facts = provenance(device)
                facts["attention"] = getattr(running.model.module.config, "_attn_implementation", None)
                facts["seconds"] = time.time() - started
                yield from (
                    replace(m, provenance=facts)
                    for m in measured
                    if full_missing or m.trial.quantizer != FULL_PRECISION
                )
                full_missing = False
    except (RuntimeError, MemoryError) as error:  # torch.OutOfMemoryError is a RuntimeError
        if not out_of_memory(error):
            raise
        raise DeviceError(
            f"{work.checkpoint.name}: out of memory on {device}",
            got=(str(error).splitlines() or [""])[0][:160],
            remedy=_MAPPING if "unable to mmap" in str(error) else _LESS,
        ) from error


@dataclass
class _Sweep:
    """One checkpoint that is loaded, with its texts and what its lanes have in common."""

    model: LanguageModel
    work: Workload
    budget: Budget
    scratch: Path | None
    """Where lanes lie that do not fit in memory; None if they do."""
    tick: Tick

    @classmethod
    @contextlib.contextmanager
    def started(
        cls, work: Workload, trial: Trial, device: str, trust: bool, memory: int | None, tick: Tick
    ) -> Iterator[_Sweep]:
        """Load the model, whole or (where it does not fit with one lane) with its blocks left on disk."""
        options: dict[str, Any] = {
            "dtype": trial.dtype,
            "device": device,
            "include_head": trial.include_head,
            "trust_remote_code": trust,
            "name": work.checkpoint.name,
        }
        budget = Budget.of(device, memory)
        if budget.holds((work.checkpoint.params_total or 0) * DTYPES[trial.dtype].itemsize):
            keep_freed_memory(_FOR_REUSE * budget.total)
            yield cls(LanguageModel.load(work.folder, **options), work, budget, None, tick)
            return
        with tempfile.TemporaryDirectory(prefix="ptq-eval-") as folder:
            scratch = Path(folder)
            model = OffloadedModel.load_from_disk(work.folder, scratch / "model", **options)
            yield cls(model, work, budget, scratch, tick)

    def __post_init__(self) -> None:
        calibration, trial = self.work.calibration, self.work.trials[0]
        self.ids = None if calibration is None else torch.tensor(calibration.ids, dtype=torch.long)
        self.inputs: list[tuple[str, ...]] | None = None
        self.evaluator = Evaluator(
            self.model,
            torch.tensor(self.work.evaluation.ids),
            rule=StopRule(**trial.stop) if trial.stop else None,
            tick=self.tick,
        )

    def groups(self, lanes: Sequence[Trial]) -> list[list[Trial]]:
        """Lanes that are held at the same time."""
        lane_bytes = sum(self.model.weight_bytes(name) for name in self.model.linears())
        references = _FOR_REFERENCES * self.budget.total
        if self.scratch is None:
            taken = sum(parameter.nbytes for parameter in self.model.module.parameters())
            taken += self.evaluator.working_bytes
            size = self.budget.lanes(taken, lane_bytes)
            if size < len(lanes):
                size = self.budget.lanes(taken + references, lane_bytes)
                references = min(references, max(0.0, self.budget.total - taken - size * lane_bytes))
        else:
            size = max(1, int(0.5 * shutil.disk_usage(self.scratch).free // lane_bytes))
        if size < len(lanes):
            self.evaluator.budget = references
        return [list(lanes[i : i + size]) for i in range(0, len(lanes), size)] or [[]]

    def measure(self, trials: Sequence[Trial]) -> list[Measurement]:
        """Quantize and evaluate a group of lanes: the full-precision record, and one per lane."""
        lanes = _lanes(trials, self.scratch)
        self._quantize([lane for t, lane in zip(trials, lanes) if t.calibration != "sequential"], False)
        self._quantize([lane for t, lane in zip(trials, lanes) if t.calibration == "sequential"], True)
        scores = self.evaluator.score([lane.weights for lane in lanes])
        measured = [_record(self.work.trials[0], self.evaluator.full, self.work, None)]
        for trial, lane, (windows, score) in zip(trials, lanes, scores):
            measured.append(_record(trial, score, self.work, lane, windows))
            lane.weights.clear()
        return measured

    def _quantize(self, lanes: list[Lane], sequential: bool) -> None:
        calibrated = sum(lane.quantizer.needs_stats for lane in lanes)
        if not lanes:
            return
        if calibrated and self.ids is not None and self.inputs is None:
            self.inputs = input_groups(self.model, self.ids)
        memory = _FOR_SOLVING * self.budget.total
        quantize(self.model, lanes, self.ids, sequential=sequential, groups=self.inputs, memory=memory)
        if calibrated and self.ids is not None:
            self.tick(float(len(self.ids)) * (calibrated if sequential else 1))


def _lanes(trials: Sequence[Trial], scratch: Path | None) -> list[Lane]:
    made: dict[str, Quantizer] = {}  # finding a plug-in among those installed takes milliseconds
    lanes = []
    for trial in trials:
        assert trial.scheme is not None
        key = f"{trial.quantizer} {sorted(trial.options.items())}"
        if key not in made:
            made[key] = get_quantizer(trial.quantizer, **trial.options)
        scheme = Scheme(trial.scheme.bits, trial.scheme.group_size, trial.scheme.symmetric, trial.scheme.format)
        lanes.append(Lane(made[key], scheme))
        if scratch is not None:
            lanes[-1].weights = OnDisk(scratch / trial.key())
    return lanes


def _record(
    trial: Trial, scores: Scores, work: Workload, lane: Lane | None, windows: Sequence[int] = ()
) -> Measurement:
    count, time_ = work.evaluation.ids.shape
    early = 0 < len(windows) < count
    n_bytes = work.evaluation.n_bytes
    if n_bytes is not None and early:
        n_bytes = n_bytes[list(windows)]
    measurement = Measurement(
        trial=trial,
        nll=tuple(scores.nll),
        n_tokens=(time_ - 1,) * len(scores.nll),
        n_bytes=tuple(int(b) for b in n_bytes) if n_bytes is not None else (),
        kl=tuple(scores.kl),
        agree=tuple(scores.agree),
        windows=tuple(windows) if early else (),
    )
    if lane is not None:
        measurement = replace(measurement, bits_per_weight=lane.bits_per_weight, details=lane.details())
        if trial.stop:
            measurement = replace(measurement, details={**measurement.details, "stopped_early": early})
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
    if not all(map(_finite, scores.kl)):
        return _failed(measurement, "the KL is not finite")
    return measurement


def _failed(measurement: Measurement, message: str) -> Measurement:
    return replace(
        measurement, status="failed", message=message, nll=(), n_tokens=(), n_bytes=(), kl=(), agree=(), windows=()
    )


def _finite(value: float) -> bool:
    return value == value and abs(value) != float("inf")
