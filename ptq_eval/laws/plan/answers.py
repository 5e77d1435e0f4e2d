"""Answers for someone who plans a training run: how many tokens, how many parameters, at which precisions.

    D_crit             beyond how many tokens more data makes the served model worse
    loss               before and after quantization, at given N and D
    smallest bits      the lowest serving precision that costs less than a given loss
    longer             what twice the tokens would change, before and after quantization
    lower              what the best training precision saves against 16 bits
    optimum            the N, D and P of least loss for at most a budget, free, at given N, or at given memory
    endings            stop, average, anneal, or train quantized at the end (see `endings`)

Every answer records the conditions under which it holds, has an interval if the constants have one, and gives the
factor by which each condition is beyond the data that the constants were fitted to.  An answer that needs constants
that are unknown names them and gives what can be given; nothing is filled in.

For the optimum three ways to a served model of b bits are compared: train at 16 bits and quantize; train at b bits and
serve as trained; train at some P in between and quantize.  The last needs C_w, C_a and C_kv of equation 9 of Kumar et
al.; without them its damage, hence its loss, is the most that the equation allows (`at_most`).  Under a law of formats
there is one way: train in the format that is served.  The budget is the most that may be spent: a model that is
quantized takes no more tokens than D_crit, so at a given N, or at given memory, part of the budget may remain
(`stops_at_critical`, with the share `spent`).  Each way is compared with training at 16 bits and serving at the same
bits (`against_16`), replicate by replicate, because the interval of a difference does not follow from
those of the losses.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ptq_eval.config.plan import SERVED_BITS
from ptq_eval.errors import PlanError
from ptq_eval.laws.base import Estimate
from ptq_eval.laws.calculator import FULL_BITS
from ptq_eval.laws.findings import Finding
from ptq_eval.laws.plan.endings import Endings, endings
from ptq_eval.laws.plan.grid_search import lowest
from ptq_eval.laws.plan.optimum import BITS, Budget, Optimum, optimum
from ptq_eval.laws.plan.question import Answer, Question, Reason, Setting
from ptq_eval.laws.plan.source import Source


class Planner:
    """The answers to one question from one source; `bits` are the serving precisions of the question."""

    def __init__(self, source: Source, question: Question) -> None:
        self.question = question
        self.source, self.bits = source.asked(question)
        self.formulas, self.grid = self.source.formulas(), self.source.formulas(2)
        self._searched: dict[tuple[Any, ...], Optimum] = {}

    def answers(self) -> list[Answer]:
        """Every answer, in order."""
        found, D, most = [self.critical(bits) for bits in self.bits], self.question.tokens, self.question.max_loss
        if D is not None:
            found += [self.loss(bits, D) for bits in self.bits]
            found += [self.longer(bits, D) for bits in self.bits]
            found += [self.smallest(D, most)] if most is not None else []
        return [*found, *self.optima(), self.lower()]

    def lacking(self, *parts: str, N: float | None = None) -> tuple[Finding, ...]:
        """Why these parts of `NEEDED` cannot be answered; empty if they can."""
        for part in parts:
            if found := self.source.refused.get("loss" if part == "slope" else part):
                return (Finding(Reason.NOT_FITTED, {"found": found}),)
        missing = tuple(dict.fromkeys(name for part in parts for name in self.formulas.missing(part, N)))
        size = {"one_size": self.source.one_size} if "A" in missing and self.source.one_size is not None else {}
        return (Finding(Reason.CONSTANTS_UNKNOWN, {**size, "constants": missing}),) if missing else ()

    def label(self, bits: float) -> str:
        """`4 bits`, or the format of the question."""
        return self.source.serving.label(bits)

    def trained(self, bits: float | None) -> float:
        """The training precision of what is served at `bits`: 16 bits, or the bits of the format it is trained in."""
        return bits if self.formulas.trained_as_served and bits is not None else FULL_BITS

    def size(self, bits: float) -> float | None:
        """The N that questions about serving at `bits` are answered for; None if it is unknown."""
        if self.question.params is not None:
            return self.question.params
        if self.question.budget is None:
            assert self.question.memory is not None
            return 8 * self.question.memory / bits
        if self.lacking("loss"):
            return None
        setting = {} if self.question.memory is None else {"memory": self.question.memory}
        serve = None if self.lacking("damage") else bits
        best = self.search(self.trained(serve), serve, **setting)
        return float(best.N[0]) if best.N[0] > 0 else None

    def _no_size(self) -> tuple[Finding, ...]:
        """Why N is unknown; the constants that would determine it belong to the loss."""
        because = self.lacking("loss") or (Finding(Reason.SERVING_EXCEEDS_BUDGET),)
        facts = {"because": because[0], "constants": because[0].facts.get("constants", ())}
        return (Finding(Reason.SIZE_UNKNOWN, facts),)

    def critical(self, bits: float) -> Answer:
        """D_crit at one serving precision."""
        N, about = self.size(bits), ("critical_tokens", self.label(bits))
        if N is None:
            return Answer(*about, {"bits": bits}, why_not=self._no_size())
        at = {"N": N, "bits": bits}
        tokens, why = Estimate(math.nan), self.lacking("damage", "slope")
        if not why:
            tokens, why = self.source.critical_tokens(N, bits)
        if why:
            return Answer(*about, at, beyond=self.source.beyond(**at), why_not=why)
        ratio = Estimate(*(end / N for end in (tokens.value, tokens.low, tokens.high)))
        return Answer(*about, at, {"D": tokens, "tokens_per_param": ratio}, self.source.beyond(**at, D=tokens.value))

    def loss(self, bits: float, D: float) -> Answer:
        """The loss before and after quantization of a model trained on D tokens at 16 bits."""
        N, about = self.size(bits), ("loss", self.label(bits))
        if N is None:
            return Answer(*about, {"D": D, "bits": bits}, why_not=self._no_size())
        at, values = {"N": N, "D": D, "bits": bits}, {}
        no_loss, no_damage = self.lacking("loss", N=N), self.lacking("damage")
        if not no_loss:
            values["before"] = self.source.estimate(self.formulas.before(N, D))
        if not no_damage:
            values["damage"] = self.source.estimate(self.formulas.damage(N, D, bits))
        if len(values) == 2:
            values["after"] = self.source.estimate(self.formulas.before(N, D) + self.formulas.damage(N, D, bits))
        return Answer(*about, at, values, self.source.beyond(**at, P=FULL_BITS), no_loss + no_damage)

    def smallest(self, D: float, most: float) -> Answer:
        """The smallest serving precision that adds less than `most` nats per token."""
        N, about = self.size(self.bits[0]), ("smallest_bits", "")
        why = self.lacking("damage")
        if not why and not self.formulas.by_bits:
            why = (Finding(Reason.BITS_NOT_A_VARIABLE),)
        if why or N is None:
            return Answer(*about, {"D": D, "max_loss": most}, why_not=why or self._no_size())
        at = {"N": N, "D": D, "max_loss": most}
        bits = self.source.estimate(self.formulas.smallest_bits(N, D, most), log=False)
        if bits.value > SERVED_BITS[1]:
            return Answer(*about, at, why_not=(Finding(Reason.NO_PRECISION_SUFFICES, {"bits": SERVED_BITS[1]}),))
        ends = (bits.value, bits.low, bits.high)
        whole = Estimate(*(max(float(np.ceil(end - 1e-9)), SERVED_BITS[0]) for end in ends))
        beyond = self.source.beyond(N=N, D=D, bits=bits.value)
        return Answer(*about, at, {"bits": bits, "whole_bits": whole}, beyond)

    def longer(self, bits: float, D: float) -> Answer:
        """What training on twice the tokens would change in the loss before and after quantization."""
        N, about = self.size(bits), ("longer", self.label(bits))
        why = self.lacking("damage", "slope")
        if why or N is None:
            return Answer(*about, {"D": D, "bits": bits}, why_not=why or self._no_size())
        c, f = self.formulas.constants, self.formulas
        before = c["B"] * ((2 * D) ** -c["beta"] - D ** -c["beta"])
        added = f.damage(N, 2 * D, bits) - f.damage(N, D, bits)
        changes = {"before": before, "after": before + added}
        at = {"N": N, "D": D, "bits": bits}
        values = {name: self.source.estimate(change, log=False) for name, change in changes.items()}
        return Answer(*about, at, values, self.source.beyond(N=N, D=2 * D, bits=bits))

    def lower(self) -> Answer:
        """The training precision that is best at any budget with N, D and P free, and the compute that it needs for a
        given loss as a share of what 16 bits need: P/f(P) over its value at 16 bits."""
        if why := self.lacking("precision"):
            return Answer("lower", "", {}, why_not=why)

        def price(_: np.ndarray, P: np.ndarray) -> np.ndarray:
            with np.errstate(divide="ignore"):
                return P / self.grid.share(P)

        (_, P), cheapest, edges = lowest(price, [(0.0, 0.0), BITS])
        share = cheapest / (FULL_BITS / self.formulas.share(FULL_BITS))
        values = {"P": self.source.estimate(P), "compute_share": self.source.estimate(share)}
        at_edge = {0: (Finding(Reason.LOWER_ALWAYS_BETTER),), 1: (Finding(Reason.MOST_BITS_BEST, {"bits": BITS[1]}),)}
        why = () if edges[1] is None else at_edge[edges[1]]
        return Answer("lower", "", {}, values, self.source.beyond(P=values["P"].value), why)

    def search(self, P: float | tuple[float, float], bits: float | None, **setting: Any) -> Optimum:
        """The optimum under the budget for training at P and serving at `bits`, or as trained for None."""
        case = (P, bits, tuple(sorted(setting.items())))
        if case in self._searched:
            return self._searched[case]
        question = self.question
        assert question.spent is not None
        budget = Budget(question.spent, question.served_tokens, question.per_served)

        def loss(N: np.ndarray, D: np.ndarray, at: np.ndarray) -> np.ndarray:
            before = self.grid.before(N, D, at)
            return before if bits is None else before + self.grid.damage(N, D, bits, at)

        def turn(N: np.ndarray, at: np.ndarray) -> np.ndarray:
            return self.grid.critical_tokens(N, bits, at)

        harms = None if bits is None else turn
        self._searched[case] = optimum(loss, budget, turn=harms, P=P, serve=bits, **setting)
        return self._searched[case]

    def optima(self) -> Iterator[Answer]:
        """The best N, D and P under the budget: free, at given N, at given memory; for every way to serve."""
        question = self.question
        if question.spent is None:
            return
        yield from self._optima(Setting.FREE, {})
        if question.memory is not None:
            yield from self._optima(Setting.MEMORY, {"memory": question.memory})
        if question.params is not None:
            yield from self._optima(Setting.PARAMS, {"N": question.params})

    def _optima(self, setting: Setting, fixed: Mapping[str, float]) -> Iterator[Answer]:
        at = {"budget": self.question.spent or 0.0, "served_tokens": self.question.served_tokens, **fixed}
        blank = Answer("optimum", "", at, setting=setting)
        if why := self.lacking("loss", N=fixed.get("N")):
            yield replace(blank, why_not=why)
            return
        no_precision, no_damage = self.lacking("precision"), self.lacking("damage")
        trained: list[float | tuple[float, float]] = [FULL_BITS]
        if not no_precision:
            trained = [BITS, FULL_BITS, *(bits for bits in self.bits if bits != FULL_BITS)]
        for P in trained:
            yield self._best(blank, fixed, P, None)
        own = self.formulas.trained_as_served
        for bits in () if no_damage else (bits for bits in self.bits if bits < FULL_BITS or own):
            for P in (self.trained(bits), *([(bits, FULL_BITS)] if self.formulas.unified else [])):
                yield self._best(blank, fixed, P, bits)
        for part, why in (("precision", no_precision), ("damage", no_damage)):
            if why:
                yield replace(blank, why_not=(replace(why[0], facts={**why[0].facts, "part": part}),))

    def _best(self, blank: Answer, fixed: Mapping[str, float], P: Any, bits: float | None) -> Answer:
        """The best N, D and P for training at P, or in a range of it, and serving at `bits` or as trained."""
        best = self.search(P, bits, **fixed)
        values = {name: self.source.estimate(getattr(best, name)) for name in ("N", "D", "P", "loss")}
        at = {**blank.at, **({} if bits is None else {"serve_bits": bits})}
        if isinstance(P, float):
            at["train_bits"] = P
        spent = self.source.estimate(best.spent, log=False)
        values["spent"] = replace(spent, high=min(spent.high, 1.0))  # the stretched interval may exceed 1
        why = self._objection(best, P) or self._too_large(best, bits, fixed) or self._unsure(best, bits)
        if not math.isfinite(values["loss"].value) or (bits is not None and "P low" in best.edge):
            return replace(blank, at=at, why_not=why)
        served = P if bits is None and isinstance(P, float) and P < FULL_BITS and not self.lacking("damage") else bits
        if self.formulas.trained_as_served:
            served = None
        if P != FULL_BITS:
            full = self.search(FULL_BITS, served, **fixed)
            if math.isfinite(full.loss[0]):  # what 16 bits cost may be more than the budget
                values["against_16"] = self.source.estimate(best.loss - full.loss, log=False)
        beyond = self.source.beyond(**{name: values[name].value for name in ("N", "D", "P")}, bits=bits)
        at_most = bits is not None and not isinstance(P, float) and not self.formulas.robust
        known = {"at": at, "values": values, "beyond": beyond, "why_not": why}
        return replace(blank, **known, at_most=at_most, stops_at_critical=best.stops)

    def _too_large(self, best: Optimum, bits: float | None, fixed: Mapping[str, float]) -> tuple[Finding, ...]:
        """Whether a model of the given N takes more memory than there is."""
        memory, held = self.question.memory, best.P[0] if bits is None else bits
        if memory is None or "N" not in fixed or not fixed["N"] * held / 8 > memory * (1 + 1e-9):
            return ()
        return (Finding(Reason.EXCEEDS_MEMORY),)

    def _unsure(self, best: Optimum, bits: float | None) -> tuple[Finding, ...]:
        """Why the D_crit that an optimum stops at is not to be relied on."""
        why = self.source.critical_tokens(float(best.N[0]), bits)[1] if best.stops and bits is not None else ()
        return (Finding(Reason.STOPS_AT_UNKNOWN, {"because": why[0]}),) if why else ()

    def _objection(self, best: Optimum, P: float | tuple[float, float]) -> tuple[Finding, ...]:
        """What is wrong with an optimum."""
        if not math.isfinite(best.loss[0]):
            if isinstance(P, float) and not np.atleast_1d(self.formulas.share(P))[0] > 0:
                return (Finding(Reason.NO_EFFECTIVE_PARAMS, {"bits": P}),)
            return (Finding(Reason.SERVING_EXCEEDS_BUDGET),)
        if "P low" in best.edge:
            return (Finding(Reason.LOWER_ALWAYS_BETTER if P == BITS else Reason.SERVING_PRECISION_BEST),)
        if "P high" in best.edge and P == BITS:
            return (Finding(Reason.MOST_BITS_BEST, {"bits": BITS[1]}),)
        return (Finding(Reason.EDGE_OF_SEARCH),) if {"N low", "N high"} & set(best.edge) else ()


@dataclass(frozen=True)
class Plan:
    """A question with its answers; the figures ask `planner` for curves."""

    source: Source
    question: Question
    answers: tuple[Answer, ...]
    planner: Planner = field(repr=False, compare=False)
    endings: Endings = field(default_factory=Endings)

    @property
    def answered(self) -> bool:
        """Whether the constants give any answer at all, or endings were measured."""
        return self.endings.measured or any(answer.values for answer in self.answers)

    def of(self, ask: str) -> list[Answer]:
        """The answers of one kind, in order."""
        return [answer for answer in self.answers if answer.ask == ask]


def plan(source: Source, question: Question, records: Mapping[str, Mapping[str, Any]] | None = None) -> Plan:
    """Every answer that `source` has to `question`; one that lacks constants says which.

    records: what `probe` and `average` measured of this run, by file.  Raises PlanError if an option does not apply to
    the law.
    """
    planner = Planner(source, question)
    bits = () if planner.source.serving.formats else planner.bits
    known = endings(bits, question.params, question.tokens, records or {})
    return Plan(planner.source, question, tuple(planner.answers()), planner, known)


@dataclass(frozen=True)
class Remedy:
    """What the same constants can answer where they give no answer: at other serving bits, or at a D."""

    bits: tuple[float, ...]
    tokens: float | None


def remedy(found: Plan) -> Remedy:
    """What would be answered if the question had other serving bits, or tokens."""

    def answered(**changes: Any) -> bool:
        try:
            return plan(found.source, replace(found.question, **changes)).answered
        except PlanError:
            return False

    bits = tuple(b for b in found.source.bits if b not in found.planner.bits and answered(serve_bits=(b,)))
    D = found.source.ranges.get("D", (0.0, 0.0))[1]
    asked = found.question.tokens is None and found.question.params is not None
    return Remedy(bits, D if asked and D and answered(tokens=D) else None)
