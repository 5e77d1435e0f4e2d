"""What a planner is asked, and what an answer consists of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from ptq_eval.errors import PlanError
from ptq_eval.laws.base import Estimate
from ptq_eval.laws.calculator import FULL_BITS
from ptq_eval.laws.findings import Finding
from ptq_eval.laws.plan.optimum import Budget
from ptq_eval.laws.plan.serving import read_formats
from ptq_eval.plan_config import PlanConfig


@dataclass(frozen=True)
class Question(PlanConfig):
    """What a plan is asked.  Raises PlanError if something is missing, and what `PlanConfig` raises."""

    def __post_init__(self) -> None:
        super().__post_init__()
        read_formats(self.serve_format)
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
