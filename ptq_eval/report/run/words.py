"""The sentences of a run's answers.

The answer says beyond how many tokens more pretraining data harms the quantized model.  Its kinds are never mixed up.
*Observed*: the loss after quantization has its minimum inside the trajectory and rises significantly afterwards.
*Forecast*: the run's own checkpoints continue to a turn within an interval, or to none before a certain D.
*Predicted*: the fitted laws have their turning point there, and the multiple of the largest D seen says how far that is
extrapolated.  *Not identifiable*: none of these, with the reason.  Which of them holds is decided where the laws are
fitted (`laws.turning.verdict`); here it is said in words.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ptq_eval.laws.turning.observed import Untested
from ptq_eval.laws.turning.significance import POWER
from ptq_eval.laws.turning.verdict import Conflict, Share, VerdictKind
from ptq_eval.report.common.data import Frame, Study
from ptq_eval.report.common.numbers import (
    MISSING,
    OPEN,
    bounds,
    count,
    end,
    number,
    plus_minus,
    ratio,
    rough,
    short,
    tokens_estimate,
)
from ptq_eval.report.common.words import CONFLICTS, early_text, hidden_text, plural, poor_text, reason_text
from ptq_eval.sampling import SIGNIFICANT

Entry = Mapping[str, Any]


def observed(entry: Entry) -> bool:
    """Whether the loss after quantization turns upward inside the trajectory."""
    return entry.get("verdict_kind") == VerdictKind.OBSERVED


def turn(entry: Entry) -> float:
    """D at the observed minimum, in tokens; NaN where unknown."""
    value = bounds(entry.get("observed"))[0]
    return value if math.isfinite(value) else number(entry.get("observed_tokens"))


def predicted(entry: Entry) -> bool:
    """Whether the verdict is a predicted turning point."""
    return entry.get("verdict_kind") == VerdictKind.PREDICTED


def verdict_text(entry: Entry) -> str:
    """The verdict on one run, configuration and bit-width in one sentence, without a full stop."""
    if observed(entry):
        text = f"harmful beyond D = {_tokens(turn(entry), entry)}, observed inside the range"
        text += _share(entry)
        return text
    if (kind := str(entry.get("verdict_kind"))) in _FROM_FORECAST:
        return _FROM_FORECAST[kind](entry["answer"], entry)
    if not predicted(entry):
        return f"not identifiable: {reason_text(entry.get('reason'))}"
    factor = short(entry.get("extrapolation_factor"))
    text = f"predicted at {factor}× the largest D seen, D = {_tokens(bounds(entry['predicted'])[0], entry)}"
    if conflict := entry.get("conflict"):
        text += f"; {_conflict(Conflict(conflict), entry)}"
    poor = entry.get("poor_fit")
    return f"{text}; the law describes these deltas poorly ({poor_text(poor)})" if poor else text


def _forecast(answer: Entry, entry: Entry) -> str:
    """A turn with both ends."""
    return f"forecast: harmful beyond D = {_tokens(number(answer['value']), entry)}"


def untested_rise(entry: Entry) -> bool:
    """Whether a loss after quantization rises by more than two standard errors and yet fails the test of a turn."""
    return not observed(entry) and number(entry.get("rise")) > SIGNIFICANT * number(entry.get("rise_se"))


def _not_before(answer: Entry, entry: Entry) -> str:
    """A turn with a lower end alone, whose probability is one-sided."""
    level = short(50 + 50 * number(answer["level"]))
    text = f"not harmful before D = {_tokens(number(answer['low']), entry)}, with {level} % probability"
    most = number((entry.get("forecast") or {}).get("hidden"))
    if not math.isfinite(most):
        return text
    return f"{text}; {hidden_text(most)}"


_FROM_FORECAST: Mapping[str, Callable[[Entry, Entry], str]] = {
    VerdictKind.FORECAST: _forecast,
    VerdictKind.NOT_BEFORE: _not_before,
}


def _conflict(conflict: Conflict, entry: Entry) -> str:
    if conflict is Conflict.NO_SECOND_CHECKPOINT:
        return "inside the range of the fit, but this run has no second checkpoint to check it"
    lowest = _tokens(number(entry["observed_tokens"]), entry)
    return f"not confirmed by the measurement: the loss is lowest at D = {lowest}, but no turn is observed there"


def _share(entry: Entry) -> str:
    """What the full-precision loss has to do with an observed rise; "" if little or nothing."""
    share, own, rise = entry.get("full_precision_share"), number(entry.get("full_precision_rise")), entry.get("rise")
    if share == Share.MAIN:
        size = f" ({short(own)} of {short(rise)} nats per token)" if own > 0 else ""
        return f"; but the full-precision loss rises too{size}: quantization is not the only cause"
    if share == Share.PART:
        return f"; {short(own)} of the rise of {short(rise)} nats per token is the full-precision loss's own"
    return ""


def _tokens(tokens: float, entry: Entry) -> str:
    share = tokens / number(entry.get("params"))
    return f"{count(tokens)} tokens" + (f" (D/N = {ratio(share)})" if math.isfinite(share) else "")


def verdict(entry: Entry) -> str:
    """The verdict on one run, configuration and bit-width, with its numbers, as one to three sentences."""
    text = verdict_text(entry)
    sentences = [text[0].upper() + text[1:]]
    if observed(entry):
        sentences += _about_observed(entry)
    elif predicted(entry):
        sentences += _interval("Interval of the prediction", entry.get("predicted"))
    elif entry.get("verdict_kind") == VerdictKind.FORECAST:
        sentences += _interval("Interval of the forecast", entry.get("answer"))
    if untested_rise(entry):
        sentences += _failed_rise(entry)
    elif not observed(entry):
        sentences += power_text(entry)
    if withheld := entry.get("withheld"):
        sentences.append(f"What the law predicts is withheld: {CONFLICTS[withheld]}")
    return ". ".join(sentences) + "."


def power_text(entry: Entry) -> list[str]:
    """Which rise would have been seen where no turn was, as one sentence or none."""
    if entry.get("untested") == Untested.FEW_CHECKPOINTS:
        return [f"With {plural(entry['n_checkpoints'], 'checkpoint')} no turn can be tested for"]
    rise = number(entry.get("detectable_rise"))
    if not math.isfinite(rise):
        return []
    return [
        f"No turn is observed; tested alone, this line would have shown a rise of {rough(rise)} nats per token over "
        f"the second half of the range with probability {POWER:g}"
    ]


def _about_observed(entry: Entry) -> list[str]:
    sentences = _interval("Interval of the turn", entry.get("observed"))
    rise = plus_minus(entry.get("rise"), entry.get("rise_se"))
    if rise != MISSING:
        sentences.append(
            f"By the last checkpoint the loss after quantization has risen by {rise} nats per token{_p(entry)}"
        )
    unreliable = entry.get("withheld") or entry.get("poor_fit")
    if math.isfinite(bounds(entry.get("predicted"))[0]) and not unreliable:
        sentences.append(f"The fits put the turn at {tokens_estimate(entry.get('predicted'))}")
    return sentences


def _failed_rise(entry: Entry) -> list[str]:
    lowest, rise = count(entry.get("observed_tokens")), plus_minus(entry.get("rise"), entry.get("rise_se"))
    return [
        f"The loss is lowest at D = {lowest} and has risen by {rise} nats per token by the last checkpoint, which is "
        f"not significant{_p(entry)}"
    ]


def _p(entry: Entry) -> str:
    p = number(entry.get("adjusted_p"))
    return f" (p = {rough(p)} with control over all lines)" if math.isfinite(p) else ""


def _interval(what: str, entry: Entry | None) -> list[str]:
    _, low, high = bounds(entry)
    return [] if end(low) == end(high) == OPEN else [f"{what}: {end(low)} to {end(high)}"]


def early(study: Study) -> str:
    """How many deltas ended before the last window and what that means for their row; "" where none did."""
    words = _early(study, study.measured)
    meaning = (
        "their standard error comes from the windows measured, and their loss_q is the full-precision loss over all "
        "windows plus δ"
    )
    return f"{words}; {meaning}." if words else ""


def _early(study: Study, rows: Frame) -> str:
    used, whole = study.early(rows)
    return early_text(len(used), len(rows), statistics.median(used), used[0], used[-1], whole) if used else ""


def sentences(study: Study) -> Iterator[tuple[str, str, str, Entry]]:
    """(run, "gptq, 2 bits", sentences, entry) of every entry on critical tokens, in the study's order."""
    place = {name: i for i, name in enumerate([*study.runs, *study.labels])}

    def order(entry: Entry) -> tuple[float, float, float]:
        run, label = str(entry.get("run")), study.label_of(entry)
        return place.get(run, math.inf), place.get(label, math.inf), number(entry.get("bits"))

    for entry in sorted(study.critical, key=order):
        what = f"{study.label_of(entry)}, {number(entry.get('bits')):.0f} bits"
        yield str(entry.get("run")), what, verdict(entry), entry


