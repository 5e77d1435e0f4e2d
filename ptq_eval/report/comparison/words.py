"""A comparison of laws in words: one short paragraph for each ranking and each question.

Nothing here decides anything: the outcomes are those that `ptq_eval.compare_laws` recorded.  A sentence never names a
better law if held-out points and AICc point in different directions, or if neither difference is significant.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ptq_eval.laws.compare.hypotheses import Equality, Untested
from ptq_eval.laws.compare.ranking import Exclusion, Outcome
from ptq_eval.laws.fit.bootstrap import MIN_RUNS
from ptq_eval.report.common.numbers import estimate, number, short
from ptq_eval.report.common.words import coverage_text, reason_text, with_fit_texts

Found = Mapping[str, Any]

CRITERION = (
    "Rank: mean error on held-out points (largest D, largest N, each bit-width), |y - f| over the root of squared "
    "standard error and squared mean size of both. A law is significantly worse if its error is more than 5 % higher "
    "or its AICc more than 2 higher, beyond chance, and it is better in neither. Errors come from paired "
    "differences, summed by run or, with fewer than three runs, by checkpoint. Where no law is worse, the probability "
    "of calling any so is at most 5 % for all rankings (Bonferroni, over all pairs of laws and both measures)."
)
QUESTIONS = (
    "Two constants differ, and tokens or phase add something, if the interval of the difference excludes zero after "
    "it was widened to hold at 95 % for all questions of that kind together (Bonferroni), and the AICc agrees."
)
HELD_OUT = {"D": "largest D", "N": "largest N", "P": "each bit-width"}
"""What is held out, by the variable it is about."""
_NAMES = {"tokens": "tokens", "phase": "the learning rate's phase"}
_EXCLUDED = {
    Exclusion.VARIABLE_UNKNOWN: "it reads {variable}, which is not known of {unknown} of {points} points",
    Exclusion.ONE_PHASE: "every checkpoint is at the same phase of its schedule",
    Exclusion.NOT_FITTED: "{reason}",
    Exclusion.UNREADABLE: "{what} ({got})",
}
_UNTESTED = {
    Untested.NO_RATES: "not tested: the records have no learning rates (of two or more checkpoints of a run) and no "
    "phases, so growth with tokens and the schedule's phase cannot be distinguished",
    Untested.ONE_PHASE: "every checkpoint is at the same phase of its schedule: the phase explains no change of "
    "degradation here, and growth with tokens is not due to the learning rate",
}


def ranking(comparison: Found) -> str:
    """Which law is best on these records, which ones are significantly worse, and which are not distinguishable."""
    laws = comparison["laws"]
    if not laws:
        return "no law can be fitted to these records"
    best, others = laws[0]["name"], laws[1:]
    if not others:
        return f"{best} is the only law that can be fitted to these records"
    held_out = bool(comparison["left_out"])
    groups: dict[Any, list[str]] = {}
    for law in others:
        text = f"{law['name']} ({_differences(law['against_best'], held_out)})"
        groups.setdefault(law["against_best"]["outcome"], []).append(text)
    parts = [f"best by {'held-out error' if held_out else 'AICc (nothing could be held out)'}: {best}"]
    if worse := groups.get(Outcome.WORSE):
        parts.append(f"significantly better than {_list(worse)}")
    if alike := groups.get(Outcome.INDISTINGUISHABLE):
        parts.append(f"not distinguishable from {_list(alike)}")
    if torn := groups.get(Outcome.CONTRADICTORY):
        parts.append(f"{_list(torn)} describes the records better but predicts no better, so neither is best")
    if comparison["clusters"] != "runs":
        parts.append("this holds for these few runs; whether others would agree is not covered")
    return "; ".join(parts)


def _differences(against: Found, held_out: bool) -> str:
    held = f"held-out error {number(against['error']):+.3f} ± {_error(against['error_se'])}, " if held_out else ""
    return f"{held}AICc {number(against['aicc']):+.1f} ± {_error(against['aicc_se'])}"


def _error(value: Any) -> str:
    return short(value) if math.isfinite(number(value)) else "unknown"


def _list(items: list[str]) -> str:
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"


def exclusion(reason: Found) -> str:
    """Why a law was excluded from a comparison."""
    facts = {**reason, "reason": reason_text(reason["reason"])} if "reason" in reason else reason
    return _EXCLUDED[Exclusion(reason["kind"])].format(**facts)


def phase(found: Found) -> str:
    """Whether delta follows tokens, the schedule's phase, or both, from the tests of the nested laws."""
    if not found["tested"]:
        if found["reason"] != Untested.NOT_FITTED:
            return _UNTESTED[Untested(found["reason"])]
        excluded = found["comparison"]["excluded"].items()
        return "not tested: " + "; ".join(f"{name}: {exclusion(reason)}" for name, reason in excluded)
    parts = [
        f"{name} added to the other {'lower' if one['aicc'] > 0 else 'raise'} the AICc by {abs(one['aicc']):.1f}, "
        f"{one['constant']} = {estimate(one)}"
        for name, one in found["adding"].items()
    ]
    text = _what_it_follows(found["adding"])
    return f"{text} ({'; '.join(parts)}; correlation of log D with the phase {found['correlation']:.2f})"


