"""A plan in words: whether it pays to train longer, or in lower precision, and what could not be answered.

Every sentence is made from the answers of the plan; `plan.json` holds each of them as values.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

from ptq_eval.errors import PlanError
from ptq_eval.laws.base import Estimate, FitKind
from ptq_eval.laws.calculator import FULL_BITS
from ptq_eval.laws.findings import Finding
from ptq_eval.laws.plan.answers import Plan, remedy
from ptq_eval.laws.plan.question import Answer, Doubt, Setting
from ptq_eval.laws.plan.source import TRAINED, Source
from ptq_eval.laws.turning.verdict import MAX_FACTOR
from ptq_eval.report.common.numbers import MISSING, count, estimate, short
from ptq_eval.report.common.words import coverage_text, status_text
from ptq_eval.report.plan import endings
from ptq_eval.report.plan.reasons import why_not
from ptq_eval.units import BYTES, write

SETTINGS = {Setting.FREE: "N, D and P free", Setting.MEMORY: "limited memory", Setting.PARAMS: "N given"}
_DOUBTS = {
    Doubt.RANGE_UNKNOWN: "the range of the data behind {preset} is not known: nothing is marked for it",
    Doubt.LAW_NOT_USABLE: "a plan cannot use the law {law}",
    Doubt.LAW_NOT_USED: "not used: {law}",
    Doubt.ONE_EXPONENT: "gamma_N was not fitted but set to gamma_D: answers for another N depend on that",
}
_EQUAL = 5e-5
"""Losses that differ by less are printed as the same."""


def sentences(plan: Plan) -> list[str]:
    """Longer, lower, where the budget is not spent, and how to end, one sentence or two each."""
    return [*_longer(plan), *_smallest(plan), *_lower(plan), *_stops(plan), *endings.sentences(plan)]


def cautions(plan: Plan) -> list[str]:
    """The basis of the answers, what is beyond the data, and what could not be answered."""
    source = plan.source
    found = [f"intervals: {uncertainty(source)}", *map(_doubt, source.doubts), *source.warnings]
    fits = [fit for fit in source.fits.values() if fit.status.kind is not FitKind.OK]
    found += [f"{fit.law}: {status_text(fit.status.to_dict())}" for fit in fits]
    if far := [answer for answer in plan.answers if answer.beyond and answer.values]:
        ranges = ", ".join(f"{name} {count(low)} to {count(high)}" for name, (low, high) in source.ranges.items())
        number = f"{len(far)} of {sum(bool(answer.values) for answer in plan.answers)} answers"
        found.append(f"{number} rest on values beyond the fitted range ({ranges}), by the factors given with them")
    if any(farther(answer) for answer in far):
        found.append(f"! marks D_crit at more than {MAX_FACTOR:g}× the largest D fitted: not to be believed")
    found += _curve(plan)
    if source.formulas().capacity is not None and not set(TRAINED) & set(source.ranges):
        found.append("the training precisions of these constants are not recorded: answers beyond them are not marked")
    if any(answer.at_most for answer in plan.answers):
        found.append(
            "≤ marks a loss that is at most this: C_w, C_a and C_kv of equation 9, which would lower it, are not known"
        )
    if plan.question.spent is None:
        found.append("the best N, D and P need a budget: --budget, or --params and --tokens")
    found += endings.cautions(plan)
    lacking: dict[str, list[str]] = {}
    for answer in plan.answers:
        if answer.why_not:
            lacking.setdefault(why_not(answer), []).append(_asked(plan, answer))
    found += [f"{', '.join(dict.fromkeys(asked))}: {why}" for why, asked in lacking.items()]
    return found


def refusal(plan: Plan, quantizers: Sequence[str] = ()) -> PlanError:
    """The error for a plan without a single answer, with what would be answered; `quantizers` have other fits."""
    asked = [answer for answer in plan.answers if answer.ask != "lower" and answer.why_not]
    why = "; ".join(dict.fromkeys(f"{_asked(plan, answer)}: {why_not(answer)}" for answer in asked))
    missing = sorted({name for answer in asked for name in answer.missing})
    if missing and all(answer.missing for answer in asked):
        ways = [f"constants that have {', '.join(missing)}"]
    else:
        found = remedy(plan)
        ways = [f"--serve-bits {','.join(f'{b:g}' for b in found.bits)}"] if found.bits else []
        ways += [f"--tokens {count(found.tokens)} or less, for the losses at that D"] if found.tokens else []
        ways += [f"--quantizer {name}" for name in quantizers]
        ways += (
            ["another --preset"]
            if plan.source.published
            else ["measure checkpoints of larger D and repeat ptq-eval fit"]
        )
    return PlanError(f"{plan.source.name} gives no answer to this", got=why, remedy="; or ".join(ways))


def _curve(plan: Plan) -> Iterator[str]:
    """The run whose loss curve gives D_crit, if its N is another one."""
    source = plan.source
    others = [
        a.at["N"] for a in plan.of("critical_tokens") if a.values and source.formulas().missing("loss", a.at["N"])
    ]
    if source.one_size is not None and others:
        run = f"run {source.curve} (N = {count(source.one_size)})"
        yield f"D_crit at N = {count(others[0])} takes B and beta from the loss curve of {run}, the nearest in N"


def beyond(answer: Answer) -> str:
    """`N 4.55×, D 11.3×`, or nothing within the range."""
    return ", ".join(f"{name} {short(factor)}×" for name, factor in answer.beyond.items())


def farther(answer: Answer) -> bool:
    """Whether a D_crit is too far beyond the data to be reliable."""
    return answer.ask == "critical_tokens" and answer.beyond.get("D", 0.0) > MAX_FACTOR and bool(answer.values)


def interval(value: Estimate, form=count) -> str:
    """`value [low, high]`, the value alone where no interval is known."""
    return estimate(value.to_dict(), form)


def loss(value: Estimate) -> str:
    """A loss with four decimals."""
    return interval(value, lambda number: f"{float(number):.4f}")


def bits(value: object) -> str:
    """A precision with two decimals."""
    return f"{float(str(value)):.2f}"


def percent(value: Estimate) -> str:
    """A share as a percentage."""
    return interval(value, lambda number: short(100 * float(number))) + " %"


def size(bytes_: float) -> str:
    """A number of bytes: 1.5 GB; a dash where unknown."""
    return write(bytes_, BYTES) if math.isfinite(bytes_) else MISSING


def uncertainty(source: Source) -> str:
    """What the intervals of a plan cover, or why it has none."""
    if source.published:
        return f"{'; '.join(source.published)}: no answer has an interval"
    if all(len(values) == 1 for values in source.constants.values()):
        return "these fits come without replicates, so no answer has an interval"
    fits = source.fits.values()
    covered = (f"{fit.law}: {coverage_text(fit.covers.to_dict())}" for fit in fits)
    return "; ".join(dict.fromkeys(covered))


def _doubt(doubt: Finding) -> str:
    return _DOUBTS[Doubt(doubt.kind)].format(**doubt.facts)


def label(plan: Plan, answer: Answer) -> str:
    """What an answer is about: a serving precision, a loss that is allowed, or a way to the served model."""
    if answer.ask == "smallest_bits":
        return f"adds less than {answer.at['max_loss']:g}"
    if answer.ask == "lower":
        return SETTINGS[Setting.FREE]
    if answer.setting is None:
        return answer.label
    serve, trained = answer.at.get("serve_bits"), answer.at.get("train_bits")
    way = "served as trained"
    if serve is not None:
        way = ("trained in " if plan.planner.formulas.trained_as_served else "quantized to ") + plan.planner.label(
            serve
        )
    elif trained is not None:
        way += f", at {trained:g} bits"
    return f"{SETTINGS[answer.setting]}: {way}"


def _asked(plan: Plan, answer: Answer) -> str:
    names = {
        "critical_tokens": "D_crit at ",
        "loss": "the loss at ",
        "longer": "training longer, ",
        "lower": "training lower, ",
    }
    if answer.setting is not None and not answer.values and "train_bits" not in answer.at:
        return SETTINGS[answer.setting]
    return names.get(answer.ask, "") + label(plan, answer)


def _longer(plan: Plan) -> Iterator[str]:
    critical = {answer.at["bits"]: answer for answer in plan.of("critical_tokens")}
    for answer in plan.of("longer"):
        if not answer.values:
            continue
        before, after = answer.values["before"], answer.values["after"]
        D, serve, turn = answer.at["D"], answer.at["bits"], critical[answer.at["bits"]].values.get("D")
        known = turn is not None and math.isfinite(turn.value)
        place = f"D = {count(D)} is {short(D / turn.value)} of D_crit = {count(turn.value)}; " if known and turn else ""
        sign = _sign(after)
        verdict = {-1: "train longer", 1: "training longer harms", 0: "whether to train longer is uncertain"}[sign]
        verdict += _alone(after)
        change = f"{_signed(after)} after quantization ({_signed(before)} before)"
        yield f"Served {_at(plan, serve)}: {place}twice the tokens change the loss by {change}: {verdict}."


def _at(plan: Plan, serve: float) -> str:
    return f"{'in' if plan.source.serving.formats else 'at'} {plan.planner.label(serve)}"


def _smallest(plan: Plan) -> Iterator[str]:
    for answer in plan.of("smallest_bits"):
        if answer.values:
            whole, real = answer.values["whole_bits"], answer.values["bits"]
            at = f"N = {count(answer.at['N'])} and D = {count(answer.at['D'])}"
            found = f"{interval(whole, lambda b: f'{float(b):g}')} bits (exactly: {interval(real, bits)})"
            yield f"The smallest serving precision that {label(plan, answer)} nats per token at {at} is {found}."


def _lower(plan: Plan) -> Iterator[str]:
    for answer in plan.of("lower"):
        if answer.values and not answer.why_not:
            P, share = answer.values["P"], answer.values["compute_share"]
            at = f"With N, D and P free, {interval(P, bits)} bits are the best training precision at any budget"
            need = f"{interval(share, short)} of the compute that {FULL_BITS:g} bits need for the same loss"
            yield f"{at}: they need {need}."
    best = {_case(answer): answer for answer in plan.of("optimum") if answer.values}
    for setting in dict.fromkeys(setting for setting, _, _ in best):
        free = best.get((setting, None, None))
        if free and setting != Setting.FREE:
            yield f"{_conditions(setting, free.at)}, served as trained: {_instead(free)}."
        for serve in plan.planner.bits:
            own = best.get((setting, serve, serve)) if plan.planner.formulas.trained_as_served else None
            if own and "against_16" in own.values:
                change = f"{_signed(own.values['against_16'])} against training at {FULL_BITS:g} bits: {_pays(own)}"
                at = f"{_conditions(setting, own.at)}, trained and served {_at(plan, serve)}"
                yield f"{at}: this changes the loss by {change}."
            yield from _ways(plan, setting, serve, best)


def _instead(free: Answer) -> str:
    """The best training precision against 16 bits."""
    best = f"{interval(free.values['P'], bits)} bits"
    if "against_16" not in free.values:
        return f"{best} are best, and {FULL_BITS:g} bits are more than the budget pays for: lower precision wins"
    return f"{best} instead of {FULL_BITS:g} change the loss by {_signed(free.values['against_16'])}: {_pays(free)}"


def _stops(plan: Plan) -> Iterator[str]:
    """Optima that stop at D_crit and leave part of the budget."""
    for answer in plan.of("optimum"):
        same = "train_bits" not in answer.at and answer.values and answer.values["P"].value == FULL_BITS
        if not answer.stops_at_critical or same:  # the best P is 16 bits: that answer says it
            continue
        values = answer.values
        given = answer.at.get("train_bits")
        trained = bits(values["P"].value) if given is None else f"{given:g}"
        served = f"{_conditions(answer.setting, answer.at)}, trained at {trained} bits"
        served += f" and served {_at(plan, answer.at['serve_bits'])}"
        reason = f"more tokens than D_crit = {interval(values['D'])} would harm, so the least loss"
        yield f"{served}: {reason} spends {percent(values['spent'])} of the budget."


def _ways(
    plan: Plan, setting: Setting, serve: float, best: Mapping[tuple[Setting, float | None, float | None], Answer]
) -> Iterator[str]:
    """The ways to a model served at `serve` bits, compared."""
    ways = {
        f"trained at {FULL_BITS:g} bits and quantized": best.get((setting, serve, FULL_BITS)),
        f"trained at {plan.planner.label(serve)}": best.get((setting, None, serve)),
        "trained in between and quantized": best.get((setting, serve, None)),
    }
    known = {name: answer for name, answer in ways.items() if answer}
    lower = [answer for answer in known.values() if "against_16" in answer.values]
    if len(known) < 2 or not lower:
        return
    best_lower, parts = min(lower, key=lambda answer: answer.values["loss"].value), []
    for name, answer in known.items():
        P = answer.values["P"].value
        at = f" (P = {bits(P)})" if "between" in name else ""
        if "between" not in name or P < FULL_BITS:
            parts.append(f"{name}{at} {'≤ ' * answer.at_most}{answer.values['loss'].value:.4f}")
    if best_lower.values["P"].value < FULL_BITS:
        parts.append(f"the lower training precision changes the loss by {_signed(best_lower.values['against_16'])}")
    else:
        parts.append(f"no P in between is {'known to be ' * best_lower.at_most}better than {FULL_BITS:g} bits")
    first, pays = next(iter(known.values())), _pays(best_lower)
    yield f"{_conditions(setting, first.at)}, served at {plan.planner.label(serve)}: {'; '.join(parts)}: {pays}."


def _pays(answer: Answer) -> str:
    """Whether training at fewer than 16 bits lowers the loss."""
    against = answer.values["against_16"]
    sign = _sign(against) if abs(against.value) > _EQUAL else 1
    if sign < 0 and answer.values["P"].value < FULL_BITS:
        return f"lower precision wins{_alone(against)}"
    if sign == 0 or answer.at_most:
        return "whether lower precision wins is uncertain"
    return f"lower precision does not win{_alone(against)}"


def _case(answer: Answer) -> tuple[Setting, float | None, float | None]:
    return answer.setting or Setting.FREE, answer.at.get("serve_bits"), answer.at.get("train_bits")


def _conditions(setting: Setting | None, at: Mapping[str, float]) -> str:
    if setting == Setting.PARAMS:
        return f"N = {count(at['N'])}"
    return f"At most {size(at['memory'])} of weights" if setting == Setting.MEMORY else SETTINGS[Setting.FREE]


def _sign(value: Estimate) -> int:
    """-1 or 1; 0 where the interval holds both signs."""
    ends = [end for end in (value.low, value.high) if math.isfinite(end)] or [value.value]
    return 0 if min(ends) < 0 < max(ends) else -1 if value.value < 0 else 1


def _alone(value: Estimate) -> str:
    """A remark on what is said by the value alone."""
    known = math.isfinite(value.low) or math.isfinite(value.high)
    return "" if known else " (no interval)"


def _signed(value: Estimate) -> str:
    return interval(value, lambda number: f"{float(number):+.4f}")
