"""The answer in plain words: beyond how many tokens more pretraining data harms the quantized model.

Three answers exist, and they are never mixed up.  *Observed*: the loss after quantization has its minimum inside
the trajectory and rises afterwards by more than its noise.  *Predicted*: the fitted laws have their turning point
beyond the data, and the multiple of the largest D seen says how far that is extrapolated.  *Not identifiable*:
neither, with the reason.  Which of them holds is decided where the laws are fitted, and said in the entry's
verdict; here the intervals and the size of the rise are put beside it.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping
from typing import Any

from ptq_eval.report.common.data import Frame, Study
from ptq_eval.report.common.numbers import MISSING, bounds, count, estimate, number, plus_minus


def observed(entry: Mapping[str, Any]) -> bool:
    """Whether the loss after quantization turns upward inside the trajectory."""
    return bool(entry.get("interior")) and math.isfinite(turn(entry))


def turn(entry: Mapping[str, Any]) -> float:
    """D at the observed minimum, in tokens; NaN where unknown."""
    value = bounds(entry.get("observed"))[0]
    return value if math.isfinite(value) else number(entry.get("observed_tokens"))


def predicted(entry: Mapping[str, Any]) -> bool:
    """Whether a turning point is predicted that the verdict does not take back."""
    refused = str(entry.get("verdict") or "").startswith("not identifiable")
    return math.isfinite(bounds(entry.get("predicted"))[0]) and not refused and not observed(entry)


def verdict(entry: Mapping[str, Any]) -> str:
    """The verdict on one run, configuration and bit-width, with its numbers, as one to three sentences."""
    text = str(entry.get("verdict") or "not identifiable: the fit gives no verdict").strip().rstrip(".")
    sentences = [text[0].upper() + text[1:]]
    if observed(entry):
        sentences += _about_observed(entry)
    elif predicted(entry):
        sentences += _interval("Interval of the prediction", entry.get("predicted"))
    return ". ".join(sentences) + "."


def _about_observed(entry: Mapping[str, Any]) -> list[str]:
    sentences = _interval("Interval of the turn", entry.get("observed"))
    rise = plus_minus(entry.get("rise"), entry.get("rise_se"))
    if rise != MISSING:
        sentences.append(f"By the last checkpoint the loss after quantization has risen by {rise} nats per token")
    if math.isfinite(bounds(entry.get("predicted"))[0]):
        sentences.append(f"The fits put the turn at {estimate(entry.get('predicted'), count)}")
    return sentences


def _interval(what: str, entry: Mapping[str, Any] | None) -> list[str]:
    _, low, high = bounds(entry)
    ends = [count(end) if math.isfinite(end) else "open" for end in (low, high)]
    return [f"{what}: {ends[0]} to {ends[1]}"] if ends != ["open", "open"] else []


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
    if not used:
        return ""
    spread = f"median, {used[0]} to {used[-1]}" if used[0] < used[-1] else "each"
    return (
        f"{len(used)} of {len(rows)} deltas ended early, by the rule of --precision, after "
        f"{statistics.median(used):g} of {whole} windows ({spread})"
    )


def with_early(fit: Mapping[str, Any], table: Frame) -> dict[str, Any]:
    """The fit, its intervals followed by how many of their deltas ended early and after how many windows.

    table: the rows behind the fit.  A fit of full-precision losses is left alone: those are of all windows.
    """
    study = Study(table, fit, {})

    def told(entry: Mapping[str, Any]) -> Mapping[str, Any]:
        rows = study.measured[study.measured["label"] == study.label_of(entry)]
        words = _early(study, rows[rows["run"].isin(entry["runs"])])
        return {**entry, "interval": f"{entry['interval']}; {words}"} if words else entry

    return {**fit, "fits": [told(entry) for entry in fit["fits"]]}


def answers(study: Study) -> Iterator[tuple[str, str, str, Mapping[str, Any]]]:
    """(run, "gptq, 2 bits", sentences, entry) of every entry on critical tokens, in the study's order."""
    place = {name: i for i, name in enumerate([*study.runs, *study.labels])}

    def order(entry: Mapping[str, Any]) -> tuple[float, float, float]:
        run, label = str(entry.get("run")), study.label_of(entry)
        return place.get(run, math.inf), place.get(label, math.inf), number(entry.get("bits"))

    for entry in sorted(study.critical, key=order):
        what = f"{study.label_of(entry)}, {number(entry.get('bits')):.0f} bits"
        yield str(entry.get("run")), what, verdict(entry), entry
