"""Loss of a model, and of its quantized variants, window by window.

Each batch of windows passes through the full-precision model once, for all variants; then each variant's weights are
swapped in by reference, and the same batch gives its loss, KL(full precision ‖ variant) and top-1 agreement
(`scoring`).  Sums are kept per window, because the paired standard error resamples windows.

Variants that do not fit in memory together are scored in groups.  Full-precision outputs are kept from one group to
the next where the budget allows, and recomputed otherwise: the same numbers either way.  Under a `StopRule`, windows
are taken in its order, and a variant stops as soon as the rule is satisfied.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from ptq_eval.early_stop import StopRule
from ptq_eval.measure.kept import SECONDS, Kept, OnDisk
from ptq_eval.measure.scoring import Output, Scores, compare, scorer
from ptq_eval.models.language_model import LanguageModel
from ptq_eval.sampling import Design

_BATCH_TOKENS = {"cpu": 2048, "cuda": 65536}
_BATCH_ACTIVATIONS = 2**18
"""Narrow models take larger batches, of this many activations: for them the calls dominate the cost of a pass."""

_LOGIT_BYTES = {"cpu": 2**28, "cuda": 2**31}

_FULL = "full precision"

Tick = Callable[[int], None]


class Running(Protocol):
    """How a variant rounds what it computes, see `simulation.Simulation`."""

    def running(self) -> AbstractContextManager[None]:
        """Within the context, the model rounds."""
        ...

    def head_input(self, states: Tensor) -> Tensor:
        """The last hidden states as the head reads them."""
        ...


def batch_size(model: LanguageModel, seq_len: int) -> int:
    """Windows per batch: a function of shapes alone, so that results do not depend on free memory."""
    kind = model.device.type if model.device.type in _BATCH_TOKENS else "cpu"
    tokens = max(_BATCH_TOKENS[kind], _BATCH_ACTIVATIONS // model.width)
    tokens = min(tokens, _LOGIT_BYTES[kind] // (4 * model.vocab_size))
    return max(1, tokens // seq_len)


@dataclass
class _Progress:
    """A variant on its way through the windows: its parameters, its scores so far, and whether the rule ended it."""

    parameters: Mapping[str, Tensor]
    """Ready to be carried; those on disk are read for each batch."""
    name: str = ""
    """Under which its scores are kept."""
    simulation: Running | None = None
    scores: Scores = field(default_factory=Scores)
    found: Mapping[int, Scores] = field(default_factory=dict)
    """What an earlier process scored, by the first window of a batch."""
    settled: bool = False


class Evaluator:
    """Scores variants on windows `ids` [n, time]; the first token of a window is context only.

    `rule` may end a variant early, by the errors of the windows' `design`.  `budget` is the memory (bytes) that kept
    full-precision outputs may still take, zero unless set before `score`.
    `tick(windows)` is called after each forward pass, and for windows that a variant does not need.
    `tokens`: whether the scores of variants say what single tokens do.
    """

    def __init__(
        self,
        model: LanguageModel,
        ids: Tensor,
        *,
        batch: int | None = None,
        rule: StopRule | None = None,
        design: Design | None = None,
        tick: Tick | None = None,
        kept: Kept | None = None,
        tokens: bool = False,
    ) -> None:
        self.design, self.kept, self.tokens = design, kept, tokens
        self.model, self.rule, self.tick = model, rule, tick or (lambda windows: None)
        self.order = rule.order(len(ids)) if rule else list(range(len(ids)))
        self.ids = ids.to(device=model.device, dtype=torch.long)[self.order]
        self._looks = self._batches(batch or batch_size(model, ids.shape[1]))
        self.scorer = scorer(model, self.ids[:1])
        self._full = Scores()
        self._outputs: dict[int, Output] = {}
        self.budget = 0.0
        for start, nll in kept.parts(_FULL) if kept is not None else ():
            if start == len(self._full.nll):
                self._full.nll += nll

    @property
    def working_bytes(self) -> float:
        """Memory that a batch's hidden states or logits take, beside the weights."""
        largest = max(batch.stop - batch.start for batches in self._looks for batch in batches)
        return self.scorer.working_bytes(largest, self.ids.shape[1])

    @property
    def full(self) -> Scores:
        """The full-precision model's scores on all windows, in their original order."""
        for batches in self._looks:
            for batch in batches:
                if batch.start >= len(self._full.nll):
                    rows = self.ids[batch]
                    self._record_full(batch, compare(rows, self.scorer.output(rows))[0])
        return self._in_order(self._full)[1]

    def full_at(self, windows: Sequence[int]) -> list[float]:
        """The full-precision losses of windows that a variant has seen."""
        places = {window: place for place, window in enumerate(self.order)}
        return [self._full.nll[places[window]] for window in windows]

    def score(
        self,
        variants: Sequence[Mapping[str, Tensor]],
        simulations: Sequence[Running | None] | None = None,
        names: Sequence[str] | None = None,
    ) -> list[tuple[list[int], Scores]]:
        """For variants with weights {name: [out, in]}: the windows each has seen, ascending, and their scores.

        `simulations`: how each rounds its activations and cache, None where it does not.  `names`: what their scores
        are kept under.
        """
        own = self.model.parameters_of
        carried = {id(weights): weights if isinstance(weights, OnDisk) else own(weights) for weights in variants}
        rows = zip(variants, simulations or [None] * len(variants), names or [""] * len(variants))
        running = [self._progress(carried[id(weights)], name, simulation) for weights, simulation, name in rows]
        for batches in self._looks:
            active = [variant for variant in running if not variant.settled]
            for batch in batches if active else ():
                self._score_batch(batch, active)
            if self.rule:
                for variant in active:
                    scores = variant.scores.nll
                    variant.settled = self.rule.settled(self._full.nll, scores, self.ids.shape[1] - 1, self.design)
        for variant in running:
            self.tick(len(self.ids) - len(variant.scores.nll))
        return [self._in_order(variant.scores) for variant in running]

    def _progress(self, parameters: Mapping[str, Tensor], name: str, simulation: Running | None) -> _Progress:
        parts = self.kept.parts(_of(name)) if self.kept is not None and name else []
        found = {start: Scores.from_lists(lists) for start, *lists in parts}
        return _Progress(parameters, name, simulation, found=found)

    def _batches(self, size: int) -> list[list[slice]]:
        """The batches between one look of the rule and the next: the same however variants are grouped."""
        looks, start = [], 0
        for length in self.rule.chunks(len(self.ids)) if self.rule else [len(self.ids)]:
            stop = start + length
            looks.append([slice(first, min(first + size, stop)) for first in range(start, stop, size)])
            start = stop
        return looks

    def _score_batch(self, batch: slice, variants: Sequence[_Progress]) -> None:
        missing = []
        for variant in variants:
            if batch.start in variant.found:
                variant.scores.extend(variant.found[batch.start])
                self.tick(len(self.ids[batch]))
            else:
                missing.append(variant)
        if not missing and batch.start < len(self._full.nll):
            return
        rows, full = self.ids[batch], self._outputs.get(batch.start)
        if full is None:
            full = self.scorer.output(rows)
            if full.nbytes <= self.budget:
                self.budget -= full.nbytes
                self._outputs[batch.start] = full
        if not missing:
            self._record_full(batch, compare(rows, full)[0])
        at_once = self.scorer.variants_at_once(full)
        while missing:
            missing = self._compare(batch, full, missing, at_once)

    def _compare(self, batch: slice, full: Output, variants: Sequence[_Progress], at_once: int) -> Sequence[_Progress]:
        """Score the first of these variants, as many as are compared at once; the others."""
        rows, outputs, started = self.ids[batch], list[Output](), time.monotonic()
        for variant in variants[:at_once]:
            outputs.append(self._output(rows, variant))
            self.tick(len(rows))
            if self.kept is not None and time.monotonic() - started > SECONDS:
                break
        nll, scores = compare(rows, full, outputs, tokens=self.tokens)
        self._record_full(batch, nll)
        for variant, score in zip(variants, scores):
            variant.scores.extend(score)
            if self.kept is not None and variant.name:
                self.kept.add(_of(variant.name), [batch.start, *score.to_lists()])
        return variants[len(outputs) :]

    def _output(self, rows: Tensor, variant: _Progress) -> Output:
        waits = isinstance(variant.parameters, OnDisk)
        parameters = self.model.parameters_of(variant.parameters) if waits else variant.parameters
        with self.model.carrying(parameters):
            if variant.simulation is None:
                return self.scorer.output(rows)
            with variant.simulation.running():
                return self.scorer.output(rows, variant.simulation.head_input)

    def _record_full(self, batch: slice, nll: list[float]) -> None:
        """Record full-precision losses once; later groups of variants recompute the same values."""
        if batch.start == len(self._full.nll):
            self._full.nll += nll
            self.tick(len(nll))
            if self.kept is not None:
                self.kept.add(_FULL, [batch.start, nll])

    def _in_order(self, scores: Scores) -> tuple[list[int], Scores]:
        seen = self.order[: len(scores.nll)]
        ranks = sorted(range(len(seen)), key=seen.__getitem__)
        return [seen[i] for i in ranks], scores.at(ranks)


def _of(name: str) -> str:
    """Under which the scores of a variant are kept."""
    return f"{name} scores and tokens"


def evaluate(
    model: LanguageModel,
    ids: Tensor,
    variants: Sequence[Mapping[str, Tensor]] = (),
    *,
    batch: int | None = None,
    tick: Tick | None = None,
) -> tuple[Scores, list[Scores]]:
    """Scores of the model on windows `ids` [n, time], and of the model with each variant's weights {name: [out, in]}.

    Returns (full precision, one Scores per variant), all windows each.
    """
    evaluator = Evaluator(model, ids, batch=batch, tick=tick)
    scores = [score for _, score in evaluator.score(variants)] if variants else []
    return evaluator.full, scores
