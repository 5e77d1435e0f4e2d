"""One forward pass over the calibration windows: statistics of each distinct input, solved there and then.

The calibration windows go through the model once.  When the first of the layers that share an input is about to
run, a hook takes the statistics of that input, hands them to every quantizer that waits for them, drops them, and
the pass goes on: with the full-precision weights ("shared") or with the quantized ones ("sequential", the published
GPTQ).  The pass stops at the last matrix, before any logits.  No decoder block is ever called by hand, so every
architecture works, and only one layer's statistics are alive at a time.  Windows that would be too many for one
batch advance in chunks, layer by layer (`lockstep`).

All lanes of one quantizer under the same statistics are solved in one call, `Quantizer.quantize_grid`.  Sequential
lanes need a pass each, because each sees inputs of its own; they share the probing pass, and the first input of the
model, which is the same for all of them, is solved once for all.

Which layers share an input is found by a short probing pass: their inputs are one and the same tensor object.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

from torch import Tensor

from ptq_eval.measure import paused_forward as lockstep
from ptq_eval.measure.variants import Lane
from ptq_eval.models.language_model import LanguageModel
from quantizers import LayerStats, QuantizationError, QuantizedWeight, Quantizer

__all__ = ["Lane", "chunks_of", "input_groups", "quantize"]

_CHUNK_TOKENS = {"cpu": 16384, "cuda": 65536}
"""Calibration tokens that go through the model as one batch."""

_PER_SCHEME = 12
"""Bytes per weight that each scheme takes while several are solved together: its copy, differences, codes, result."""

Solve = Callable[[Sequence[Lane], Sequence[str], LayerStats | None], None]
"""solve(lanes, group, stats): quantize the layers of a group for these lanes."""


def chunks_of(model: LanguageModel, ids: Tensor) -> list[Tensor]:
    """Calibration windows [n, time] cut into batches: a function of shapes alone, never of free memory."""
    tokens = _CHUNK_TOKENS.get(model.device.type, _CHUNK_TOKENS["cpu"])
    return list(ids.split(max(1, tokens // ids.shape[1])))


def input_groups(model: LanguageModel, ids: Tensor) -> list[tuple[str, ...]]:
    """The quantizable layers in order of execution, those fed by the same tensor together.

    A layer that no token of `ids` reaches (an expert) comes last, on its own.
    """
    groups = _probe(model, ids[:1])
    everything = set(model.linears())
    for chunk in chunks_of(model, ids):
        if everything <= {name for group in groups for name in group}:
            break
        groups = _merged(groups, _probe(model, chunk))
    reached = {name for group in groups for name in group}
    return [*groups, *((name,) for name in model.linears() if name not in reached)]


def _probe(model: LanguageModel, ids: Tensor) -> list[tuple[str, ...]]:
    inputs: list[tuple[Tensor, list[str]]] = []  # holds the tensors, so that no identity is used twice
    called: set[str] = set()

    def record(name: str, x: Tensor) -> None:
        if name in called:
            return
        called.add(name)
        for seen, names in reversed(inputs[-4:]):
            if seen is x:
                names.append(name)
                return
        inputs.append((x, [name]))

    lockstep.forward(model, ids, dict.fromkeys(model.linears(), record))
    return [tuple(names) for _, names in inputs]


def _merged(known: Sequence[tuple[str, ...]], more: Sequence[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """`known` with the layers that only `more` has, each after the group that it follows there."""
    merged, place = list(known), 0
    for group in more:
        at = {name: index for index, names in enumerate(merged) for name in names}
        new = tuple(name for name in group if name not in at)
        if new:
            merged.insert(place, new)
            place += 1
        else:
            place = max(at[name] for name in group) + 1
    return merged


def quantize(
    model: LanguageModel,
    lanes: Sequence[Lane],
    ids: Tensor | None,
    *,
    sequential: bool = False,
    groups: Sequence[tuple[str, ...]] | None = None,
    memory: float = math.inf,
    tick: Callable[[], None] | None = None,
) -> None:
    """Fill the lanes' weights.  `ids` [windows, time] are the calibration windows, None if no lane needs statistics.

    "shared" serves all lanes in one pass, "sequential" takes a pass per lane.  `groups` are those of `input_groups`,
    where they are known; `tick` is called once per group of a pass, and per data-free lane.  `memory` (bytes) bounds
    what schemes that are solved together take, beyond the first of them.  A layer that cannot be quantized stays in
    full precision and is named in `lane.skipped`.  Raises ValueError of `quantizers.errors` for a wrong scheme or
    option.
    """
    solve = partial(_solve, model, memory)
    data_free = [lane for lane in lanes if not lane.quantizer.needs_stats]
    waiting = [lane for lane in lanes if lane.quantizer.needs_stats]
    if data_free:
        for name in model.linears():
            solve(data_free, (name,), None)
        for _ in data_free:
            _call(tick)
    if not waiting:
        return
    if ids is None:
        raise ValueError("these quantizers need calibration tokens")
    groups = groups or input_groups(model, ids)
    for taken in [[lane] for lane in waiting] if sequential else [waiting]:
        with model.restoring():
            _calibrating_pass(model, solve, taken, waiting, ids, groups, sequential, tick)
    for lane in waiting:
        for name in model.linears():
            if not lane.knows(name):
                lane.skipped[name] = "no calibration token reached it"


def _calibrating_pass(
    model: LanguageModel,
    solve: Solve,
    lanes: Sequence[Lane],
    every: Sequence[Lane],
    ids: Tensor,
    groups: Sequence[tuple[str, ...]],
    sequential: bool,
    tick: Callable[[], None] | None,
) -> None:
    """One pass that solves every layer of `lanes`, and the first layers of `every` lane."""

    def serve(place: int, inputs: list[Tensor]) -> None:
        group = groups[place]
        concerned = every if place == 0 else lanes
        unsolved = [lane for lane in concerned if not lane.knows(group[0])]
        if unsolved:
            stats = LayerStats.from_inputs(inputs[0])
            for x in inputs[1:]:
                stats.update(x)
            solve(unsolved, group, stats)
        if sequential:
            (lane,) = lanes
            model.adopt(lane.weights, tuple(name for name in group if name in lane.weights))
        _call(tick)

    lockstep.run(model, chunks_of(model, ids), groups, serve)


def _solve(
    model: LanguageModel, memory: float, lanes: Sequence[Lane], group: Sequence[str], stats: LayerStats | None
) -> None:
    """Quantize a group of layers for several lanes: one call for all that share a quantizer and fit in `memory`."""
    weights = [model.weight(name) for name in group]
    most = max(1.0, memory / (_PER_SCHEME * sum(weight.numel() for weight in weights)))
    rest = list(lanes)
    while rest:
        quantizer = rest[0].quantizer
        alike = [lane for lane in rest if lane.quantizer == quantizer][: int(min(most, len(rest)))]
        rest = [lane for lane in rest if not any(lane is one for one in alike)]
        for lane, outcome in zip(alike, _grid(quantizer, weights, alike, stats)):
            if isinstance(outcome, QuantizationError):
                lane.skipped.update(dict.fromkeys(group, str(outcome)))
                continue
            for name, weight, quantized in zip(group, weights, outcome):
                lane.add(name, quantized, weight)


def _grid(
    quantizer: Quantizer, weights: Sequence[Tensor], lanes: Sequence[Lane], stats: LayerStats | None
) -> list[list[QuantizedWeight] | QuantizationError]:
    """Each lane's result or failure: where the lanes fail together, each is tried alone."""
    try:
        return [*quantizer.quantize_grid(weights, [lane.scheme for lane in lanes], stats)]
    except QuantizationError as error:
        if len(lanes) == 1:
            return [error]
    return [outcome for lane in lanes for outcome in _grid(quantizer, weights, [lane], stats)]


def _call(tick: Callable[[], None] | None) -> None:
    if tick:
        tick()