def unknown_tokens(study: Study) -> Iterator[tuple[str, str]]:
    """(run, sentences) of every run that was measured and none of whose measured checkpoints has a known D."""
    rows = study.measured
    for run in study.runs:
        mine = rows[rows["trajectory"] == run]
        if len(mine) and mine["tokens"].isna().all():
            measured = plural(mine["point"].nunique(), "measured checkpoint")
            words = (
                f"Not identifiable: D is unknown for {measured}, so nothing was fitted. Give `--tokens-per-step` or "
            )
            yield run, words + "`--tokens`, or write a `trajectory.yaml`, and run the same command again."


def stated_bits(study: Study) -> Iterator[str]:
    """The bits per byte that checkpoints' files state, beside those measured here; nothing where none does."""
    measured = study.rows.drop_duplicates("point").set_index("checkpoint")["bpb_fp"].to_dict()
    pairs = [
        f"{name} {short(own)} ({short(stated)})"
        for one in study.run.get("checkpoints") or ()
        if (stated := one.get("stated_bits_per_byte")) is not None
        and (own := measured.get(name := f"{one['run']}@{one['step']}")) == own is not None
    ]
    if pairs:
        yield (
            "Bits per byte before quantization, on this text and, in brackets, on the validation text of the training "
            f"as the checkpoints' files state it: {', '.join(pairs)}."
        )
