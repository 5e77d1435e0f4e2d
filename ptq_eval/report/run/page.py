"""`report.md`: the page that a researcher reads first, the answer before everything else.

The page also states what is not known: which checkpoints were excluded and why, where a method did
worse than rounding, what the intervals do not cover, and what none of these numbers can show.

Every method but rounding to nearest exists to lower the error that rounding leaves, so a larger δ than rounding's on
the same grid points to too little calibration data, to damping, or to a fault; every such pair is named that errors and
the number of pairs do not explain (`results.over_rounding`).
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from itertools import groupby
from typing import Any

import pandas as pd

from ptq_eval.laws.turning.significance import SIGNIFICANCE
from ptq_eval.report.backtest import page as backtest
from ptq_eval.report.common import tables
from ptq_eval.report.common.data import FULL_PRECISION, Frame, Study, formats_of
from ptq_eval.report.common.files import plain
from ptq_eval.report.common.numbers import MISSING, count, number, short, with_error
from ptq_eval.report.common.words import interval_text, plural
from ptq_eval.report.comparison import page as comparison
from ptq_eval.report.mixed import page as mixed
from ptq_eval.report.run import answers, calibrations, formats, runtime, tasks, tokens
from ptq_eval.report.run.errors import of_calibration, of_seeds, of_windows
from ptq_eval.report.run.words import early, sentences, stated_bits, unknown_tokens
from ptq_eval.report.sensitivity import page as sensitivity
from ptq_eval.results.over_rounding import SUFFIX, compared

LIMITS = (
    "Loss on one text under one protocol is not accuracy on a task; a small δ can hide a large loss of ability, and "
    "losses in nats per token compare only between models with one tokenizer.",
    "Quantization is simulated: weights are replaced by their dequantized values. Speed, memory and the rounding of "
    "a particular kernel are not measured. Activations and the key-value cache stay in full precision, but in the "
    "section about them.",
    "An interval covers what its fit says it covers. A run is one seed and one order of the data; with few runs the "
    "difference to another run is not in the interval.",
    "Where the points are intermediate checkpoints of one run with a decaying learning rate, D and the learning "
    "rate change together: such a curve cannot tell more data from a lower learning rate.",
    "A predicted turning point rests on the form of the laws beyond the data; the larger the multiple of the "
    "largest D, the less it means.",
    "Constants belong to their quantizer, group size, calibration, text and way of counting N; they cannot be set "
    "beside published ones that differ in any of these.",
)
OF_THE_FIT = ("The answer", "Warnings", "The answer line by line", "Fits", comparison.TITLE, backtest.TITLE)
"""The sections that nothing can be said in before the laws are fitted."""
ROUNDING = "rtn"
MAX_COLUMNS = 8
"""Deltas beside each other on the page, where there are many formats."""

_GRID = ["point", "bits", "group_size", "symmetric", "format"]
_DELTAS = (("delta", "delta_se"), ("delta_rtn", "delta_se_rtn"), ("difference", "error"))
_HEADER = ("method", "checkpoint", "bits", "δ of the method", "δ of RTN", "difference", "p")
_COVERED = (
    "the choice of windows, the same for both, draws of the calibration windows where there are several, and the "
    "chance of one rounding of each"
)


def document(study: Study, *records: Mapping[str, Any] | None) -> str:
    """The page in GitHub's Markdown; arguments as for `sections`."""
    return markdown(sections(study, *records))


def markdown(parts: Iterable[tuple[str, str]]) -> str:
    """The page of these `sections`."""
    return "\n".join(f"## {title}\n\n{text.rstrip()}\n" if title else text for title, text in parts)


