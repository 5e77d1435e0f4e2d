"""What measuring a checkpoint will take, from a few of its own calls: one batch, one gradient, one layer of each shape.

Each part that a sweep repeats is timed once, on the model itself, and counted as often as the sweep does it.  Methods
of backends are not counted, nor is what a rule ends early (`early_stop`).  The error against whole runs is measured by
`python -m benchmarks --only real_size`.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import psutil
import torch
from torch import Tensor

from ptq_eval.measure import second_order
from ptq_eval.measure.cases import cells_of
from ptq_eval.measure.doubts import MOST_PROBES, PROBE_SHARE
from ptq_eval.measure.evaluate import Evaluator, batch_size
from ptq_eval.measure.floor import GRADIENT_WINDOWS, RESCORED_WINDOWS
from ptq_eval.measure.foreign.quantizer import Foreign
from ptq_eval.measure.gradients import mean_gradient
from ptq_eval.measure.methods import solved
from ptq_eval.measure.session import Session
from ptq_eval.measure.sweep import calibration_cost, is_long
from ptq_eval.measure.trials import Workload
from ptq_eval.measure.variants import Variant, variants_of
from ptq_eval.records import FULL_PRECISION, WEIGHTS_KEPT, Trial
from ptq_eval.runtime import of_weights
from quantizers import LayerStats, Quantizer, Scheme

_STATS_TOKENS = 1024


@dataclass(frozen=True)
class Estimate:
    """What the missing `trials` of one checkpoint take: seconds by stage, bytes of memory and of disk at the most.

    backends: trials among them that are not counted.
    """

    checkpoint: str
    trials: int
    seconds: Mapping[str, float]
    memory: float
    disk: float
    backends: int = 0

    @property
    def total(self) -> float:
        """All seconds."""
        return sum(self.seconds.values())


def estimate(work: Workload, missing: Sequence[Trial], *, device: str = "cpu", **options: Any) -> Estimate:
    """What a `sweep` of these trials takes; it takes some seconds, and for a large model a minute.

    `options` as of the sweep.  Raises what it raises.
    """
    quantized = [trial for trial in missing if trial.quantizer != FULL_PRECISION]
    cells = cells_of(quantized)
    heads = [of_weights(cell[0]) for cell in cells if cell[0].quantizer != WEIGHTS_KEPT]
    started = time.monotonic()
    with Session.opened(work, device=device, **options) as session:
        loading = time.monotonic() - started
        model, ids = session.model, session.evaluation
        batch = min(batch_size(model, ids.shape[1]), len(ids))
        model.hidden(ids[:1])
        forward = _seconds(lambda: model.hidden(ids[:batch])) / batch
        scoring = _seconds(lambda: Evaluator(model, ids[:batch]).score([{}])) / batch / 2
        variants = variants_of(heads)
        own = [variant for variant in variants if not isinstance(variant.quantizer, Foreign)]
        sequential = [head.calibration == "sequential" for head in heads]
        units = sum(map(calibration_cost(work, missing), cells))
        length = 0 if work.calibration is None else work.calibration.seq_len
        found = {
            "loading": loading,
            "noise floor": _floor(session, len(missing) - len(quantized), len(quantized), scoring),
            "calibration": units * length * (forward / ids.shape[1] + _statistics(session, own)),
            "solver": sum(_solver(session, list(zip(variants, sequential)))),
            "evaluation": (1 + len(quantized)) * len(ids) * scoring,
        }
        weights = sum(model.weight_bytes(name) for name in model.matrices())
        memory = float(psutil.Process().memory_info().rss + _activations(session))
    gradients = 4.0 * sum(model.weight(name).numel() for name in model.matrices())
    long = is_long(work, missing)
    disk = max(second_order.WINDOWS * gradients, 2 * gradients + len(heads) * weights) if long else 0.0
    in_memory = gradients if long else max(second_order.WINDOWS * gradients, 2 * gradients + len(heads) * weights)
    name = work.checkpoint.name
    return Estimate(name, len(missing), found, memory + in_memory, disk, len(variants) - len(own))


def _seconds(task: Callable[[], object]) -> float:
    started = time.monotonic()
    task()
    return time.monotonic() - started


def _floor(session: Session, full: int, variants: int, scoring: float) -> float:
    """Seconds of gradients, of scoring again on one thread, and of parts of every variant's error."""
    ids = session.evaluation
    if session.offloaded or len(ids) < 2:
        return 0.0
    gradient = _seconds(lambda: mean_gradient(session.model, ids[:1]))
    gradients = min(GRADIENT_WINDOWS, len(ids)) + full * min(second_order.WINDOWS, len(ids))
    probes = min(MOST_PROBES, max(1, len(ids) // PROBE_SHARE)) * variants
    again = full * min(RESCORED_WINDOWS, len(ids)) * torch.get_num_threads()
    return gradients * gradient + (probes + again) * scoring


def _statistics(session: Session, variants: Sequence[Variant]) -> float:
    """Seconds per token of the statistics of all groups of layers."""
    if not any(variant.quantizer.needs_stats for variant in variants):
        return 0.0
    widths = Counter(session.model.weight(group[0]).shape[1] for group in session.input_groups or ())
    inputs = ((_inputs(width, session), count) for width, count in widths.items())
    return sum(count * _seconds(partial(LayerStats.from_inputs, x)) / _STATS_TOKENS for x, count in inputs)


def _inputs(width: int, session: Session) -> Tensor:
    """Inputs of a layer [tokens, in], made up."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(_STATS_TOKENS, width, generator=generator).to(session.model.device)


def _solver(session: Session, variants: Sequence[tuple[Variant, bool]]) -> Iterator[float]:
    """Seconds of every method: one group of layers of each shape is quantized, as often as there are such groups."""
    model = session.model
    together: dict[tuple[Quantizer, Any], list[Scheme]] = {}
    for number, (variant, sequential) in enumerate(variants):
        if not (variant.failed or variant.mixture or isinstance(variant.quantizer, Foreign)):
            apart = (number, variant.scheme) if sequential else ()
            together.setdefault((variant.quantizer, apart), []).append(variant.scheme)
    shapes: dict[tuple[Any, ...], list[tuple[str, ...]]] = {}
    for group in session.input_groups or [(name,) for name in model.linears()]:
        shapes.setdefault(tuple(model.weight(name).shape for name in group), []).append(group)
    for groups in shapes.values():
        weights = [model.weight(name) for name in groups[0]]
        stats = LayerStats.from_inputs(_inputs(weights[0].shape[1], session))
        for (quantizer, _), schemes in together.items():
            yield len(groups) * _seconds(partial(_solve, quantizer, weights, schemes, stats))


def _solve(quantizer: Quantizer, weights: Sequence[Any], schemes: Sequence[Scheme], stats: LayerStats) -> None:
    for layers in solved(quantizer, weights, schemes, stats if quantizer.needs_stats else None):
        for layer in layers if isinstance(layers, list) else ():
            layer.dequantize()


def _activations(session: Session) -> float:
    """Bytes of the calibration windows on their way through the model: residual, and the widest input of a layer."""
    if session.calibration is None:
        return 0.0
    widest = max(session.model.weight(name).shape[1] for name in session.model.linears())
    return 4.0 * math.prod(session.calibration.shape) * (session.model.width + widest)
