"""What a planner is asked, and what an answer consists of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ptq_eval.errors import PlanError
from ptq_eval.laws.base import Estimate
from ptq_eval.laws.plan.model import HIGH
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
            self.params, HIGH
        )


@dataclass(frozen=True)
class Answer:
    """One answer: what was asked, under which conditions it holds (`at`), and numbers with intervals.

    beyond: by which factor a condition, or the answer, lies outside the fitted range.  why_not: what it could not say
    and why; missing: the constants that this would take.  at_most: the loss is an upper bound.  stops_at_critical: D is
    D_crit, and the rest of the budget is not spent.
    """

    ask: str
    label: str
    at: Mapping[str, float]
    values: Mapping[str, Estimate] = field(default_factory=dict)
    beyond: Mapping[str, float] = field(default_factory=dict)
    why_not: str = ""
    missing: tuple[str, ...] = ()
    at_most: bool = False
    stops_at_critical: bool = False

    def to_dict(self) -> dict[str, Any]:
        """A JSON object."""
        plain = {name: getattr(self, name) for name in ("ask", "label", "why_not", "at_most", "stops_at_critical")}
        values = {name: value.to_dict() for name, value in self.values.items()}
        return {**plain, "at": dict(self.at), "values": values, "beyond": dict(self.beyond), "missing": [*self.missing]}