def sections(
    study: Study,
    theory: Mapping[str, Any] | None = None,
    found: Mapping[str, Any] | None = None,
    tested: Mapping[str, Any] | None = None,
    planned: Mapping[str, Any] | None = None,
) -> list[tuple[str, str]]:
    """(title, Markdown) of every section of the page; the first one, with the page's heading, has no title.

    `theory` is the record of `ptq-eval sensitivity`, `found` the comparison of laws, `tested` the backtest and
    `planned` the mixed models of `sensitivity --budget`, where there is one.  `report.md` and
    `report.html` are both made of these.
    """
    return [
        ("", _title(study)),
        ("The answer", _answer(study)),
        ("Warnings", _bullets(study.warnings) or "None.\n"),
        ("Figures", _figures(study)),
        ("The answer line by line", _line_by_line(study)),
        *([(formats.TITLE, formats.section(study))] if study.has_formats else []),
        ("Degradation", _degradation(study)),
        *([(calibrations.TITLE, calibrations.section(study))] if len(study.calibrations) else []),
        *([(runtime.TITLE, runtime.section(study))] if len(study.runtime) else []),
        *([(tokens.TITLE, tokens.section(study))] if len(tokens.last(study)) else []),
        *([(tasks.TITLE, tasks.section(study))] if study.fit.get("tasks") else []),
        ("Fits", _fits(study)),
        *([(comparison.TITLE, comparison.section(found, study.digest))] if found else []),
        (backtest.TITLE, backtest.section(tested, study)),
        *([("From theory: which layers carry the damage", sensitivity.section(theory))] if theory else []),
        *([(mixed.TITLE, mixed.section(planned))] if planned else []),
        ("Where a method did worse than rounding", _worse_than_rounding(study)),
        ("What was quantized", _models(study)),
        ("Excluded, failed or partly measured", _left_out(study)),
        ("GPTQ numerics", _solver(study)),
        ("How this was measured", _provenance(study)),
        ("What these numbers do not show", _bullets(LIMITS)),
    ]


def _title(study: Study) -> str:
    points, quantized = study.rows.drop_duplicates("point"), study.rows["quantizer"] != FULL_PRECISION
    names = dict.fromkeys(study.rows.loc[quantized, "method"]) if study.has_formats else study.labels
    return (
        "# What post-training quantization costs along the trajectory\n\n"
        f"{plural(len(points), 'checkpoint')} of {plural(study.rows['run'].nunique(), 'run')}; quantizers: "
        f"{tables.cell(', '.join(names)) or 'none'}; bits: {', '.join(map(str, study.bits())) or 'none'}; "
        f"{formats.listed(study)}"
        f"{len(study.measured)} deltas measured under the protocol `{study.protocols}`. δ is the loss after minus the "
        "loss before quantization, in nats per token; D are pretraining tokens, N parameters.\n"
    )


def _answer(study: Study) -> str:
    found, text = answers.tables(study), ""
    for one in found:
        rows = [[run, label, *map(_answer_cell, cells)] for run, label, cells in one.rows]
        text += tables.markdown(one.header, rows, left=len(one.header)) + "\n"
    text += _lines(answers.notes(found[0])) if found else ""
    text += "".join(f"**{tables.cell(run)}.** {words}\n\n" for run, words in unknown_tokens(study))
    return text or "Not identifiable: the fit has no entry on critical tokens, so nothing can be said.\n"


def _answer_cell(cell: answers.Cell) -> tuple[str, ...]:
    return tuple(f"**{line}**" for line in cell.lines) if cell.observed else cell.lines


def _lines(texts: Iterable[str]) -> str:
    """One paragraph whose lines stay apart."""
    return "\\\n".join(map(tables.cell, texts)) + "\n\n"


def _line_by_line(study: Study) -> str:
    text = ""
    if any(number(entry.get("rise_se")) > 0 for entry in study.critical):
        text = (
            "A rise is stated with its standard error over evaluation windows; its p allows besides for the scatter of "
            "checkpoints about a smooth curve, which is often larger.\n\n"
        )
    for run, found in groupby(sentences(study), key=lambda answer: answer[0]):
        text += f"### {tables.cell(run)}\n\n" + _bullets(f"**{what}.** {words}" for _, what, words, _ in found) + "\n"
    return text or "Nothing.\n"


def _figures(study: Study) -> str:
    some = f" Panels are of {', '.join(study.panels)}; other formats are compared below."
    return (
        "![Loss before and after quantization against D](figures/loss_vs_tokens.png)\n\n"
        "![δ against D/N](figures/delta_vs_ratio.png)\n\n"
        "Bands that are higher than a panel are cut off. Of a forecast before quantization the median alone is drawn "
        "(black, dashed); bands after quantization that reach it are not drawn. Both also as PDF, with the numbers "
        "behind them as CSV, in `figures/`."
        f"{some if len(study.panels) < len(study.labels) else ''}\n"
    )


