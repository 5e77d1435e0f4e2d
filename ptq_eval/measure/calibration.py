"""One forward pass over the calibration windows: statistics of each distinct input, used as soon as they are known.

The calibration windows go through the model once.  When the first of the layers that share an input is about to run,
a hook takes the statistics of that input, hands them to every quantizer that needs them, and drops them; then the pass
goes on, with the full-precision weights ("shared") or with the quantized ones ("sequential", the published GPTQ).  The
pass ends at the last matrix, before any logits.  No decoder block is ever called by hand, so every architecture works,
and only one layer's statistics are alive at a time.  Windows that are too many for one batch advance in chunks, layer
by layer (`paused_forward`).

All variants of one quantizer under the same statistics are quantized in one call, `Quantizer.quantize_grid`.
Sequential variants need a pass each, because each sees its own inputs; they share the probing pass, and the model's
first input, which is the same for all of them, is used for all at once.

An embedding has no inputs but token ids: as a layer of one-hot inputs it has a diagonal Hessian, where no column can
absorb the error of another.  A method that needs statistics therefore rounds it to nearest, before the pass, and the
record says so.

A method that also needs the inputs of the full-precision model gets them in its sequential pass (`two_models`).

Which layers share an input is found by a short probing pass: their inputs are the same tensor object.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial

from torch import Tensor

from ptq_eval.measure import paused_forward
from ptq_eval.measure.halfway import Halfway
from ptq_eval.measure.methods import BrokenMethodError, guarded, solved
from ptq_eval.measure.two_models import TwoModels
from ptq_eval.measure.variants import Variant
from ptq_eval.models.language_model import LanguageModel
from quantizers import LayerStats, QuantizationError, QuantizedWeight, Scheme, get_quantizer

_CHUNK_TOKENS = {"cpu": 16384, "cuda": 65536}
"""Calibration tokens that go through the model as one batch."""

_PER_SCHEME = 12
"""Bytes per weight and scheme while several schemes are solved together: copy, differences, codes, result."""

Solve = Callable[[Sequence[Variant], Sequence[str], LayerStats | None], None]
"""solve(variants, group, stats): quantize the layers of a group for these variants."""


def chunks_of(model: LanguageModel, ids: Tensor) -> list[Tensor]:
    """Calibration windows [n, time] cut into batches: a function of shapes alone, never of free memory."""
    tokens = _CHUNK_TOKENS.get(model.device.type, _CHUNK_TOKENS["cpu"])
    return list(ids.split(max(1, tokens // ids.shape[1])))


def input_groups(model: LanguageModel, ids: Tensor) -> list[tuple[str, ...]]:
    """The quantizable layers in order of execution, grouped by the tensor that feeds them.

    A layer that no token of `ids` reaches (an expert) comes last, in a group of its own.
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
    inputs: list[tuple[Tensor, list[str]]] = []  # keeps the tensors alive, so that no identity is reused
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

    paused_forward.forward(model, ids, dict.fromkeys(model.linears(), record))
    return [tuple(names) for _, names in inputs]


