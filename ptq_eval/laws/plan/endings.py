"""How a run should end that is served at few bits: stop, average, let the learning rate decay, or train quantized.

What is known has three origins, which are never mixed:

here       records of `ptq-eval probe` and `ptq-eval average` of the run that is planned
study      differences measured in results/precision, each ending at its nearest N and D/N (study_endings.csv)
published  the share of quantization-aware training with the least loss of Dremov et al. (arXiv 2509.22935, where one
           constant is fitted to runs of 86M to 2.2B parameters, 2.3B to 1.4T tokens and 1 to 6 bits):

               share = D_qat / D = exp(−a / ln S),    S = D / (N·bits/8)    tokens per byte of parameters

All differences are of the loss after quantization, in nats per token, between an ending and the trunk (or the last
checkpoint, for averages of a run) at the same D.  A choice compares endings with each other too: one is better than
another if their intervals do not overlap, because a difference errs by at most the sum of both errors, whatever their
correlation.  Endings that the study has at different N or D/N are separate choices, which are not compared.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import Any

from scipy import stats

from ptq_eval.config.plan import FULL_BITS
from ptq_eval.laws.base import Estimate
from ptq_eval.results.endings import Decision, configuration, smallest
from ptq_eval.results.gate.decision import Evidence
from ptq_eval.sampling import SIGNIFICANT

STUDY = "results/precision"
PAPER = "arXiv 2509.22935"
A = 6.7297
"""The constant of the published share, with natural logarithms; compared with reading notes on the paper
(papernotes.org, ICLR 2026), not with its text, so that it is open whether its N counts embeddings."""
SHARE_ERROR = 0.091
"""The mean absolute error of the published share about the best ones of its own runs."""
SHARE_RANGES: Mapping[str, tuple[float, float]] = {"N": (86e6, 2.2e9), "D": (2.3e9, 1.4e12), "bits": (1, 6)}
MIN_DISTANCE = 1.5
"""A row of the study nearer to the plan than this factor is at its N and D/N, which were measured in steps of two."""
MIN_EXCESS = 1.05
"""The least factor outside of a published range that is mentioned."""
_TABLE = Path(__file__).with_name("study_endings.csv")


class Origin(StrEnum):
    """Where a number is from."""

    HERE = "here"
    STUDY = "study"
    PUBLISHED = "published"


class Verdict(StrEnum):
    """What the endings of one origin say."""

    ONE = "one"
    """One is better than the trunk and than every other."""
    SEVERAL = "several"
    """The best is better than the trunk; whether it is better than others is undecided."""
    TRUNK = "trunk"
    """Every other ending is worse than the trunk, or the same."""
    UNDECIDED = "undecided"
    """None is better than the trunk, and some may be."""


@dataclass(frozen=True)
class Effect:
    """What an ending changes in the loss after quantization, against the trunk at the same D.

    at: N, D and bits.  error: the standard error, over windows and rounding (here) or over `runs` (study).
    detectable: the least change that would be decided with probability 0.8, infinite where the error is unknown.
    """

    ending: str
    at: Mapping[str, float]
    difference: Estimate
    error: float
    detectable: float
    decision: Decision
    runs: int = 1

    def to_dict(self) -> dict[str, Any]:
        """A JSON object."""
        numbers = {"error": self.error, "detectable": self.detectable}
        finite = {name: value if math.isfinite(value) else None for name, value in numbers.items()}
        about = {"ending": self.ending, "at": dict(self.at), "difference": self.difference.to_dict(), **finite}
        return {**about, "decision": self.decision.value, "runs": self.runs}


@dataclass(frozen=True)
class Choice:
    """The endings that are known from one origin for one way to quantize; `row` names that way, if it is one.

    source: an output folder, or the study, whose endings are at one N and D/N.  beyond: the factors between these and
    the plan's, from `MIN_DISTANCE` on.
    """

    origin: Origin
    source: str
    bits: float
    effects: tuple[Effect, ...]
    row: Mapping[str, Any]
    beyond: Mapping[str, float]

    @property
    def best(self) -> Effect | None:
        """Of the endings that are better than the trunk, the one with the least loss."""
        better = [one for one in self.effects if one.decision is Decision.BETTER]
        return min(better, key=lambda one: one.difference.value, default=None)

    @property
    def rivals(self) -> tuple[Effect, ...]:
        """Endings that may be as good as the best."""
        best = self.best
        if best is None:
            return ()
        others = [one for one in self.effects if one is not best]
        return tuple(one for one in others if not best.difference.high < one.difference.low)

    @property
    def verdict(self) -> Verdict:
        """What the effects say together."""
        if self.best is not None:
            return Verdict.SEVERAL if self.rivals else Verdict.ONE
        known = all(one.decision is not Decision.UNDECIDED for one in self.effects)
        return Verdict.TRUNK if known else Verdict.UNDECIDED

    def to_dict(self) -> dict[str, Any]:
        """A JSON object."""
        best = self.best
        about = {"origin": self.origin.value, "source": self.source, "bits": self.bits, "beyond": dict(self.beyond)}
        found = {"verdict": self.verdict.value, "best": best.ending if best else None}
        rivals = {"rivals": [one.ending for one in self.rivals]}
        return {**about, **found, **rivals, "effects": [one.to_dict() for one in self.effects]}


@dataclass(frozen=True)
class Share:
    """The published share of D that is best trained quantized, at one N, D and number of bits."""

    bits: float
    value: float
    beyond: Mapping[str, float]

    def to_dict(self) -> dict[str, Any]:
        """A JSON object."""
        about = {"origin": Origin.PUBLISHED.value, "source": PAPER, "mean_absolute_error": SHARE_ERROR}
        return {**about, "bits": self.bits, "share": self.value, "beyond": dict(self.beyond)}


@dataclass(frozen=True)
class Endings:
    """All that is known: `choices` by bits and origin, and the published shares.

    absent: the serving precisions that no record has, with those that they have.
    """

    choices: tuple[Choice, ...] = ()
    shares: tuple[Share, ...] = ()
    absent: tuple[float, ...] = ()
    recorded: tuple[float, ...] = ()

    @property
    def measured(self) -> bool:
        """Whether anything was measured here."""
        return any(choice.origin is Origin.HERE for choice in self.choices)

    def to_dict(self) -> dict[str, Any]:
        """A JSON object."""
        choices, shares = ([one.to_dict() for one in found] for found in (self.choices, self.shares))
        return {"choices": choices, "qat_share": shares}


def qat_share(N: float, D: float, bits: float) -> float:
    """The share of D tokens in which N parameters served at `bits` are best trained quantized; arXiv 2509.22935.

    Zero where there is no more than one token per byte of parameters, which the formula does not cover.
    """
    S = D / (N * bits / 8)
    return math.exp(-A / math.log(S)) if S > 1 else 0.0


def endings(
    bits: Sequence[float], N: float | None, D: float | None, records: Mapping[str, Mapping[str, Any]]
) -> Endings:
    """What is known of ways to end a run of N parameters at D tokens, served at each of `bits`.

    records: the content of probe.json or average.json, by the folder where it was found.
    """
    served, recorded = [b for b in bits if b < FULL_BITS], recorded_bits(records.values())
    choices = [choice for source, record in records.items() for choice in _here(source, record, served)]
    absent = tuple(b for b in served if b not in recorded) if records else ()
    if N is None or D is None:
        return Endings(tuple(choices), (), absent, recorded)
    choices += [choice for b in served for choice in _study(b, N, D)]
    shares = [Share(b, qat_share(N, D, b), _beyond(SHARE_RANGES, N=N, D=D, bits=b)) for b in served]
    order = sorted(choices, key=lambda choice: served.index(choice.bits))
    return Endings(tuple(order), tuple(one for one in shares if one.value > 0), absent, recorded)


def recorded_bits(records: Iterable[Mapping[str, Any]]) -> tuple[float, ...]:
    """The numbers of bits at which endings were compared, ascending."""
    return tuple(sorted({float(row["bits"]) for record in records for row in _compared(record)}))


def recorded_size(records: Iterable[Mapping[str, Any]]) -> tuple[float | None, float | None]:
    """The N and D of the ending with the largest D; None where they are unknown."""
    known = [row for record in records for row in record["rows"] if row["params"] and row["tokens"]]
    last = max(known, key=lambda row: row["tokens"], default=None)
    return (float(last["params"]), float(last["tokens"])) if last else (None, None)


def _compared(record: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The differences of quantized losses, at whole bits."""
    return [row for row in record["rows"] if row.get("decision") is not None and row["bits"] is not None]