def _degradation(study: Study) -> str:
    text = "0.1234(56) means 0.1234 ± 0.0056, one standard error of the paired difference over evaluation windows. "
    for words in (*of_calibration(study), *of_seeds(study)):
        text += f"{words} "
    if (study.rows["status"] == "partial").any():
        text += f"A \\{tables.PARTIAL} marks deltas with some layers left in full precision. "
    if not tables.clear(study.measured).all():
        text += f"A δ marked {tables.FLOOR} {tables.FLOOR_NOTE}. "
    if words := early(study):
        text += f"{words} "
    text += "All columns are in `degradation.csv`.\n"
    for run in study.runs:
        table = tables.grid(study, run)
        parts = table.split(MAX_COLUMNS) if study.has_formats else [table]
        text += f"\n### {tables.cell(table.title)}\n\n"
        text += "\n".join(map(tables.degradation_markdown, parts))
    return text


def _fits(study: Study) -> str:
    if not study.fits:
        return "Nothing was fitted.\n"
    text = tables.markdown(tables.FIT_HEADER, tables.fit_rows(study), left=3)
    text += "\n" + tables.quality_table([(tables.fit_name(study, entry), entry) for entry in study.fits], "quantizer")
    covered = {interval_text(entry) for entry in study.fits}
    remarks = [f"Intervals: {words}." for words in sorted(covered)]
    if early(study):
        remarks.append(
            "Deltas that ended early enter the fits with the noise of the windows they were measured on, not of all: "
            "where an interval covers the choice of evaluation windows, for them it covers the choice of those few."
        )
    remarks += [tables.fit_line(study, entry) for entry in study.fits]
    return text.rstrip("\n") + "\n\n" + _bullets(remarks)


def _worse_than_rounding(study: Study) -> str:
    """Methods whose δ exceeds rounding's on the same grid by more than errors and the number of methods explain."""
    both = _pairs_with_rounding(study)
    if both.empty:
        return "No measurement of another method has one of RTN on the same grid to be compared with.\n"
    text = f"{plural(len(both), 'pair')} on the same grid compared. The error of a difference covers {_COVERED}. "
    if unknown := int((~both["floor_known"]).sum()):
        text += f"The chance of rounding is not known for {plural(unknown, 'pair')}, whose errors are too small. "
    text += f"Where no method is worse, the probability of naming any below is at most {100 * SIGNIFICANCE:g} %.\n"
    significant, worse = both["adjusted_p"] <= SIGNIFICANCE, both["difference"] > 0
    if significant.any():
        rows = [_row(row) for _, row in both[significant].iterrows()]
        text += "\nSignificantly worse (p adjusted for all pairs by Holm's procedure):\n\n"
        text += tables.markdown(_HEADER, rows, left=2)
    if (worse & ~significant).any():
        counts = both[worse & ~significant].groupby(["label", "bits"], sort=False).size()
        named = [f"{label} {bits:.0f} bits {n}" for (label, bits), n in counts.items()]
        text += f"\nWorse, but not significantly, number of pairs: {'; '.join(map(tables.cell, named))}.\n"
    return text if worse.any() else text + f"None of {', '.join(dict.fromkeys(both['label']))} is worse anywhere.\n"


def _pairs_with_rounding(study: Study) -> Frame:
    """Rows of every other method beside RTN's for the same checkpoint, format, bits, group size and symmetry."""
    rows = study.measured.copy()
    rows["format"] = formats_of(rows)
    for name in ("group_size", "symmetric"):
        rows[name] = rows[name].astype(object).where(rows[name].notna(), "").astype(str)
    rounding = rows["quantizer"] == ROUNDING
    others = rows[~rounding & (rows["quantizer"] != FULL_PRECISION)]
    both = others.merge(rows[rounding], on=_GRID, suffixes=("", SUFFIX), how="inner")
    return compared(both).sort_values(["label", "bits", "place", "tokens"], kind="stable")


def _row(row: Any) -> list[str]:
    deltas = [with_error(row[value], row[error]) for value, error in _DELTAS]
    return [row["label"], row["checkpoint"], f"{row['bits']:.0f}", *deltas, short(row["adjusted_p"])]


def _models(study: Study) -> str:
    text = ""
    for run, model in (study.run.get("models") or {}).items():
        names = list(model.get("quantized") or ())
        part = _shares(model, study.rows.loc[study.rows["run"] == run, "params"].max())
        kinds = ", ".join(f"{times} × `{kind}`" for kind, times in Counter(map(_kind, names)).items())
        text += f"### {tables.cell(run)}\n\n{plural(len(names), 'matrix', 'matrices')} quantized{part}: {kinds}.\n\n"
        text += tables.markdown(("left in full precision", "how many", "reason", "parameters"), _excluded(model), 3)
        known = ("quantized", "excluded", "share_quantized")
        text += "\n" + _pairs({name: value for name, value in model.items() if name not in known}) + "\n"
    return text or "Not recorded.\n"


