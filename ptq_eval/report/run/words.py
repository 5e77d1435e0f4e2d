"""The answer in plain words: beyond how many tokens more pretraining data harms the quantized model.

Three answers exist, and they are never mixed up.  *Observed*: the loss after quantization has its minimum inside
the trajectory and rises afterwards by more than its noise.  *Predicted*: the fitted laws have their turning point
beyond the data, and the multiple of the largest D seen says how far that is extrapolated.  *Not identifiable*:
neither, with the reason.  Which of them holds is decided where the laws are fitted (`laws.turning.predicted`); here
it is said in words, with the intervals and the size of the rise.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping
from typing import Any

from ptq_eval.laws.turning.predicted import Conflict, Share, VerdictKind
from ptq_eval.report.common.data import Frame, Study
from ptq_eval.report.common.numbers import MISSING, OPEN, bounds, count, end, number, plus_minus, short, tokens_estimate
from ptq_eval.report.common.words import early_text, plural, poor_text, reason_text

Entry = Mapping[str, Any]


def observed(entry: Entry) -> bool:
    """Whether the loss after quantization turns upward inside the trajectory."""
    return entry.get("verdict_kind") == VerdictKind.OBSERVED


def turn(entry: Entry) -> float:
    """D at the observed minimum, in tokens; NaN where unknown."""
    value = bounds(entry.get("observed"))[0]
    return value if math.isfinite(value) else number(entry.get("observed_tokens"))


def predicted(entry: Entry) -> bool:
    """Whether a turning point is predicted, and believed."""
    return entry.get("verdict_kind") == VerdictKind.PREDICTED


def verdict_text(entry: Entry) -> str:
    """The verdict on one run, configuration and bit-width in one sentence, without a full stop."""
    if observed(entry):
        text = f"harmful beyond D = {_tokens(turn(entry), entry)}, observed inside the range"
        text += _share(entry)
        if entry.get("few_checkpoints"):
            text += f"; {plural(entry['n_checkpoints'], 'checkpoint')} are too few to know how they scatter"
        return text
    if not predicted(entry):
        return f"not identifiable: {reason_text(entry.get('reason'))}"
    factor = short(entry.get("extrapolation_factor"))
    text = f"predicted at {factor}× the largest D seen, D = {_tokens(bounds(entry['predicted'])[0], entry)}"
    if conflict := entry.get("conflict"):
        text += f"; {_conflict(Conflict(conflict), entry)}"
    poor = entry.get("poor_fit")
    return f"{text}; the law describes these deltas poorly ({poor_text(poor)})" if poor else text


def _conflict(conflict: Conflict, entry: Entry) -> str:
    if conflict is Conflict.NO_SECOND_CHECKPOINT:
        return "inside the range of the fit, but this run has no second checkpoint to check it"
    lowest = _tokens(number(entry["observed_tokens"]), entry)
    if conflict is Conflict.STILL_FALLS:
        return f"contradicted by the measurement: the loss still falls to D = {lowest}"
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
    ratio = tokens / number(entry.get("params"))
    return f"{count(tokens)} tokens" + (f" (D/N = {short(ratio)})" if math.isfinite(ratio) else "")


def verdict(entry: Entry) -> str:
    """The verdict on one run, configuration and bit-width, with its numbers, as one to three sentences."""
    text = verdict_text(entry)
    sentences = [text[0].upper() + text[1:]]
    if observed(entry):
        sentences += _about_observed(entry)
    elif predicted(entry):
        sentences += _interval("Interval of the prediction", entry.get("predicted"))
    return ". ".join(sentences) + "."


def _about_observed(entry: Entry) -> list[str]:
    sentences = _interval("Interval of the turn", entry.get("observed"))
    rise = plus_minus(entry.get("rise"), entry.get("rise_se"))
    if rise != MISSING:
        sentences.append(f"By the last checkpoint the loss after quantization has risen by {rise} nats per token")
    if math.isfinite(bounds(entry.get("predicted"))[0]):
        sentences.append(f"The fits put the turn at {tokens_estimate(entry.get('predicted'))}")
    return sentences


def _interval(what: str, entry: Entry | None) -> list[str]:
    _, low, high = bounds(entry)
    return [] if end(low) == end(high) == OPEN else [f"{what}: {end(low)} to {end(high)}"]


def early(study: Study) -> str:
    """How many deltas ended before the last window and what that means for their row; "" where none did."""
    words = _early(study, study.measured)
    meaning = (
        "their standard error is that of the windows measured, and their loss_q is the full-precision loss over all "
        "windows plus δ"
    )
    return f"{words}; {meaning}." if words else ""


def _early(study: Study, rows: Frame) -> str:
    used, whole = study.early(rows)
    return early_text(len(used), len(rows), statistics.median(used), used[0], used[-1], whole) if used else ""


def answers(study: Study) -> Iterator[tuple[str, str, str, Entry]]:
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
            yield (
                run,
                (
                    f"Not identifiable: D is unknown for {measured}, so nothing was fitted. Give "
                    "`--tokens-per-step` or `--tokens`, or write a `trajectory.yaml`, and run the same command again."
                ),
            )
