"""Why a plan could not say something, in words."""

from __future__ import annotations

from collections.abc import Iterable

from ptq_eval.laws.findings import Finding
from ptq_eval.laws.plan.question import Answer, Reason
from ptq_eval.report.common.numbers import count
from ptq_eval.report.common.words import reason_text

_PARTS = {"": "", "precision": "the best training precision: ", "damage": "the loss served: "}
_REASONS = {
    Reason.CONSTANTS_UNKNOWN: "{missing} not known",
    Reason.NOT_FITTED: "no fit: {found}",
    Reason.FIT_GIVES_NONE: "{found}",
    Reason.NO_TURN: "no number of tokens harms under this law",
    Reason.SIZE_UNKNOWN: "N is not given, and {because}",
    Reason.SERVING_EXCEEDS_BUDGET: "the budget does not even pay for serving",
    Reason.BITS_NOT_A_VARIABLE: "this law does not depend on bits: compare the losses at the formats of the question",
    Reason.NO_PRECISION_SUFFICES: "under this law no precision up to {bits:g} bits adds so little",
    Reason.TOO_FAR: "more than {factor:g}× the largest D fitted: not to be believed",
    Reason.NO_EFFECTIVE_PARAMS: "trained at {bits:g} bits, no effective parameters are left under this law",
    Reason.LOWER_ALWAYS_BETTER: "fewer bits are always better under this law: P is the least that was searched",
    Reason.MOST_BITS_BEST: "{bits:g} bits are best, and more were not searched",
    Reason.SERVING_PRECISION_BEST: "no training precision above the serving one is better than that one",
    Reason.EDGE_OF_SEARCH: "N is at the end of the range that was searched",
    Reason.EXCEEDS_MEMORY: "its weights do not fit into --memory",
    Reason.STOPS_AT_UNKNOWN: "it stops at a D_crit that the plan does not give: {because}",
}


def why_not(answer: Answer) -> str:
    """What an answer could not say, and why."""
    return reasons(answer.why_not)


def reasons(why: Iterable[Finding]) -> str:
    """Reasons in words, joined."""
    return "; ".join(map(_reason, why))


def _reason(why: Finding) -> str:
    if not isinstance(why.kind, Reason):  # of a fit
        return reason_text(why.to_dict())
    facts = {name: _reason(fact) if isinstance(fact, Finding) else fact for name, fact in why.facts.items()}
    text = _REASONS[why.kind].format(**facts, missing=", ".join(facts.get("constants", ())))
    if "one_size" in facts:
        text = f"this fit knows the loss of N = {count(facts['one_size'])} alone; {text}"
    if facts.get("run"):
        text = f"the fit of run {facts['run']} says: {text}"
    return _PARTS[facts.get("part", "")] + text
