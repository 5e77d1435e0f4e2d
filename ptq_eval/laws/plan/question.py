"""What a planner is asked, and what an answer consists of."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ptq_eval.errors import BitsError, NotPositiveError, PlanError, UnitsError
from ptq_eval.laws.arguments import LEAST_COUNT
from ptq_eval.laws.base import Estimate
from ptq_eval.laws.plan.model import HIGH
from ptq_eval.laws.plan.optimum import SERVING, Budget
from ptq_eval.laws.plan.serving import check_group, read_formats

PLAUSIBLE = {
    "params": (LEAST_COUNT, 1e16, "1B or 1e9", "millions or billions of parameters"),
    "tokens": (LEAST_COUNT, 1e19, "20B or 2e10", "billions of tokens"),
    "served_tokens": (LEAST_COUNT, 1e22, "1T or 1e12", "billions of tokens"),
    "memory": (1e3, 1e18, "8GB or 8e9", "gigabytes"),
    "budget": (1e6, 1e40, "1e21", "an exponent or petaflop/s-days"),
}
"""Each count's least and largest value that can be meant, how it is written, and what a smaller one is mistaken for."""
SERVED = (1.0, HIGH)
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
            self.params, HIGH
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
