"""How a run should end, in words and as rows: each number with its origin, and what is not decided as such."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from ptq_eval.laws.plan.endings import PAPER, SHARE_ERROR, Choice, Effect, Origin, Verdict
from ptq_eval.laws.turning.verdict import MAX_FACTOR
from ptq_eval.report.common.numbers import count, percent, plus_minus, rough, short
from ptq_eval.report.common.words import listed
from ptq_eval.report.endings.words import decision, method_names

if TYPE_CHECKING:
    from ptq_eval.laws.plan.answers import Plan

HEADER = ("origin", "ending", "N", "D/N", "change", "could have seen", "runs", "", "from the plan")
_ORIGINS = {
    Origin.HERE: "measured here", Origin.STUDY: "measured in {source}",
    Origin.PUBLISHED: "published law, not checked on this run",
}  # fmt: skip
_VERDICTS = {
    Verdict.ONE: "{best} is better than the trunk at the same D{others}",
    Verdict.SEVERAL: "{best} is better than the trunk at the same D; whether it is better than {rivals} is undecided",
    Verdict.TRUNK: "not better than the trunk at the same D: {all}",
    Verdict.UNDECIDED: "undecided, not known to be better than the trunk at the same D: {seen}",
}


def sentences(plan: Plan) -> Iterator[str]:
    """One sentence for each number of bits, origin and way to quantize, one for the published shares."""
    for choice, method in zip(plan.endings.choices, _methods(plan.endings.choices)):
        served = ", ".join(filter(None, [plan.planner.label(choice.bits), method]))
        where, far = f"{origin(choice)}{_place(choice)}", _far(choice.beyond, "from the plan")
        yield f"To end the run, served at {served}, {where}: {_verdict(choice)}{far}."
    shares = plan.endings.shares
    if shares:
        first, *more = (f"{percent(one.value)}{{}} at {plan.planner.label(one.bits)}" for one in shares)
        each = ", ".join([first.format(" of D"), *(one.format("") for one in more)])
        beyond: dict[str, float] = {}
        for one in shares:
            beyond |= {name: max(factor, beyond.get(name, 0.0)) for name, factor in one.beyond.items()}
        yield (
            f"To end the run, {_ORIGINS[Origin.PUBLISHED]} ({PAPER}): train with rounded weights for the last {each}"
            f", ± {100 * SHARE_ERROR:.0f} percentage points in the mean over its own runs"
            f"{_far(beyond, 'outside of what was measured')}."
        )


def cautions(plan: Plan) -> Iterator[str]:
    """What was not measured here, and what the errors of what was do not cover."""
    known = plan.endings
    if known.measured:
        yield "how to end, measured here: errors are over windows and rounding, not over other seeds of the run"
    elif known.choices and not known.recorded:
        yield "how to end: nothing was measured here; `ptq-eval probe` or `average`, then --endings OUT"
    compared = Counter(choice.bits for choice in known.choices if choice.origin is Origin.STUDY)
    if apart := [plan.planner.label(bits) for bits, places in compared.items() if places > 1]:
        yield f"how to end, {', '.join(apart)}: endings that the study has at different N or D/N are not comparable"
    if known.absent:
        bits, others = (", ".join(f"{one:g}" for one in found) for found in (known.absent, known.recorded))
        yield f"how to end at {bits} bits: not in --endings, which has {others or 'no number of bits'}"


def rows(plan: Plan) -> Iterator[tuple[str, ...]]:
    """Cells for each ending, after the serving precision as `HEADER` says."""
    for choice, method in zip(plan.endings.choices, _methods(plan.endings.choices)):
        for one in choice.effects:
            yield (
                plan.planner.label(choice.bits), ", ".join(filter(None, [origin(choice), method])), one.ending,
                count(one.at["N"]), _tokens_per_param(one), _change(one), rough(one.detectable), str(one.runs),
                decision({"decision": one.decision}), _factors(choice.beyond),
            )  # fmt: skip


def origin(choice: Choice) -> str:
    """Where the numbers of a choice are from."""
    return _ORIGINS[choice.origin].format(source=choice.source)


def _methods(choices: Sequence[Choice]) -> list[str]:
    """The quantizer of each choice; empty for the study, which takes the mean over several."""
    quantized = [choice for choice in choices if choice.row]
    names = iter(method_names([choice.row for choice in quantized]) if quantized else ())
    return [next(names).replace(f" {choice.bits:g} bits", "") if choice.row else "" for choice in choices]


def _verdict(choice: Choice) -> str:
    named = [f"{one.ending} ({_change(one)}, {decision({'decision': one.decision})})" for one in choice.effects]
    least = min(choice.effects, key=lambda one: one.detectable)
    seen = f"{least.ending} would have been decided if it changed the loss by {rough(least.detectable)}"
    best = choice.best
    others = [one.ending for one in choice.effects if one is not best]
    return _VERDICTS[choice.verdict].format(
        best=f"{best.ending} ({_change(best)})" if best else "",
        rivals=" or ".join(f"{one.ending} ({_change(one)})" for one in choice.rivals),
        others=f" and than {listed(others)}" if others else "",
        all=", ".join(named),
        seen=f"{', '.join(named)}; {seen}",
    )


def _change(one: Effect) -> str:
    """The change with its sign and error."""
    value = one.difference.value
    return ("+" if value > 0 else "") + plus_minus(value, one.error)


def _place(choice: Choice) -> str:
    """The N and D/N of a choice of the study; elsewhere each ending has its own."""
    one = choice.effects[0]
    return f" at N = {count(one.at['N'])}, D/N = {_tokens_per_param(one)}" if choice.origin is Origin.STUDY else ""


def _tokens_per_param(one: Effect) -> str:
    return short(float(f"{one.at['D'] / one.at['N']:.3g}"))


def _far(beyond: Mapping[str, float], what: str) -> str:
    """A remark on how far the plan is from what the numbers are about."""
    far = ": too far to rely on" * any(factor > MAX_FACTOR for factor in beyond.values())
    return f" ({_factors(beyond)} {what}{far})" if beyond else ""


def _factors(beyond: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {short(float(f'{factor:.2g}'))}×" for name, factor in beyond.items())
