"""One forward pass over the calibration windows: statistics of each distinct input, solved there and then.

The whole calibration batch goes through the model once.  When the first of the layers that share an input is about
to run, a hook takes the statistics of that input, hands them to every quantizer that waits for them, drops them,
and the pass goes on: with the full-precision weights ("shared") or with the quantized ones ("sequential", the
published GPTQ).  The pass stops at the last matrix, before any logits.  No decoder block is ever called by hand, so
every architecture works, and only one layer's statistics are alive at a time.

Which layers share an input is found by a short probing pass: their inputs are one and the same tensor object.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ptq_eval.models import LanguageModel
from quantizers import LayerStats, QuantizationError, QuantizedWeight, Quantizer, Scheme


@dataclass
class Lane:
    """A model under one quantizer and scheme: its weights by layer name, and what happened on the way."""

    quantizer: Quantizer
    scheme: Scheme
    weights: dict[str, Tensor] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    stored_bits: float = 0.0
    stored_weights: int = 0
    reports: dict[str, Mapping[str, Any]] = field(default_factory=dict)

    def add(self, name: str, quantized: QuantizedWeight, dtype: torch.dtype) -> None:
        """Take up one layer's result."""
        self.weights[name] = quantized.dequantize(dtype)
        self.stored_bits += quantized.bits_per_weight * quantized.codes.numel()
        self.stored_weights += quantized.codes.numel()
        report = dict(quantized.report)
        if quantized.ragged:
            report["ragged"] = 1
        self.reports[name] = report

    @property
    def bits_per_weight(self) -> float:
        """Stored bits per quantized weight, scales and zeros included."""
        return self.stored_bits / self.stored_weights if self.stored_weights else math.nan

    def details(self) -> dict[str, Any]:
        """A summary for the record: sums and maxima of the layers' reports, and the layers left out."""
        summary: dict[str, Any] = {"layers": len(self.weights), "layers_skipped": dict(self.skipped)}
        reports = self.reports.values()
        summary["ragged_layers"] = sum(1 for report in reports if report.get("ragged"))
        for source, name, combine in (
            ("damping", "damping_max", max),
            ("damping_retries", "damping_retries", sum),
            ("dead_columns", "dead_columns", sum),
        ):
            values = [report[source] for report in reports if source in report]
            if values:
                summary[name] = combine(values)
        return summary


class _Finished(Exception):
    """Every layer has been solved: the rest of the forward pass is not needed."""


def input_groups(model: LanguageModel, ids: Tensor) -> list[tuple[str, ...]]:
    """The quantizable layers in order of execution, those fed by the same tensor together.

    A layer that no token of `ids` reaches (an expert) comes last, on its own.
    """
    groups = _probe(model, ids[:1])
    if sum(map(len, groups)) < len(model.linears()):
        groups = _probe(model, ids)
    reached = {name for group in groups for name in group}
    return [*groups, *((name,) for name in model.linears() if name not in reached)]


def _probe(model: LanguageModel, ids: Tensor) -> list[tuple[str, ...]]:
    inputs: list[tuple[Tensor, list[str]]] = []  # holds the tensors, so that no identity is used twice
    called: set[str] = set()

    def hook(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def record(_module: nn.Module, args: tuple[Any, ...]) -> None:
            if name in called:
                return
            called.add(name)
            for seen, names in reversed(inputs[-4:]):
                if seen is args[0]:
                    names.append(name)
                    return
            inputs.append((args[0], [name]))

        return record

    _forward_with_hooks(model, ids, {name: hook(name) for name in model.linears()})
    return [tuple(names) for _, names in inputs]


def quantize(
    model: LanguageModel,
    lanes: Sequence[Lane],
    ids: Tensor | None,
    *,
    sequential: bool = False,
    tick: Callable[[], None] | None = None,
) -> None:
    """Fill the lanes' weights.  `ids` [windows, time] is the calibration batch, None if no lane needs statistics.

    "shared" serves any number of lanes in one pass; "sequential" serves one lane.  A layer that cannot be quantized
    stays in full precision and is named in `lane.skipped`.  Raises ValueError of `quantizers.errors` for a wrong
    scheme or option.
    """
    if sequential and len(lanes) != 1:
        raise ValueError("sequential calibration serves one lane at a time")
    data_free = [lane for lane in lanes if not lane.quantizer.needs_stats]
    waiting = [lane for lane in lanes if lane.quantizer.needs_stats]
    for lane in data_free:
        for name in model.linears():
            _solve(model, lane, (name,), None)
        if tick:
            tick()
    if not waiting:
        return
    if ids is None:
        raise ValueError("these quantizers need calibration tokens")
    groups = input_groups(model, ids)
    with model.restoring():
        _calibrating_pass(model, waiting, ids, groups, sequential, tick)
    for lane in waiting:
        for name in model.linears():
            if name not in lane.weights:
                lane.skipped.setdefault(name, "no calibration token reached it")


def _calibrating_pass(
    model: LanguageModel,
    lanes: Sequence[Lane],
    ids: Tensor,
    groups: Sequence[tuple[str, ...]],
    sequential: bool,
    tick: Callable[[], None] | None,
) -> None:
    pending = {name: group for group in groups for name in group}

    def hook(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def solve(_module: nn.Module, args: tuple[Any, ...]) -> None:
            group = pending.get(name)
            if group is None:
                return
            stats = LayerStats.from_inputs(args[0])
            for member in group:
                pending.pop(member)
            for lane in lanes:
                solved = _solve(model, lane, group, stats)
                if sequential:
                    for member, weight in solved.items():
                        model.set_weight(member, weight)
            if tick:
                tick()
            if not pending:
                raise _Finished

        return solve

    _forward_with_hooks(model, ids, {name: hook(name) for name in model.linears()})


def _solve(model: LanguageModel, lane: Lane, group: tuple[str, ...], stats: LayerStats | None) -> dict[str, Tensor]:
    """Quantize a group of layers for one lane; the new weights by name, empty where it failed."""
    weights = [model.weight(name) for name in group]
    try:
        results = lane.quantizer.quantize_group(weights, lane.scheme, stats)
    except QuantizationError as error:
        lane.skipped.update(dict.fromkeys(group, str(error)))
        return {}
    for name, weight, quantized in zip(group, weights, results):
        lane.add(name, quantized, weight.dtype)
    return {name: lane.weights[name] for name in group}


def _forward_with_hooks(model: LanguageModel, ids: Tensor, hooks: Mapping[str, Callable[..., None]]) -> None:
    modules = model.linears()
    handles = [modules[name].register_forward_pre_hook(hook) for name, hook in hooks.items()]
    body = model.module.base_model if not model.include_head else model.module
    try:
        with torch.inference_mode():
            body(input_ids=ids.to(model.device), use_cache=False)  # type: ignore[operator]
    except _Finished:
        pass
    finally:
        for handle in handles:
            handle.remove()
