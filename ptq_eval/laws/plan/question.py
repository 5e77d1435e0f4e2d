"""What a planner is asked, and what an answer consists of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from ptq_eval.config.plan import PlanConfig
from ptq_eval.errors import PlanError
from ptq_eval.laws.base import Estimate
from ptq_eval.laws.calculator import FULL_BITS
from ptq_eval.laws.findings import Finding
from ptq_eval.laws.plan.optimum import Budget
from ptq_eval.laws.plan.serving import read_formats


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
    """Why an answer cannot be given, or not in full; behind each kind, its facts.

    `constants` are those that would be needed; `part` ("precision", "damage") names the part of an answer that the
    reason is about, if not the whole.
    """

    CONSTANTS_UNKNOWN = "constants_unknown"  # constants; one_size, if the loss is known for that N only
    NOT_FITTED = "not_fitted"  # found (see `laws.findings`)
    FIT_GIVES_NONE = "fit_gives_none"  # found, run
    NO_TURN = "no_turn"
    SIZE_UNKNOWN = "size_unknown"  # because, constants
    SERVING_EXCEEDS_BUDGET = "serving_exceeds_budget"
    BITS_NOT_A_VARIABLE = "bits_not_a_variable"
    NO_PRECISION_SUFFICES = "no_precision_suffices"  # bits
    TOO_FAR = "too_far"  # factor
    NO_EFFECTIVE_PARAMS = "no_effective_params"  # bits
    LOWER_ALWAYS_BETTER = "lower_always_better"
    MOST_BITS_BEST = "most_bits_best"  # bits
    SERVING_PRECISION_BEST = "serving_precision_best"
    EDGE_OF_SEARCH = "edge_of_search"
    EXCEEDS_MEMORY = "exceeds_memory"
    STOPS_AT_UNKNOWN = "stops_at_unknown"  # because


class Doubt(StrEnum):
    """What to beware of in the constants of a plan; behind each kind, its facts."""

    RANGE_UNKNOWN = "range_unknown"  # preset
    LAW_NOT_USABLE = "law_not_usable"  # law
    LAW_NOT_USED = "law_not_used"  # law
    ONE_EXPONENT = "one_exponent"


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
    why_not: tuple[Finding, ...] = ()
    setting: Setting | None = None
    at_most: bool = False
    stops_at_critical: bool = False

    @property
    def missing(self) -> tuple[str, ...]:
        """The constants that a full answer would need and that are not known."""
        return tuple(dict.fromkeys(name for why in self.why_not for name in why.facts.get("constants", ())))

    def to_dict(self) -> dict[str, Any]:
        """A JSON object."""
        plain = {name: getattr(self, name) for name in ("ask", "label", "setting", "at_most", "stops_at_critical")}
        values = {name: value.to_dict() for name, value in self.values.items()}
        reasons = [why.to_dict() for why in self.why_not]
        known = {"at": dict(self.at), "values": values, "beyond": dict(self.beyond)}
        return {**plain, **known, "reasons": reasons, "missing": [*self.missing]}
