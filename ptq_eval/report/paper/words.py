"""What the abstract, the results and the limitations say, each sentence only where the data call for it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from typing import Any

from ptq_eval.laws.turning.verdict import VerdictKind
from ptq_eval.report.common import tables
from ptq_eval.report.common.data import Frame, Study, formats_of
from ptq_eval.report.common.numbers import bounds, count, number, plus_minus, ratio, short
from ptq_eval.report.common.words import listed, plural
from ptq_eval.report.run.errors import calibrated_once, of_seeds, of_windows
from ptq_eval.report.run.warnings import warning_texts
from ptq_eval.report.run.words import early
from ptq_eval.sampling import Covers

_TURNS = {
    VerdictKind.OBSERVED: "turns upward within the measured range in {}",
    VerdictKind.FORECAST: "is forecast to turn upward beyond it in {}",
    VerdictKind.PREDICTED: "turns upward according to the fitted law alone in {}",
    VerdictKind.NOT_BEFORE: "does not turn before a stated number of tokens in {}",
}


def facts(study: Study) -> dict[str, str]:
    """Numbers of the whole study and the sentences of the abstract, by the name of their macro."""
    rows, measured = study.baseline, study.measured
    return {
        "Runs": plural(study.rows["run"].nunique(), "training run"),
        "Checkpoints": plural(rows["point"].nunique(), "checkpoint"),
        "Deltas": plural(len(measured), "measurement"),
        "Quantizers": listed(dict.fromkeys(measured["method"])) if len(measured) else "no quantizer",
        "Bits": _bits(study),
        "TokensRange": _range(rows["tokens"], count),
        "RatioRange": _range(rows["tokens_per_param"], ratio),
        "Params": _range(rows["params"], count),
        "Protocol": study.protocols,
        "DeltaRange": delta_range(study),
        "Turns": turns(study),
    }


def _bits(study: Study) -> str:
    bits = sorted({int(value) for value in study.measured["bits"].dropna()})
    return f"{listed(bits)} bit{'s' * (bits != [1])}" if bits else "no bit-width"


def _range(column: Any, form: Any) -> str:
    known = column.dropna()
    if not len(known):
        return "an unknown number of"
    low, high = form(known.min()), form(known.max())
    return low if low == high else f"{low} to {high}"


def last(study: Study) -> Frame:
    """The measurement with the largest D of each trajectory, configuration and bit-width."""
    rows = study.measured.sort_values("tokens", kind="stable", na_position="first")
    return rows.groupby(["trajectory", "label", "bits"], sort=False).tail(1).sort_index()


def delta_range(study: Study) -> str:
    """The smallest and the largest δ at the last checkpoints, in one sentence."""
    rows = last(study).sort_values("delta", kind="stable")
    if rows.empty:
        return "No increase of the loss was measured."
    ends = [rows.iloc[0], rows.iloc[-1]][: 1 if len(rows) == 1 else 2]
    said = [
        f"{plus_minus(row['delta'], row['delta_se'])} ({row['label']} at {row['bits']:.0f} bits, {row['trajectory']})"
        for row in ends
    ]
    if len(said) == 1:
        return f"At the last checkpoint, quantization changes the loss by {said[0]} nats per token."
    return f"At the last checkpoints, quantization changes the loss by {said[0]} to {said[1]} nats per token."


def turns(study: Study) -> str:
    """In how many lines the loss after quantization turns, and where first, in one or two sentences."""
    entries = study.critical
    if not entries:
        return "Nothing can be said of a turning point of the loss after quantization."
    kinds = Counter(VerdictKind(entry["verdict_kind"]) for entry in entries)
    of = f" of {plural(len(entries), 'combination')} of run, quantizer and bit-width"
    said = [text.format(kinds[kind]) for kind, text in _TURNS.items() if kinds[kind]]
    if not said:
        where = f" in any{of}" if len(entries) > 1 else ""
        return f"No turning point of the loss after quantization can be identified{where}."
    said[0] += of
    text = f"The loss after quantization {listed(said)}."
    if first := _earliest(study):
        text += f" The earliest turn observed is {first}."
    unknown = kinds[VerdictKind.NOT_IDENTIFIED]
    return text + (f" In {unknown} nothing can be identified." if unknown else "")


def _earliest(study: Study) -> str:
    seen = [entry for entry in study.critical if entry["verdict_kind"] == VerdictKind.OBSERVED]
    if not seen:
        return ""
    first = min(seen, key=lambda entry: bounds(entry["answer"])[0] / number(entry.get("params")))
    value = bounds(first["answer"])[0]
    share = value / number(first.get("params"))
    at = f"D = {count(value)} tokens" + (f" (D/N = {ratio(share)})" if math.isfinite(share) else "")
    return f"at {at}, for {study.label_of(first)} at {number(first['bits']):.0f} bits in {first['run']}"


_ALWAYS = {
    "simulated": "Quantization is simulated, of weights alone: speed, memory and the arithmetic of a kernel are not "
    "measured, and activations and the key-value cache stay in full precision.",
    "one_text": "A loss on text is not accuracy on a task: a small increase can hide a large loss of ability.",
}
"""The limitations of every study made with this program."""


def limitations(study: Study) -> Iterator[tuple[str, str]]:
    """(name, sentence) of every limitation that holds for these data."""
    cautions = study.fit.get("cautions") or ()
    said = set()
    for kind in dict.fromkeys(one["kind"] for one in cautions):
        for text in warning_texts([one for one in cautions if one["kind"] == kind]):
            said.add(text)
            yield str(kind), _sentence(text)
    yield from _of_training(study)
    yield from _of_turns(study)
    yield from _of_measurements(study)
    yield from _of_errors(study)
    yield from (("warning", _sentence(text)) for text in study.warnings if text not in said)
    yield from _ALWAYS.items()


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}{'' if text.endswith('.') else '.'}"


def _of_training(study: Study) -> Iterator[tuple[str, str]]:
    """Whether later tokens were new to the model, where its files say so."""
    seen: dict[str, float] = {}
    for one in study.run.get("checkpoints") or ():
        seen[one["run"]] = max(seen.get(one["run"], 0.0), number(one.get("epochs") or 0.0))
    repeated = {run: epochs for run, epochs in seen.items() if epochs > 1}
    if repeated:
        most = listed([f"{short(epochs)} times in {run}" for run, epochs in repeated.items()])
        yield "repeated", f"The training text was repeated, up to {most}: later tokens are not new to the model."


def _of_turns(study: Study) -> Iterator[tuple[str, str]]:
    kinds = Counter(VerdictKind(entry["verdict_kind"]) for entry in study.critical)
    many = plural(len(study.critical), "combination")
    if n := sum(bool(entry.get("withheld")) for entry in study.critical):
        yield "withheld", f"In {n} of {many}, the law's prediction is withheld, because the measurements refute it."
    if (n := kinds[VerdictKind.NOT_IDENTIFIED]) < len(study.critical):
        if n:
            yield "unidentified", f"In {n} of {many}, no turning point can be identified."
    else:
        yield "unidentified", "No turning point can be identified in these data."
    if n := kinds[VerdictKind.FORECAST] + kinds[VerdictKind.NOT_BEFORE]:
        far = "nothing is stated beyond four times the last number of tokens"
        yield "forecasts", f"{n} of {many} rest on a forecast from the run's own checkpoints; {far}."
    if study.baseline["params"].nunique() == 1:
        yield "one_size", "All models have one size, so nothing is known of the effect of N."


def _of_measurements(study: Study) -> Iterator[tuple[str, str]]:
    measured, every = study.measured, study.every
    if n := int((~tables.clear(measured)).sum()) if len(measured) else 0:
        are = "is" if n == 1 else "are"
        why = f"{are} not significant beside the error over windows and the chance of one rounding together"
        yield "noise_floor", f"{n} of {plural(len(measured), 'increase')} of the loss {why}."
    for status, what in (("failed", "failed and are excluded"), ("partial", "left some layers in full precision")):
        if n := int((every["status"] == status).sum()):
            yield status, f"{n} of {plural(len(every), 'measurement')} {what}."
    if n := every.loc[every["status"] == "excluded", "point"].nunique():
        yield "excluded", f"{plural(n, 'checkpoint')} {'was' if n == 1 else 'were'} excluded as unusable."
    if words := early(study):
        yield "early", words
    if len(measured) and measured.loc[formats_of(measured) == "int", "bits"].nunique() == 1:
        yield "one_width", "Integers of one bit-width alone were measured: how the damage falls with bits is unknown."


def _of_errors(study: Study) -> Iterator[tuple[str, str]]:
    covers = study.measured["covers"].dropna().unique() if "covers" in study.measured else ()
    if {Covers.TEXT, Covers.PASSAGES} & set(covers):
        yield from (("windows", text) for text in of_windows(study))
    if once := calibrated_once(study):
        yield (
            "calibration",
            f"With one draw of the calibration windows of {listed(once)}, no error covers another draw.",
        )
    yield from (("seeds", text) for text in of_seeds(study))