def _merged(known: Sequence[tuple[str, ...]], more: Sequence[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """`known` and the layers that only `more` has, each inserted after the group that it follows there."""
    merged, position = list(known), 0
    for group in more:
        at = {name: index for index, names in enumerate(merged) for name in names}
        new = tuple(name for name in group if name not in at)
        if new:
            merged.insert(position, new)
            position += 1
        else:
            position = max(at[name] for name in group) + 1
    return merged


def quantize(
    model: LanguageModel,
    variants: Sequence[Variant],
    ids: Tensor | None,
    *,
    sequential: bool = False,
    groups: Sequence[tuple[str, ...]] | None = None,
    memory: float = math.inf,
) -> None:
    """Quantize every layer for every variant, filling `variant.weights`.

    `ids` [windows, time] are the calibration windows, None if no variant needs statistics.  "shared" calibration serves
    all variants in one pass, `sequential` takes one pass per variant.  `groups` come from `input_groups`, if already
    known; `memory` (bytes) bounds what schemes that are solved together take, beyond the first of them.  A layer that
    cannot be quantized stays in full precision and is named in `variant.skipped`; a method that breaks fails alone
    (`variant.failed`).  Raises ValueError without calibration tokens that are needed.
    """
    _quantize(model, variants, ids, sequential, groups, memory)
    outputs = {name: model.weight(name).shape[0] for name in model.linears()}
    kind = str(getattr(model.module.config, "model_type", ""))
    for variant in variants:
        variant.fold(outputs, kind)


def _quantize(
    model: LanguageModel,
    variants: Sequence[Variant],
    ids: Tensor | None,
    sequential: bool,
    groups: Sequence[tuple[str, ...]] | None,
    memory: float,
) -> None:
    solve = partial(_solve, model, memory)
    data_free = [variant for variant in variants if not variant.quantizer.needs_stats]
    waiting = [variant for variant in variants if variant.quantizer.needs_stats]
    if data_free:
        for name in model.matrices():
            solve([variant for variant in data_free if not variant.has(name)], (name,), None)
    _round_embedding(model, waiting)
    if not waiting:
        return
    if ids is None:
        raise ValueError("these quantizers need calibration tokens")
    groups = groups or input_groups(model, ids)
    for served in [[variant] for variant in waiting] if sequential else [waiting]:
        if all(variant.failed or all(map(variant.has, model.linears())) for variant in served):
            continue  # kept from an earlier process
        with model.restoring():
            _calibrating_pass(model, solve, served, waiting, ids, groups, sequential)
    for variant in waiting:
        for name in model.linears():
            if not variant.failed and not variant.has(name):
                variant.skipped[name] = "no calibration token reached it"


def _round_embedding(model: LanguageModel, variants: Sequence[Variant]) -> None:
    """Round the embedding to nearest for variants whose method needs statistics of inputs."""
    if model.embedding is None:
        return
    weight, nearest = model.weight(model.embedding), get_quantizer("rtn")
    for variant in variants:
        if not variant.has(model.embedding):
            try:
                variant.add(model.embedding, nearest.quantize(weight, variant.scheme_of(model.embedding)), weight)
            except QuantizationError as error:
                variant.skip([model.embedding], str(error))
            variant.keep([model.embedding])
        if model.embedding in variant.weights:
            variant.facts["rounded_to_nearest"] = [model.embedding]


def _calibrating_pass(
    model: LanguageModel,
    solve: Solve,
    variants: Sequence[Variant],
    every: Sequence[Variant],
    ids: Tensor,
    groups: Sequence[tuple[str, ...]],
    sequential: bool,
) -> None:
    """One pass that quantizes every layer of `variants`, and the first group of layers of `every` variant.

    The input of the first group is the same for every variant, unless the embedding is quantized.
    """
    chunks = chunks_of(model, ids)
    beside = sequential and any(variant.quantizer.needs_mismatch for variant in variants)
    both = TwoModels(model, chunks) if beside else None

    def serve(index: int, inputs: Mapping[int, Tensor]) -> None:
        group = groups[index]
        concerned = every if index == 0 and model.embedding is None else variants
        unsolved = [variant for variant in concerned if not variant.failed and not variant.has(group[0])]
        stats = (both.stats_of(inputs) if both else _stats_of(inputs)) if unsolved else None
        if stats is not None:
            for variant in unsolved:
                variant.witness.statistics(group, stats)
            solve(unsolved, group, stats)
        if sequential:
            (variant,) = variants
            quantized = {name: variant.weights[name] for name in group if name in variant.weights}
            both.adopt(quantized) if both else model.adopt(quantized, tuple(quantized))

    if sequential and model.embedding is not None and model.embedding in variants[0].weights:
        rounded = {model.embedding: variants[0].weights[model.embedding]}
        both.adopt(rounded) if both else model.adopt(rounded, (model.embedding,))
    if both:
        paused_forward.run(model, both.chunks, groups, serve, both.enter)
    elif variants[0].kept is None:
        paused_forward.run(model, chunks, groups, serve)
    else:
        place = Halfway(model, groups, chunks, variants[0].kept.sums(_name_of_pass(variants)))
        done = lambda index: all(variant.failed or variant.has(groups[index][0]) for variant in variants)

        def kept_and_served(index: int, inputs: Mapping[int, Tensor]) -> None:
            place.arrived(index)
            serve(index, inputs)

        with place.passing(done) as first:
            rest = [() if index < first else group for index, group in enumerate(groups)]
            paused_forward.run(model, chunks, rest, kept_and_served, place.enter)


def _name_of_pass(variants: Sequence[Variant]) -> str:
    """A name for the pass of these variants, among what is kept."""
    return "pass-" + hashlib.sha256(" ".join(variant.name for variant in variants).encode()).hexdigest()[:24]


def _stats_of(inputs: Mapping[int, Tensor]) -> LayerStats:
    first, *others = inputs.values()
    stats = LayerStats.from_inputs(first)
    for x in others:
        stats.update(x)
    return stats


def _solve(
    model: LanguageModel, memory: float, variants: Sequence[Variant], group: Sequence[str], stats: LayerStats | None
) -> None:
    """Quantize a group of layers for several variants: one call for all that share a quantizer and fit in `memory`.

    In mixed precision, layers of one group that have different schemes are quantized apart.
    """
    alike: dict[tuple[str, ...], list[Variant]] = {}
    for variant in variants:
        if variant.failed:
            continue
        by_scheme: dict[Scheme, list[str]] = {}
        for name in group:
            by_scheme.setdefault(variant.scheme_of(name), []).append(name)
        for names in by_scheme.values():
            alike.setdefault(tuple(names), []).append(variant)
    for names, own in alike.items():
        _solve_alike(model, memory, own, names, stats)


def _solve_alike(
    model: LanguageModel, memory: float, variants: Sequence[Variant], group: Sequence[str], stats: LayerStats | None
) -> None:
    """Quantize a group of layers, which have one scheme in each of the variants."""
    weights = [model.weight(name) for name in group]
    at_once = max(1.0, memory / (_PER_SCHEME * sum(weight.numel() for weight in weights)))
    rest = list(variants)
    while rest:
        quantizer = rest[0].quantizer
        alike = [variant for variant in rest if variant.quantizer == quantizer][: int(min(at_once, len(rest)))]
        rest = [variant for variant in rest if not any(variant is one for one in alike)]
        schemes = [variant.scheme_of(group[0]) for variant in alike]
        outcomes = solved(quantizer, weights, schemes, stats)
        # Kept as a whole: in a later process, schemes that are solved together are the same ones.
        with alike[0].kept.together() if alike[0].kept is not None else nullcontext():
            for variant, outcome in zip(alike, outcomes):
                _put(variant, group, weights, outcome)
                variant.keep(group)


def _put(
    variant: Variant,
    group: Sequence[str],
    weights: Sequence[Tensor],
    outcome: Sequence[QuantizedWeight] | QuantizationError | BrokenMethodError,
) -> None:
    """Put what a method gave for a group of layers into a variant, or why there is nothing."""
    try:
        if isinstance(outcome, Exception):
            raise outcome
        for name, weight, quantized in zip(group, weights, outcome):
            guarded(variant.quantizer, partial(variant.add, name, quantized, weight))
    except QuantizationError as error:
        variant.skip(group, str(error))
    except BrokenMethodError as error:
        variant.fail(str(error))
