"""Answers for someone who plans a training run: how many tokens, how many parameters, at which precisions.

    D_crit             beyond how many tokens more data makes the served model worse
    loss               before and after quantization, at given N and D
    smallest bits      the lowest serving precision that costs less than a given loss
    longer             what twice the tokens would change, before and after quantization
    lower              what the best training precision saves against 16 bits
    optimum            the N, D and P of least loss for at most a budget, free, at given N, or at given memory

Every answer says under which conditions it holds, carries an interval where the constants have one, and names by
which factor each condition lies beyond the data that the constants were fitted to.  An answer that needs constants
which are not there names them and gives what can be given; nothing is filled in.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ptq_eval.errors import PlanError
from ptq_eval.laws.base import Estimate
from ptq_eval.laws.plan.grid_search import lowest
from ptq_eval.laws.plan.model import HIGH
from ptq_eval.laws.plan.optima import ALWAYS_LOWER, AT_CEILING, optima
from ptq_eval.laws.plan.optimum import BITS, Budget, Optimum, optimum
from ptq_eval.laws.plan.question import Answer, Question
from ptq_eval.laws.plan.source import Source
from ptq_eval.plan_config import SERVED_BITS


class Planner:
    """The answers to one question from one source; `bits` are the serving precisions that are looked at."""

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
        return [*found, *optima(self), self.lower()]

    def lacking(self, *parts: str, N: float | None = None) -> tuple[str, tuple[str, ...]]:
        """Why these parts of `plan_formulas.NEEDED` cannot be answered, and the constants that are missing."""
        for part in parts:
            if why := self.source.refused.get("loss" if part == "slope" else part):
                return why, ()
        missing = tuple(dict.fromkeys(name for part in parts for name in self.formulas.missing(part, N)))
        why = f"{', '.join(missing)} not known" if missing else ""
        if "A" in missing and self.source.one_size is not None:
            why = f"this fit knows the loss of N = {self.source.one_size:.3g} alone; {why}"
        return why, missing

    def label(self, bits: float) -> str:
        """`4 bits`, or the format asked about."""
        return self.source.serving.label(bits)

    def trained(self, bits: float | None) -> float:
        """The training precision of what is served at `bits`: 16 bits, or those of the format it is trained in."""
        return bits if self.formulas.trained_as_served and bits is not None else HIGH

    def size(self, bits: float) -> float | None:
        """The N that questions about serving at `bits` are answered for; None where it cannot be told."""
        if self.question.params is not None:
            return self.question.params
        if self.question.budget is None:
            assert self.question.memory is not None
            return 8 * self.question.memory / bits
        if self.lacking("loss")[0]:
            return None
        setting = {} if self.question.memory is None else {"memory": self.question.memory}
        serve = None if self.lacking("damage")[0] else bits
        best = self.search(self.trained(serve), serve, **setting)
        return float(best.N[0]) if best.N[0] > 0 else None

    def _no_size(self) -> tuple[str, tuple[str, ...]]:
        why, missing = self.lacking("loss")
        return f"N is not given, and {why or 'the budget does not even pay for serving'}", missing

    def critical(self, bits: float) -> Answer:
        """D_crit at one serving precision."""
        N, about = self.size(bits), ("critical_tokens", self.label(bits))
        if N is None:
            why, missing = self._no_size()
            return Answer(*about, {"bits": bits}, why_not=why, missing=missing)
        why, missing = self.lacking("damage", "slope")
        at = {"N": N, "bits": bits}
        if why:
            return Answer(*about, at, beyond=self.source.beyond(**at), why_not=why, missing=missing)
        tokens, why = self.source.critical_tokens(N, bits)
        if why:
            return Answer(*about, at, beyond=self.source.beyond(**at), why_not=why)
        ratio = Estimate(*(end / N for end in (tokens.value, tokens.low, tokens.high)))
        beyond = self.source.beyond(**at, D=tokens.value)
        return Answer(*about, at, {"D": tokens, "tokens_per_param": ratio}, beyond)

    def loss(self, bits: float, D: float) -> Answer:
        """The loss before and after quantization of a model trained on D tokens at 16 bits."""
        N, about = self.size(bits), ("loss", self.label(bits))
        if N is None:
            why, missing = self._no_size()
            return Answer(*about, {"D": D, "bits": bits}, why_not=why, missing=missing)
        at, values = {"N": N, "D": D, "bits": bits}, {}
        no_loss, no_damage = self.lacking("loss", N=N), self.lacking("damage")
        if not no_loss[0]:
            values["before"] = self.source.estimate(self.formulas.before(N, D))
        if not no_damage[0]:
            values["damage"] = self.source.estimate(self.formulas.damage(N, D, bits))
        if len(values) == 2:
            values["after"] = self.source.estimate(self.formulas.before(N, D) + self.formulas.damage(N, D, bits))
        why = "; ".join(why for why, _ in (no_loss, no_damage) if why)
        return Answer(*about, at, values, self.source.beyond(**at, P=HIGH), why, no_loss[1] + no_damage[1])

    def smallest(self, D: float, most: float) -> Answer:
        """The smallest serving precision that adds less than `most` nats per token."""
        N = self.size(self.bits[0])
        about = ("smallest_bits", f"adds less than {most:g}")
        why, missing = self.lacking("damage")
        if not why and not self.formulas.by_bits:
            why = "this law has no number of bits to search: compare the losses at those asked about"
        if why or N is None:
            return Answer(*about, {"D": D, "max_loss": most}, why_not=why or self._no_size()[0], missing=missing)
        at = {"N": N, "D": D, "max_loss": most}
        bits = self.source.estimate(self.formulas.smallest_bits(N, D, most), log=False)
        if bits.value > SERVED_BITS[1]:
            why = f"under this law no precision up to {SERVED_BITS[1]:g} bits adds so little"
            return Answer(*about, at, why_not=why)
        whole = Estimate(
            *(max(float(np.ceil(end - 1e-9)), SERVED_BITS[0]) for end in (bits.value, bits.low, bits.high))
        )
        beyond = self.source.beyond(N=N, D=D, bits=bits.value)
        return Answer(*about, at, {"bits": bits, "whole_bits": whole}, beyond)

    def longer(self, bits: float, D: float) -> Answer:
        """What training on twice the tokens would change in the loss before and after quantization."""
        N, about = self.size(bits), ("longer", self.label(bits))
        why, missing = self.lacking("damage", "slope")
        if why or N is None:
            return Answer(*about, {"D": D, "bits": bits}, why_not=why or self._no_size()[0], missing=missing)
        c, f = self.formulas.constants, self.formulas
        before = c["B"] * ((2 * D) ** -c["beta"] - D ** -c["beta"])
        added = f.damage(N, 2 * D, bits) - f.damage(N, D, bits)
        changes = {"before": before, "after": before + added}
        at = {"N": N, "D": D, "bits": bits}
        values = {name: self.source.estimate(change, log=False) for name, change in changes.items()}
        return Answer(*about, at, values, self.source.beyond(N=N, D=2 * D, bits=bits))

    def lower(self) -> Answer:
        """The training precision that is best at any budget where N, D and P are free, and the compute that it needs
        for a given loss as a share of what 16 bits need: P/f(P) over its value at 16 bits."""
        about, (why, missing) = ("lower", "N, D and P free"), self.lacking("precision")
        if why:
            return Answer(*about, {}, why_not=why, missing=missing)

        def price(_: np.ndarray, P: np.ndarray) -> np.ndarray:
            with np.errstate(divide="ignore"):
                return P / self.grid.share(P)

        (_, P), cheapest, edges = lowest(price, [(0.0, 0.0), BITS])
        share = cheapest / (HIGH / self.formulas.share(HIGH))
        values = {"P": self.source.estimate(P), "compute_share": self.source.estimate(share)}
        beyond = self.source.beyond(P=values["P"].value)
        why = {0: ALWAYS_LOWER, 1: AT_CEILING}.get(-1 if edges[1] is None else edges[1], "")
        return Answer(*about, {}, values, beyond, why)

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


@dataclass(frozen=True)
class Plan:
    """A question with its answers; `planner` goes on to answer what the figures ask."""

    source: Source
    question: Question
    answers: tuple[Answer, ...]
    planner: Planner = field(repr=False, compare=False)

    def of(self, ask: str) -> list[Answer]:
        """The answers of one kind, in order."""
        return [answer for answer in self.answers if answer.ask == ask]


def plan(source: Source, question: Question) -> Plan:
    """Every answer that `source` has to `question`; what it lacks constants for is an answer that says so.

    Raises PlanError where not a single one can be given, or an option has no place in the law at hand.
    """
    planner = Planner(source, question)
    answers = tuple(planner.answers())
    if not any(answer.values for answer in answers):
        asked = [answer for answer in answers if answer.ask != "lower" and answer.why_not]
        missing = sorted({name for answer in asked for name in answer.missing})
        reasons = "; ".join(dict.fromkeys(why for answer in asked for why in answer.why_not.split("; ")))
        by_constants = bool(missing) and all(answer.missing for answer in asked)
        other = "measure more, or plan from another preset or fit"
        remedy = f"constants that have {', '.join(missing)}" if by_constants else other
        raise PlanError(f"{source.name} cannot answer this", got=reasons, remedy=remedy)
    return Plan(planner.source, question, answers, planner)