def _shares(model: Mapping[str, Any], params: float) -> str:
    """The quantized share of N, as N is counted in this study, and of all parameters."""
    shares = {
        "N": number(model.get("params_quantized")) / params,
        "all parameters": number(model.get("share_quantized")),
    }
    return "".join(f", {100 * share:.1f} % of {whole}" for whole, share in shares.items() if share == share)


def _excluded(model: Mapping[str, Any]) -> list[list[Any]]:
    """What stays in full precision, parameters of the same name in different layers together."""
    sums: dict[tuple[str, str], list[float]] = {}
    for item in model.get("excluded") or ():
        total = sums.setdefault((_kind(item.get("name")), str(item.get("reason"))), [0, 0.0])
        total[0] += 1
        total[1] += number(item.get("params"))
    return [[f"`{kind}`", times, reason, count(params)] for (kind, reason), (times, params) in sums.items()]


def _kind(name: Any) -> str:
    """A parameter's name with the numbers of layers and experts left open."""
    return re.sub(r"(?<=\.)\d+(?=\.)", "*", str(name))


def _left_out(study: Study) -> str:
    rows = _incomplete(study)
    return tables.markdown(("checkpoint", "what", "status", "reason"), rows, left=4) if rows else "Nothing.\n"


def _incomplete(study: Study) -> list[list[str]]:
    """(checkpoint, what, status, reason) of every row that was not measured in full."""
    return [
        [
            row["checkpoint"],
            row["label"] + (f", {row['bits']:.0f} bits" if row["bits"] == row["bits"] else ""),
            str(row["status"]),
            row["message"] or MISSING,
        ]
        for _, row in study.troubled.iterrows()
    ]


def _solver(study: Study) -> str:
    rows = _solver_summary(study)
    if not rows:
        return "No GPTQ measurement.\n"
    header = ("configuration", "bits", "largest damping", "retries", "dead columns", "layers left in full precision")
    return tables.markdown(header, rows) + "\nDamping is a fraction of the mean diagonal; the counts are sums.\n"


def _solver_summary(study: Study) -> list[list[Any]]:
    """Damping, retries, dead columns and layers left in full precision, per configuration and bits."""
    names = ("damping_max", "damping_retries", "dead_columns", "layers_skipped")
    if any(name not in study.rows for name in names):
        return []
    return list(_solver_rows(study.rows[study.rows["quantizer"] == "gptq"], names))


def _solver_rows(rows: Frame, names: tuple[str, ...]) -> Iterator[list[Any]]:
    for (label, bits), group in rows.groupby(["label", "bits"], sort=False):
        numbers = group[list(names)].apply(pd.to_numeric, errors="coerce")
        if numbers.isna().all(axis=None):
            continue
        sums = [f"{numbers[name].sum():.0f}" for name in names[1:]]
        yield [label, f"{bits:.0f}", short(numbers[names[0]].max()), *sums]


def _provenance(study: Study) -> str:
    windows = ", ".join(f"{value:.0f}" for value in sorted(set(study.rows["windows"].dropna())))
    if early(study):
        windows += " (fewer where a delta ended early)"
    devices = ", ".join(sorted({" ".join(pair) for pair in zip(study.rows["device"], study.rows["dtype"])}))
    text = _bullets([f"Windows per loss: {windows or 'unknown'}. Device and type: {devices.strip() or 'unknown'}."])
    text += _bullets((*of_windows(study), *stated_bits(study)))
    for name in ("options", "versions", "digests", "overlap", "git", "machine"):
        if study.run.get(name):
            text += f"\n### {name.capitalize()}\n\n" + _pairs(study.run[name])
    if study.run.get("seconds") is not None:
        text += f"\nMeasuring took {number(study.run['seconds']):.0f} seconds.\n"
    notes = _bullets(note for note in study.run.get("notes") or () if note not in study.warnings)
    return text + (f"\n### Notes\n\n{notes}" if notes else "")


def _pairs(values: Mapping[str, Any]) -> str:
    texts = {name: value if isinstance(value, str) else json.dumps(plain(value)) for name, value in values.items()}
    return _bullets(f"{name}: `{tables.cell(text)}`" for name, text in texts.items())


def _bullets(lines: Any) -> str:
    return "".join(f"- {' '.join(str(line).split())}\n" for line in lines)
