"""Loss of a model, and of the same model under other weights, window by window.

Each batch of windows passes through the full-precision model once, for all lanes; then each lane's weights are put
in place by reference, and the same batch gives its loss, KL(full precision ‖ lane) and top-1 agreement (`scoring`).
Sums are per window, because the window is the unit that the paired standard error resamples.

Lanes that do not fit in memory together come in groups.  The full-precision results are then kept from group to
group where the budget allows, and computed again where it does not: the same numbers in either case.  Under a
`StopRule` windows come in its order, and a lane leaves as soon as the rule is satisfied.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ptq_eval.early_stop import StopRule
from ptq_eval.measure.scoring import Output, Scores, compare, scorer
from ptq_eval.models.language_model import LanguageModel

_BATCH_TOKENS = {"cpu": 2048, "cuda": 65536}
_BATCH_ACTIVATIONS = 2**18
"""A batch may have more tokens than that where the model is so narrow that calls are what a pass costs."""

_LOGIT_BYTES = {"cpu": 2**28, "cuda": 2**31}

Tick = Callable[[int], None]


def batch_size(model: LanguageModel, seq_len: int) -> int:
    """Windows per batch: a function of shapes alone, so that results do not depend on free memory."""
    kind = model.device.type if model.device.type in _BATCH_TOKENS else "cpu"
    tokens = max(_BATCH_TOKENS[kind], _BATCH_ACTIVATIONS // model.width)
    tokens = min(tokens, _LOGIT_BYTES[kind] // (4 * model.vocab_size))
    return max(1, tokens // seq_len)


@dataclass
class _Running:
    """A lane on its way through the windows."""

    parameters: Mapping[str, nn.Parameter]
    scores: Scores = field(default_factory=Scores)
    settled: bool = False


class Evaluator:
    """Scores lanes on windows `ids` [n, time]; the first token of a window is context only.

    `budget` is the memory (bytes) that full-precision results may still take until the next call of `score`, at first
    none.  `tick(windows)` is called after each forward pass, and for windows that a lane need not see.
    """

    def __init__(
        self,
        model: LanguageModel,
        ids: Tensor,
        *,
        batch: int | None = None,
        rule: StopRule | None = None,
        tick: Tick | None = None,
    ) -> None:
        self.model, self.rule, self.tick = model, rule, tick or (lambda windows: None)
        self.order = rule.order(len(ids)) if rule else list(range(len(ids)))
        self.ids = ids.to(device=model.device, dtype=torch.long)[self.order]
        self._looks = self._cut(batch or batch_size(model, ids.shape[1]))
        self.judge = scorer(model, self.ids[:1])
        self._full = Scores()
        self._kept: dict[int, Output] = {}
        self.budget = 0.0

    @property
    def working_bytes(self) -> float:
        """Memory that a batch's hidden states or logits take, beside the weights."""
        batch = max(place.stop - place.start for places in self._looks for place in places)
        return self.judge.working_bytes(batch, self.ids.shape[1])

    @property
    def full(self) -> Scores:
        """The full-precision model's scores on all windows, in their own order."""
        for places in self._looks:
            for place in places:
                if place.start >= len(self._full.nll):
                    rows = self.ids[place]
                    self._note(place, compare(rows, self.judge.output(rows))[0])
        return self._ordered(self._full)[1]

    def score(self, lanes: Sequence[Mapping[str, Tensor]]) -> list[tuple[list[int], Scores]]:
        """Per lane with weights {name: [out, in]}: the windows it has seen, ascending, and their scores."""
        running = [_Running(self.model.parameters_of(lane)) for lane in lanes]
        for places in self._looks:
            active = [lane for lane in running if not lane.settled]
            for place in places if active else ():
                self._one(place, active)
            if self.rule:
                for lane in active:
                    lane.settled = self.rule.settled(self._full.nll, lane.scores.nll, self.ids.shape[1] - 1)
        for lane in running:
            self.tick(len(self.ids) - len(lane.scores.nll))
        return [self._ordered(lane.scores) for lane in running]

    def _cut(self, batch: int) -> list[list[slice]]:
        """The batches between one look of the rule and the next: the same for every lane, however it is grouped."""
        looks, start = [], 0
        for length in self.rule.chunks(len(self.ids)) if self.rule else [len(self.ids)]:
            stop = start + length
            looks.append([slice(place, min(place + batch, stop)) for place in range(start, stop, batch)])
            start = stop
        return looks

    def _one(self, place: slice, lanes: Sequence[_Running]) -> None:
        rows, full = self.ids[place], self._kept.get(place.start)
        if full is None:
            full = self.judge.output(rows)
            if full.nbytes <= self.budget:
                self.budget -= full.nbytes
                self._kept[place.start] = full
        together = self.judge.together(full)
        for first in range(0, len(lanes), together):
            self._compare(place, full, lanes[first : first + together])

    def _compare(self, place: slice, full: Output, lanes: Sequence[_Running]) -> None:
        rows, outputs = self.ids[place], []
        for lane in lanes:
            with self.model.carrying(lane.parameters):
                outputs.append(self.judge.output(rows))
            self.tick(len(rows))
        nll, scores = compare(rows, full, outputs)
        self._note(place, nll)
        for lane, score in zip(lanes, scores):
            lane.scores.extend(score)

    def _note(self, place: slice, nll: list[float]) -> None:
        """Take up full-precision losses, unless they are those of an earlier group of lanes again."""
        if place.start == len(self._full.nll):
            self._full.nll += nll
            self.tick(len(nll))

    def _ordered(self, scores: Scores) -> tuple[list[int], Scores]:
        seen = self.order[: len(scores.nll)]
        places = sorted(range(len(seen)), key=seen.__getitem__)
        return [seen[i] for i in places], scores.at(places)


def evaluate(
    model: LanguageModel,
    ids: Tensor,
    lanes: Sequence[Mapping[str, Tensor]] = (),
    *,
    batch: int | None = None,
    tick: Tick | None = None,
) -> tuple[Scores, list[Scores]]:
    """Scores of the model on windows `ids` [n, time], and of the model with each lane's weights {name: [out, in]}.

    Returns (full precision, one Scores per lane), all windows each.
    """
    evaluator = Evaluator(model, ids, batch=batch, tick=tick)
    scores = [score for _, score in evaluator.score(lanes)] if lanes else []
    return evaluator.full, scores
