"""One checkpoint, loaded once: where its model is kept, how its variants are quantized, and what a record says of it.

The sweep and the sensitivity study both work in a session.  Where not even one variant fits in memory beside the
model, the model is shared out over several GPUs (`sharded`), or else its blocks and the variants stay on disk
(`offload`); that changes the time taken and no result.
"""

from __future__ import annotations

import contextlib
import platform
import socket
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ptq_eval import plugins
from ptq_eval.backends.workers import Workers
from ptq_eval.errors import DeviceError
from ptq_eval.measure.calibration import input_groups, quantize
from ptq_eval.measure.foreign import handover
from ptq_eval.measure.foreign.quantizer import Foreign
from ptq_eval.measure.kept import Kept
from ptq_eval.measure.memory import Budget, gpus, out_of_memory
from ptq_eval.measure.trials import Workload
from ptq_eval.measure.variants import Variant, variants_of
from ptq_eval.models.language_model import DTYPES, LanguageModel
from ptq_eval.models.offload import OffloadedModel
from ptq_eval.models.sharded import ShardedModel
from ptq_eval.records import Trial
from quantizers import kernels

_SHARE_FOR_SOLVING = 0.2
"""Share of the budget for schemes that are solved together."""

_USE_LESS = "a smaller --memory, fewer --calib-windows, a shorter --seq-len, or --dtype bfloat16"
_MAPPING = "limits (ulimit -v, -d) above the largest file of the weights, which is mapped whole, or smaller shards"


