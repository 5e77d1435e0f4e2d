"""What a planner is asked, and what an answer consists of."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from ptq_eval.errors import BitsError, NotPositiveError, PlanError, UnitsError
from ptq_eval.laws.arguments import MIN_COUNT
from ptq_eval.laws.base import Estimate
from ptq_eval.laws.calculator import FULL_BITS
from ptq_eval.laws.findings import Finding
from ptq_eval.laws.plan.optimum import SERVING, Budget
from ptq_eval.laws.plan.serving import check_group, read_formats

PLAUSIBLE = {
    "params": (MIN_COUNT, 1e16, "1B or 1e9", "millions or billions of parameters"),
    "tokens": (MIN_COUNT, 1e19, "20B or 2e10", "billions of tokens"),
    "served_tokens": (MIN_COUNT, 1e22, "1T or 1e12", "billions of tokens"),
    "memory": (1e3, 1e18, "8GB or 8e9", "gigabytes"),
    "budget": (1e6, 1e40, "1e21", "an exponent or petaflop/s-days"),
}
"""Each count's least and largest value that can be meant, how it is written, and what a smaller one is mistaken for."""
SERVED = (1.0, FULL_BITS)
"""Serving precisions that can be asked about, in bits."""


@dataclass(frozen=True)
class Question:
    """What is asked: N in parameters, D and served tokens in tokens, losses in nats per token, budget in FLOPs at 16
    bits, memory in bytes, precisions in bits, formats as "E4M3", `group_size` numbers per scale.  What is None is free,
    or not asked."""

    params: float | None = None
    tokens: float | None = None
    serve_bits: tuple[float, ...] = ()
    max_loss: float | None = None
    budget: float | None = None
    served_tokens: float = 0.0
    memory: float | None = None
    per_served: float = SERVING
    serve_format: tuple[str, ...] = ()
    group_size: float | None = None

    def __post_init__(self) -> None:
        """Raises PlanError for questions that lack something, UnitsError and NotPositiveError for impossible counts."""
        for name in PLAUSIBLE:
            value = getattr(self, name)
            if value is not None and not (name == "served_tokens" and value == 0):
                _require_plausible(name, value)
        low, high = SERVED
        if wrong := [bits for bits in self.serve_bits if not low <= bits <= high]:
            raise BitsError("--serve-bits out of range", got=f"{wrong[0]:g}", allowed=f"{low:g} to {high:g}")
        read_formats(self.serve_format)
        check_group(self.group_size)
        if self.max_loss is not None and not 0 < self.max_loss < math.inf:
            what = "--max-loss is what quantization may add, in nats per token"
            raise PlanError(what, got=f"{self.max_loss:g}", allowed="more than 0", remedy="--max-loss 0.01")
        if not 0 < self.per_served < math.inf:
            raise PlanError("--serve-cost must be positive", got=f"{self.per_served:g}", remedy="--serve-cost 0.125")
        self._require_enough()

    def _require_enough(self) -> None:
        if self.params is None and self.budget is None and self.memory is None:
            raise PlanError("nothing to plan for", remedy="give --params 1B, --budget 1e21 or --memory 8GB")
        if self.max_loss is not None and self.tokens is None:
            raise PlanError("--max-loss depends on the data", remedy="give --tokens as well")
        if self.served_tokens and self.spent is None:
            remedy = "give --budget, or --params and --tokens, whose cost is then the budget"
            raise PlanError("--served-tokens are paid from a budget", remedy=remedy)

    @property
    def spent(self) -> float | None:
        """The budget: as given, or what training `params` on `tokens` at 16 bits costs."""
        if self.budget is not None or self.params is None or self.tokens is None:
            return self.budget
        return 6 * self.params * self.tokens + Budget(0.0, self.served_tokens, self.per_served).serving(
            self.params, FULL_BITS
        )


def _require_plausible(name: str, value: float) -> None:
    """Refuse a count in the wrong unit: a bare "1" for a billion would be answered with nonsense."""
    least, largest, example, mistaken = PLAUSIBLE[name]
    flag = f"--{name.replace('_', '-')}"
    if not value > 0:
        raise NotPositiveError(f"{flag} must be positive", got=f"{value:g}", remedy=f"{flag} {example}")
    if not least <= value <= largest:
        why = f"looks like {mistaken}" if value < least else "is more than there can be"
        allowed = f"{least:.0e} to {largest:.0e}"
        raise UnitsError(f"{flag} {why}", got=f"{value:g}", allowed=allowed, remedy=f"{flag} {example}")


