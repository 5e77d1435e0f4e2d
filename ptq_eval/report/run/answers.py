"""The answer as a table: a row per run and quantizer, a column per bit-width, and in each cell where more data harms.

Number formats with a name have a table of their own, with a row per run and format and a column per method.

A cell holds D_crit with its interval, and D/N below it, or from which D on it may come, or a dash whose footnote says
why nothing is known.  Footnotes are numbered once and shared: what differs from line to line (how many deltas, which
factor) is in the sentences (`words`), and the footnote says what they have in common.  Page, terminal and LaTeX draw
the same cells.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any

from ptq_eval.laws.findings import Why
from ptq_eval.laws.forecast.forecast import UNANNOUNCED_HELD
from ptq_eval.laws.turning.verdict import Conflict, Share, VerdictKind
from ptq_eval.report.common.data import Study
from ptq_eval.report.common.numbers import MISSING, OPEN, bounds, count, end, number, ratio, rough, short
from ptq_eval.report.common.words import reason_text
from ptq_eval.report.run.formats import by_bits
from ptq_eval.report.run.words import untested_rise

Entry = Mapping[str, Any]

LEAD = ("run", "quantizer")
"""The columns before the bit-widths."""
LEAD_OF_FORMATS = ("run", "format")
NOT_MEASURED = ""

_SHARED: Mapping[Why, str] = {
    Why.LAW_MISSES_DELTAS: "at this bit-width the law does not describe the deltas",
    Why.DELTA_NOT_SIGNIFICANT: "δ is not significantly different from zero",
    Why.DELTA_DOES_NOT_GROW: "δ does not grow significantly with D",
    Why.WIDE_INTERVAL: "the range of D is too short: the interval of D_crit spans too much",
    Why.SHORT_RANGE: "the range of D is too short to predict D_crit so far beyond it",
    Why.TOO_FAR: "the fits point too far beyond the data to be believed",
    Why.REFUTED: "the measurements refute the turn that the law predicts",
    Why.DELTA_HIDDEN: "the course of δ is not determined, and a turn within the range is not excluded",
    Why.FORECAST_OPEN: "the checkpoints forecast neither a turn nor that none comes before a certain D",
    Why.TOO_FEW_CLEAR_DELTAS: "too few deltas are significantly above zero",
    Why.DELTA_NOT_FITTED: "the degradation law cannot be fitted",
    Why.LOSS_NOT_FITTED: "the full-precision curve cannot be fitted",
}
"""Reasons whose facts differ from line to line, without these."""
_CONFLICTS: Mapping[str, str] = {
    Conflict.NOT_CONFIRMED: "predicted inside the range, but no turn is observed there",
    Conflict.NO_SECOND_CHECKPOINT: "predicted inside the range, but this run has no second checkpoint to check it",
}
_SHARES: Mapping[str, str] = {
    Share.MAIN: "the full-precision loss rises too: quantization is not the only cause",
    Share.PART: "a part of the rise is the full-precision loss's own",
}
_POOR = "the law behind it describes these deltas poorly"
_HOW: Mapping[str, str] = {
    VerdictKind.OBSERVED: "observed",
    VerdictKind.FORECAST: "forecast",
    VerdictKind.PREDICTED: "predicted by the law",
}


_NOT_SIGNIFICANT = (
    "the loss after quantization is higher at the last checkpoint than at its lowest, but not significantly with "
    "control over all lines"
)


@dataclass(frozen=True)
class Cell:
    """The lines of a cell, and whether it is an observation."""

    lines: tuple[str, ...]
    observed: bool = False


@dataclass(frozen=True)
class Answers:
    """The cells of a table: `rows` are (run with its N, quantizer or format, a cell for each of `columns`)."""

    columns: list[str]
    rows: list[tuple[str, str, list[Cell]]]
    footnotes: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    lead: tuple[str, str] = LEAD

    @property
    def header(self) -> list[str]:
        """Of all columns."""
        return [*self.lead, *self.columns]

    def part(self, columns: Iterable[str]) -> Answers:
        """The same rows with some of the columns only."""
        keep = [i for i, name in enumerate(self.columns) if name in set(columns)]
        rows = [(run, label, [cells[i] for i in keep]) for run, label, cells in self.rows]
        return replace(self, columns=[self.columns[i] for i in keep], rows=rows)

    def narrow(self) -> Answers:
        """The same cells in more and shorter lines: a break before each interval, each D and each N."""
        rows = [
            (
                "\n".join(_broken(run)),
                label,
                [Cell(tuple(chain(*map(_broken, one.lines))), one.observed) for one in cells],
            )
            for run, label, cells in self.rows
        ]
        return replace(self, rows=rows)


def _broken(line: str) -> list[str]:
    return re.split(r" (?=\[|D = |\(N = )", line)


def tables(study: Study) -> list[Answers]:
    """The table of integers, then the one of named formats, each if it has rows.  Both share the footnotes."""
    marks: dict[str, int] = {}
    entries = [(str(entry.get("run")), study.label_of(entry), entry) for entry in study.critical]
    named = [one for one in entries if not _of_integers(one[2])]
    first = {(*one[:2], f"{number(one[2].get('bits')):g} bits"): one[2] for one in entries if _of_integers(one[2])}
    methods = dict(zip(study.rows["label"], study.rows["method"]))
    second = {(run, _without_quantizer(label, one), methods.get(label, label)): one for run, label, one in named}
    order = [*study.runs, *study.labels]
    widths = sorted({name for *_, name in first}, key=lambda name: float(name.split()[0]))
    found = [_table(first, widths, order, marks, LEAD, study.title)]
    families = by_bits(study)
    order = [*study.runs, *sorted({name for _, name, _ in second}, key=lambda name: families.index(name.split()[0]))]
    found.append(
        _table(second, list(dict.fromkeys(name for *_, name in second)), order, marks, LEAD_OF_FORMATS, study.title)
    )
    shared = {"footnotes": list(marks), "remarks": _remarks(entry for *_, entry in entries)}
    return [replace(one, **shared) for one in found if one.rows]


def _of_integers(entry: Entry) -> bool:
    """Whether several bit-widths of an entry's format may have been measured."""
    return (entry.get("format") or "int").startswith("int")