def _here(source: str, record: Mapping[str, Any], bits: Sequence[float]) -> list[Choice]:
    found: dict[str, list[Mapping[str, Any]]] = {}
    for row in _compared(record):
        if row["bits"] in bits:
            found.setdefault(configuration(row), []).append(row)
    return [
        Choice(Origin.HERE, source, float(rows[0]["bits"]), tuple(map(_effect, rows)), rows[0], {})
        for rows in found.values()
    ]


def _effect(row: Mapping[str, Any]) -> Effect:
    error, difference = math.hypot(row["error"], row["chance"]), row["difference"]
    at = {"N": row["params"], "D": row["tokens"], "bits": row["bits"]}
    detectable = math.inf if row["detectable"] is None else row["detectable"]
    return Effect(
        row["ending"], at, _interval(difference, SIGNIFICANT * error), error, detectable, Decision(row["decision"])
    )


def _interval(value: float, half: float) -> Estimate:
    return Estimate(value, value - half, value + half)


@cache
def study_rows() -> tuple[Mapping[str, Any], ...]:
    """The rows of study_endings.csv: ending, params, bits, tokens_per_param, runs, difference, error."""
    with _TABLE.open(encoding="utf-8", newline="") as handle:
        rows = list(csv.DictReader(handle))
    return tuple({name: text if name == "ending" else float(text) for name, text in row.items()} for row in rows)