class Setting(StrEnum):
    """What is fixed while the best N, D and P under a budget are searched for."""

    FREE = "free"
    MEMORY = "memory"
    PARAMS = "params"


class Reason(StrEnum):
    """Why an answer cannot be given, or not in full; behind each kind, its facts."""

    CONSTANTS_UNKNOWN = "constants unknown"  # one_size, if the fit knows the loss of that N alone
    NOT_FITTED = "not fitted"  # found (see `laws.findings`)
    FIT_GIVES_NONE = "the fit gives no D_crit"  # found, run
    NO_TURN = "no number of tokens harms"
    SIZE_UNKNOWN = "N unknown"  # because
    SERVING_EXCEEDS_BUDGET = "serving exceeds the budget"
    BITS_NOT_A_VARIABLE = "bits are not a variable of this law"
    NO_PRECISION_SUFFICES = "no precision suffices"  # bits
    TOO_FAR = "too far beyond the data"  # factor
    NO_EFFECTIVE_PARAMS = "no effective parameters"  # bits
    LOWER_ALWAYS_BETTER = "fewer bits are always better"
    MOST_BITS_BEST = "the most bits searched are best"  # bits
    SERVING_PRECISION_BEST = "the serving precision is best"
    EDGE_OF_SEARCH = "N at the end of the search"
    EXCEEDS_MEMORY = "weights exceed the memory"
    STOPS_AT_UNKNOWN = "stops at an unknown D_crit"  # because


@dataclass(frozen=True)
class Why:
    """A reason with its facts; `missing`: the constants that would be needed; `part`: the part of an answer that it
    is about ("precision", "damage"), if not the whole."""

    kind: Reason
    facts: Mapping[str, Any] = field(default_factory=dict)
    missing: tuple[str, ...] = ()
    part: str = ""

    def __str__(self) -> str:
        facts = [self.facts["because"]] if "because" in self.facts else [*self.missing, *self.facts.values()]
        return ": ".join(filter(None, (self.kind.value, ", ".join(map(str, filter(None, facts))))))

    def to_dict(self) -> dict[str, Any]:
        """A JSON object."""
        facts = {name: fact.to_dict() if isinstance(fact, Why | Finding) else fact for name, fact in self.facts.items()}
        return {"kind": self.kind.name.lower(), **facts, **({"part": self.part} if self.part else {})}


@dataclass(frozen=True)
class Answer:
    """One answer: what was asked, under which conditions it holds (`at`), and numbers with intervals.

    label: the serving precision or format it is about ("4 bits", "E4M3"), if one.  beyond: by which factor a condition,
    or the answer, is outside the fitted range.  why_not: what could not be answered and why.  setting: of an optimum,
    what was fixed.  at_most: the loss is an upper bound.  stops_at_critical: D is D_crit, and the rest of the budget is
    not spent.
    """

    ask: str
    label: str
    at: Mapping[str, float]
    values: Mapping[str, Estimate] = field(default_factory=dict)
    beyond: Mapping[str, float] = field(default_factory=dict)
    why_not: tuple[Why, ...] = ()
    setting: Setting | None = None
    at_most: bool = False
    stops_at_critical: bool = False

    @property
    def missing(self) -> tuple[str, ...]:
        """The constants that a full answer would need and that are not known."""
        return tuple(dict.fromkeys(name for why in self.why_not for name in why.missing))

    def to_dict(self) -> dict[str, Any]:
        """A JSON object."""
        plain = {name: getattr(self, name) for name in ("ask", "label", "setting", "at_most", "stops_at_critical")}
        values = {name: value.to_dict() for name, value in self.values.items()}
        reasons = [why.to_dict() for why in self.why_not]
        known = {"at": dict(self.at), "values": values, "beyond": dict(self.beyond)}
        return {**plain, **known, "reasons": reasons, "missing": [*self.missing]}