@dataclass
class Session:
    """A loaded checkpoint with its texts and its memory budget."""

    model: LanguageModel
    work: Workload
    budget: Budget
    kept: Kept | None
    """Where variants and finished parts of the work are; None if they are in memory alone."""
    offloaded: bool
    """Whether the model's blocks are on disk."""
    workers: Workers
    """The processes of backends."""
    trust_remote_code: bool = False
    """Whether code in the checkpoint may run."""

    @classmethod
    @contextlib.contextmanager
    def opened(
        cls,
        work: Workload,
        *,
        device: str = "cpu",
        memory: int | None = None,
        trust_remote_code: bool = False,
        offload: bool = True,
        workers: Workers | None = None,
        kept: Kept | None = None,
        remedy: str = _USE_LESS,
    ) -> Iterator[Session]:
        """Load the model, whole or (if it does not fit with one variant) on several GPUs, or with its blocks left on
        disk.

        `memory` is what the weights of the model and its variants may take (bytes), by default most of what is free;
        with it, the model is not shared out.
        Without `offload` the model is always loaded whole.  `workers` outlive the session; by default it has its own.
        `kept` is where variants and finished parts of the work go, by default memory where the model is loaded whole.
        Raises the PtqEvalError of a checkpoint that cannot be loaded, and DeviceError with `remedy` when memory runs
        out, within the context too.
        """
        trial = work.trials[0]
        options: dict[str, Any] = {
            "dtype": trial.dtype,
            "device": device,
            "include_head": trial.include_head,
            "include_embedding": trial.include_embedding,
            "trust_remote_code": trust_remote_code,
            "name": work.checkpoint.name,
        }
        params = work.checkpoint.params_total or 0
        budget = Budget.of(device, memory, params if kept is not None else None)
        size = params * DTYPES[trial.dtype].itemsize
        whole = budget.holds(size)
        several = gpus(device) if memory is None and not whole else []
        sharded = len(several) > 1 and Budget.of_several(several).holds(size)
        with contextlib.ExitStack() as stack:
            stack.enter_context(_memory_errors(work.checkpoint.name, device, remedy))
            workers = workers or stack.enter_context(Workers())
            if sharded:
                options.pop("device")
                model = ShardedModel.load_on(work.folder, several, **options)
                yield cls(model, work, Budget.of_several(several), kept, False, workers, trust_remote_code)
                return
            if whole or not offload:
                model = LanguageModel.load(work.folder, **options)
                yield cls(model, work, budget, kept, False, workers, trust_remote_code)
                return
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ptq-eval-")))
            model = OffloadedModel.load_from_disk(work.folder, folder / "model", **options)
            yield cls(model, work, budget, kept or Kept(folder / "parts"), True, workers, trust_remote_code)

    @cached_property
    def calibration(self) -> Tensor | None:
        """The calibration windows [windows, time], if any quantizer of the run needs them."""
        windows = self.work.calibration
        return None if windows is None else torch.tensor(windows.ids, dtype=torch.long)

    @cached_property
    def evaluation(self) -> Tensor:
        """The evaluation windows [windows, time]."""
        return torch.tensor(self.work.evaluation.ids)

    @cached_property
    def input_groups(self) -> list[tuple[str, ...]] | None:
        """The layers by shared input, if any quantizer of the run needs calibration windows."""
        return None if self.calibration is None else input_groups(self.model, self.calibration)

    def quantized(self, trials: Sequence[Trial], *, with_codes: bool = False) -> list[Variant]:
        """The variant of each trial: for each draw of the calibration windows, first all that share statistics in one
        pass, then the sequential ones.  Trials without calibration go with the first draw."""
        variants = variants_of(trials, self.kept)
        for variant in variants if with_codes else ():
            variant.layers = {}
        memory = _SHARE_FOR_SOLVING * self.budget.each
        draws = self.work.calibrations
        first = next(iter(draws), "")
        passes: dict[tuple[str, bool], list[Variant]] = {}
        possible = [(t, v) for t, v in zip(trials, variants) if not v.failed]
        made_here = [(t, v) for t, v in possible if not isinstance(v.quantizer, Foreign)]
        for trial, variant in made_here:
            draw = trial.calibration_corpus if trial.calibration_corpus in draws else first
            passes.setdefault((draw, trial.calibration == "sequential"), []).append(variant)
        for (draw, sequential), own in sorted(passes.items(), key=lambda item: item[0][1]):
            groups = self.input_groups if any(variant.quantizer.needs_stats for variant in own) else None
            windows = torch.tensor(draws[draw].ids, dtype=torch.long) if draw in draws else None
            quantize(self.model, own, windows, sequential=sequential, groups=groups, memory=memory)
        by_draw: dict[str, list[Variant]] = {}
        for trial, variant in zip(trials, variants):
            if isinstance(variant.quantizer, Foreign):
                by_draw.setdefault(trial.calibration_corpus, []).append(variant)
        for draw, foreign in by_draw.items():
            windows = torch.tensor(draws[draw].ids, dtype=torch.long) if draw in draws else None
            handover.quantize(self.model, self.work.folder, foreign, windows, self.workers, self.evaluation[:1])
        return variants

    def fitting(self, trials: Sequence[Trial]) -> list[list[Trial]]:
        """Trials whose variants are kept at the same time; how many fit changes the time taken and no result.

        A variant takes its weights, their errors and the expected variances; beside the variants, memory holds the
        model and two gradients.
        """
        weights = sum(4 * self.model.weight(name).numel() for name in self.model.matrices())
        whole = sum(parameter.nbytes for parameter in self.model.module.parameters())
        size = self.budget.variants(whole + 2 * weights, 3 * weights)
        return [list(trials[first : first + size]) for first in range(0, len(trials), size)]

    def provenance(self, seconds: float) -> dict[str, Any]:
        """Where, when and with what a number was measured, and the `seconds` of work that it took."""
        device = self.model.device
        facts = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "host": socket.gethostname(),
            "machine": platform.machine(),
            "python": platform.python_version(),
            "threads": torch.get_num_threads(),
            "matmul_precision": torch.get_float32_matmul_precision(),
            "kernels": kernels.backend(device),
            **plugins.versions("ptq-eval", "torch", "transformers", "numba", "triton", "lm_eval"),
            "attention": getattr(self.model.module.config, "_attn_implementation", None),
            "seconds": seconds,
        }
        if device.type != "cuda":
            return facts
        several = {"gpus": self.budget.devices} if self.budget.devices > 1 else {}
        return {**facts, "gpu": torch.cuda.get_device_name(device), **several}


@contextlib.contextmanager
def _memory_errors(name: str, device: str, remedy: str) -> Iterator[None]:
    """Turn running out of memory into a DeviceError."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:  # torch.OutOfMemoryError is a RuntimeError
        if not out_of_memory(error):
            raise
        raise DeviceError(
            f"{name}: out of memory on {device}",
            got=(str(error).splitlines() or [""])[0][:160],
            remedy=_MAPPING if "unable to mmap" in str(error) else remedy,
        ) from error