def _study(bits: float, N: float, D: float) -> list[Choice]:
    """Each ending of the study at its N and D/N nearest to the plan: a choice for each such place, the nearest first.

    The nearest has the least product of the factor in N and the factor in D/N.  QAT at other bits than those served is
    not counted.
    """

    def factors(row: Mapping[str, Any]) -> dict[str, float]:
        ratios = {"N": N / row["params"], "D/N": D / N / row["tokens_per_param"]}
        return {name: max(ratio, 1 / ratio) for name, ratio in ratios.items()}

    def nearness(row: Mapping[str, Any]) -> tuple[float, float]:
        return math.prod(factors(row).values()), row["tokens_per_param"]

    rows = [row for row in study_rows() if row["bits"] == bits]
    rows = [row for row in rows if "@" not in row["ending"] or row["ending"].endswith(f"@{bits:g}")]
    places: dict[tuple[float, float], list[Mapping[str, Any]]] = {}
    for ending in dict.fromkeys(row["ending"] for row in rows):
        nearest = min((row for row in rows if row["ending"] == ending), key=nearness)
        places.setdefault((nearest["params"], nearest["tokens_per_param"]), []).append(nearest)
    found = sorted(places.values(), key=lambda there: nearness(there[0]))
    return [
        Choice(Origin.STUDY, STUDY, bits, tuple(map(_of_study, there)), {}, _from(MIN_DISTANCE, factors(there[0])))
        for there in found
    ]


def _of_study(row: Mapping[str, Any]) -> Effect:
    """An effect is decided where a t interval at 95 % over runs excludes zero, and it is two errors at least."""
    runs, error = int(row["runs"]), row["error"]
    half = max(float(stats.t.ppf(0.975, runs - 1)), SIGNIFICANT) * error
    decision = Decision.UNDECIDED
    if abs(row["difference"]) > half:
        decision = Decision.BETTER if row["difference"] < 0 else Decision.WORSE
    at = {"N": row["params"], "D": row["params"] * row["tokens_per_param"], "bits": row["bits"]}
    detectable = smallest(Evidence(row["difference"], error, runs - 1, runs))
    return Effect(row["ending"], at, _interval(row["difference"], half), error, detectable, decision, runs)


def _beyond(ranges: Mapping[str, tuple[float, float]], **at: float) -> dict[str, float]:
    """The factor by which each value is outside its range, for those that are."""
    return _from(MIN_EXCESS, {name: max(at[name] / high, low / at[name]) for name, (low, high) in ranges.items()})


def _from(least: float, factors: Mapping[str, float]) -> dict[str, float]:
    return {name: factor for name, factor in factors.items() if factor >= least}