def _without_quantizer(label: str, entry: Entry) -> str:
    """`nvfp4` of `gptq nvfp4`, with whatever else the label says."""
    return label.removeprefix(f"{entry['quantizer']} ")


def _table(
    found: Mapping[tuple[str, str, str], Entry],
    columns: list[str],
    order: Sequence[str],
    marks: dict[str, int],
    lead: tuple[str, str],
    title: Callable[[str], str],
) -> Answers:
    place = {name: i for i, name in enumerate(order)}
    lines = dict.fromkeys((run, label) for run, label, _ in found)
    rows = []
    for run, label in sorted(lines, key=lambda line: [place.get(name, math.inf) for name in line]):
        entries = [found.get((run, label, column)) for column in columns]
        cells = [cell(entry, marks) if entry else Cell((NOT_MEASURED,)) for entry in entries]
        rows.append((title(run), label, cells))
    return Answers(columns, rows, lead=lead)


def cell(entry: Entry, notes: dict[str, int]) -> Cell:
    """The cell of one entry of `critical_tokens`; its footnotes get a number in `notes` where they are new."""
    kind, params = VerdictKind(entry["verdict_kind"]), number(entry.get("params"))
    marks = "".join(f" ({notes.setdefault(note, len(notes) + 1)})" for note in _footnotes(kind, entry))
    if kind is VerdictKind.NOT_IDENTIFIED:
        return Cell((MISSING + marks,))
    value, low, high = bounds(entry["answer"])
    if kind is VerdictKind.NOT_BEFORE:
        level = 50 + 50 * number(entry["answer"]["level"])
        return Cell((f"not before D = {count(low)} ({short(level)} %){marks}", *_ratio(params, low)))
    tokens = f"{count(value)} [{end(low)} to {end(high)}]"
    return Cell((tokens, *_ratio(params, value, low, high), _HOW[kind] + marks), kind is VerdictKind.OBSERVED)


def _ratio(params: float, value: float, *ends: float) -> list[str]:
    """D/N, with the ends of its interval if passed; nothing where N is unknown."""
    if not math.isfinite(value / params):
        return []
    if not ends:
        return [f"D/N = {ratio(value / params)}"]
    low, high = (OPEN if end(one) == OPEN else ratio(one / params) for one in ends)
    return [f"D/N {ratio(value / params)} [{low} to {high}]"]


def _footnotes(kind: VerdictKind, entry: Entry) -> list[str]:
    """What has to be known beside the numbers of a cell, without the facts of its line."""
    if kind is VerdictKind.NOT_IDENTIFIED:
        reason = entry["reason"]
        return [_SHARED.get(Why(reason["kind"])) or reason_text(reason)]
    found = []
    if kind is VerdictKind.OBSERVED and entry.get("full_precision_share"):
        found.append(_SHARES[entry["full_precision_share"]])
    if untested_rise(entry):
        found.append(_NOT_SIGNIFICANT)
    if kind is VerdictKind.PREDICTED:
        if entry.get("conflict"):
            found.append(_CONFLICTS[entry["conflict"]])
        if entry.get("poor_fit"):
            found.append(_POOR)
    return found


def _remarks(entries: Iterable[Entry]) -> list[str]:
    """How the table is read, and which turns would have been missed."""
    entries = list(entries)
    answered = [entry["answer"] for entry in entries if entry.get("answer")]
    levels = sorted({100 * number(answer["level"]) for answer in answered})
    found = []
    if answered:
        found.append(
            "D_crit, the number of pretraining tokens beyond which more of them make the quantized model worse, with "
            f"its {' or '.join(map(short, levels))} % interval; below it D/N. Each cell holds with that probability by "
            "itself, not all of them together"
        )
    silent = [entry for entry in entries if entry["verdict_kind"] != VerdictKind.OBSERVED and not untested_rise(entry)]
    rises = [number(entry.get("detectable_rise")) for entry in silent]
    rises = sorted(rise for rise in rises if math.isfinite(rise))
    if rises:
        low, high = rough(rises[0]), rough(rises[-1])
        span = low if low == high else f"{low} to {high}"
        found.append(
            f"where no turn is observed, the line, tested alone, would have shown a rise of {span} nats per token over "
            "the second half of the range with probability 0.8"
        )
    kinds = {entry["verdict_kind"] for entry in entries}
    if kinds & {VerdictKind.FORECAST, VerdictKind.NOT_BEFORE}:
        found.append(
            "where no turn is observed, the answer holds with its probability if the run goes on as it has: the same "
            "data, and the learning rate constant or on the schedule that the checkpoints show. A loss that flattens "
            "sooner or later than before is allowed for"
        )
    if VerdictKind.NOT_BEFORE in kinds:
        found.append(
            "nothing is stated beyond four times the last D. Where the rate of simulated runs decayed later without "
            f"notice, {100 * UNANNOUNCED_HELD:.0f} % of such statements held"
        )
    return found


def notes(found: Answers) -> list[str]:
    """The lines below the tables: how they are read, then the footnotes by number."""
    remarks = [f"{text[0].upper()}{text[1:]}." for text in found.remarks]
    return [*remarks, *(f"({i}) {text}." for i, text in enumerate(found.footnotes, 1))]