def _what_it_follows(adding: Found) -> str:
    """The first words of the answer; a significant effect that changes delta by little is called negligible."""
    adds = [name for name in _NAMES if adding[name]["adds"]]
    matter = [name for name in adds if adding[name]["matters"]]
    if not adds:
        return "undecided whether degradation follows tokens or the learning rate's phase: neither adds to the other"
    if len(matter) == 2:
        return "degradation follows both tokens and the learning rate's phase, and neither alone explains it"
    if not matter:
        return "what degradation follows here is negligible: " + " and ".join(_little(x, adding[x]) for x in adds)
    other = "phase" if matter == ["tokens"] else "tokens"
    if other in adds:
        return f"degradation follows {_NAMES[matter[0]]}: {_little(other, adding[other])}, which is negligible"
    verb = "adds" if other == "phase" else "add"
    return f"degradation follows {_NAMES[matter[0]]}: {_NAMES[other]} {verb} nothing significant"


def _little(name: str, one: Found) -> str:
    verb = "change" if name == "tokens" else "changes"
    return f"{_NAMES[name]} {verb} delta by {100 * one['change']:.2g} % over the whole range of these records"


def equality(found: Found) -> str:
    """Whether two constants may be equal, from the interval of their difference and the AICc of both fits."""
    a, b = found["a"], found["b"]
    if not found["tested"]:
        return f"not tested whether {a} = {b}: {reason_text(found['reason'])}"
    if found["outcome"] == Equality.TOO_FEW_POINTS:
        return f"not tested whether {a} = {b}: too few points"
    difference, gain = found["difference"], found["aicc_equal"] - found["aicc_free"]
    span = f"{a} - {b} = {short(difference['value'])}, {100 * found['level']:g} % interval "
    span += f"{short(difference['low'])} to {short(difference['high'])}"
    cost = f"AICc {abs(gain):.1f} {'higher' if gain > 0 else 'lower'} with {a} = {b}"
    if found["n_runs"] < MIN_RUNS:
        cost += f"; {found['n_runs']} run{'s' * (found['n_runs'] != 1)}, so differences between runs are in neither"
    first = {
        Equality.DIFFERENT: f"{a} and {b} differ",
        Equality.COMPATIBLE: f"{a} = {b} is compatible with these records",
        Equality.UNDECIDED: f"undecided whether {a} = {b}",
    }
    return f"{first[Equality(found['outcome'])]}: {span}; {cost}"


def _with_fits(one: Found) -> dict[str, Any]:
    return {**one, "laws": [with_fit_texts(law) for law in one["laws"]]}


def _with_interval(one: Found) -> dict[str, Any]:
    return {**one, "interval": coverage_text(one["covers"])} if "covers" in one else dict(one)


def with_words(found: Found) -> dict[str, Any]:
    """What `ptq_eval.compare_laws` found, with a "verdict" in words beside the values of each ranking and question."""
    return {
        **found,
        "comparisons": [{**_with_fits(one), "verdict": ranking(one)} for one in found["comparisons"]],
        "phase": [{**one, "verdict": phase(one)} for one in found["phase"]],
        "tests": [{**_with_interval(one), "verdict": equality(one)} for one in found["tests"]],
        "criterion": CRITERION,
    }
