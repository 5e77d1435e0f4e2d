r"""The tables of a paper, each a float of its own with caption and label, in booktabs.

Every table is put into `\ptqfit`, which shrinks what is wider than its column: the width of a page is the author's to
choose.  Tables across both columns are split before that would make them too small to read.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any

from ptq_eval.laws.base import FitKind
from ptq_eval.report.common.data import FULL_PRECISION, Frame, Study
from ptq_eval.report.common.latex import batches, cell, escape, grid_tabular, stacked, symbol, tabular
from ptq_eval.report.common.numbers import MISSING, count, estimate, percent, ratio, short
from ptq_eval.report.common.tables import FLOOR, FLOOR_NOTE, PARTIAL, delta_cells, fit_name, grid
from ptq_eval.report.common.words import listed, message_text
from ptq_eval.report.paper.words import last
from ptq_eval.report.run import answers, latex
from ptq_eval.report.run.words import unknown_tokens
from ptq_eval.results.points import format_family

MAX_ANSWERS, MAX_LINES = 6, 10
"""Bit-widths beside each other, and lines under each other, in a table of answers."""
MAX_COLUMNS, MAX_ROWS = 8, 40
"""The same in a table of deltas."""
_NOTE = r"$0.1234(56)$ means $0.1234 \pm 0.0056$, one standard error."

Titles = dict[str, str]


def files(study: Study, titles: Titles) -> dict[str, str]:
    """The content of every file of tables by its name, without `.tex`."""
    first, *more = critical(study, titles)
    return {
        "critical": first,
        "last": last_deltas(study, titles),
        "fits": fits(study),
        "runs": runs(study, titles),
        "quantizers": quantizers(study),
        "degradation": "\n".join([*more, *degradation(study, titles)]),
    }


def floating(body: str, caption: str, label: str = "", *, wide: bool = False, below: Iterable[str] = ()) -> str:
    """A table as a float with its caption; wide: across both columns; below: notes under it."""
    name = "table*" if wide else "table"
    notes = " ".join(below)
    return "\n".join(
        [
            rf"\begin{{{name}}}[htbp]",
            r"\centering\footnotesize",
            rf"\caption{{{caption}}}" + (rf"\label{{tab:{label}}}" if label else ""),
            rf"\ptqfit{{{body}}}" if body else "",
            *([rf"\par\smallskip\begin{{minipage}}{{\linewidth}}\scriptsize {notes}\end{{minipage}}"] if notes else []),
            rf"\end{{{name}}}",
            "",
        ]
    )


def critical(study: Study, titles: Titles) -> Iterator[str]:
    """Where more data harms: the table at the head of the report, in as many floats as it needs."""
    found, label = answers.tables(study), "critical"
    caption = r"$D_{\mathrm{crit}}$ with its interval, and $D/N$, or what is known instead. Observed turns in bold."
    notes = [escape(text) for text in answers.notes(found[0])] if found else []
    for one in found:
        for columns in batches(one.columns, MAX_ANSWERS):
            for rows in batches(one.rows, MAX_LINES):
                part = replace(one, rows=list(rows)).part(columns).narrow()
                drawn = latex.answers_tabular(part, titles, r" \\ \addlinespace")
                words = caption if label else "Continued: " + caption
                yield floating(drawn, words, label, wide=True, below=notes if label else ())
                label = ""
    if not found:
        why = " ".join(escape(f"{run}: {words}") for run, words in unknown_tokens(study))
        yield floating("", rf"$D_{{\mathrm{{crit}}}}$ is not identifiable. {why}", label)


def last_deltas(study: Study, titles: Titles) -> str:
    """δ at the last checkpoint of each run, a row per quantizer, a column per bit-width."""
    rows = last(study)
    bits = sorted({int(value) for value in rows["bits"]})
    lines = []
    drawn = rows.assign(cell=delta_cells(rows)).to_dict("records")
    for run, own in groupby(drawn, key=lambda row: row["trajectory"]):
        own = list(own)
        name = titles[run]
        for label in dict.fromkeys(row["label"] for row in own):
            cells = {int(row["bits"]): row["cell"] for row in own if row["label"] == label}
            columns = [cell(cells.get(width, MISSING)) for width in bits]
            lines.append(" & ".join([name, escape(label), *columns]) + r" \\")
            name = ""
    heads = [rf"\multicolumn{{2}}{{c}}{{{width} bits}}" for width in bits]
    header = [" & ".join(["run", "quantizer", *heads]) + r" \\"]
    caption = rf"$\delta$ at the last checkpoint of each run, in nats per token. {_NOTE}"
    body = tabular("ll" + "r@{.}l" * len(bits), header, lines) if lines else ""
    return floating(body, caption, "last", wide=len(bits) > 4, below=_marks(rows, lines))


def _marks(rows: Frame, drawn: Iterable[str]) -> list[str]:
    text = " ".join(drawn)
    found = [rf"$^{{\circ}}$ $\delta$ {escape(FLOOR_NOTE)}."] if r"\circ" in text else []
    return found + ([r"$^{*}$ Some layers were left in full precision."] if (rows["status"] == "partial").any() else [])


def fits(study: Study) -> str:
    """The constants of every law with their intervals; below the table, why a law could not be fitted."""
    lines, notes = [], []
    for entry in study.fits:
        name = escape(fit_name(study, entry))
        if entry.get("status_kind") != FitKind.OK:
            notes.append(f"{name}: {escape(message_text(entry))}.")
        constants = entry.get("parameters") or {}
        if entry.get("status_kind") == FitKind.NOT_IDENTIFIED or not constants:
            continue
        stuck = entry.get("at_bound") or ()
        values = [f"{symbol(c)} $=$ {escape(estimate(v, at_bound=c in stuck))}" for c, v in constants.items()]
        facts = [percent(entry.get("scatter")), short(entry.get("r2_weighted")), short(entry.get("n_points"))]
        law = escape(str(entry.get("law")))
        lines.append(" & ".join([stacked([name, law]), stacked(values), *map(escape, facts)]) + r" \\ \addlinespace")
    header = [r"fit & constants [interval] & scatter & $R^2$ & points \\"]
    body = tabular("llrrr", header, lines) if lines else ""
    caption = r"Constants of the fitted laws. Scatter is that of checkpoints about the law beyond evaluation noise."
    return floating(body, caption if lines else "No law could be fitted.", "fits", below=dict.fromkeys(notes))


def runs(study: Study, titles: Titles) -> str:
    """The checkpoints of every training run."""
    lines = []
    for run, own in study.baseline.groupby("run", sort=False):
        name = titles.get(str(run), escape(str(run)))
        phases = own["schedule_phase"].dropna().unique() if "schedule_phase" in own else []
        ends = [_span(own[column], form) for column, form in (("tokens", count), ("tokens_per_param", ratio))]
        loss = _span(own["loss_fp"], lambda value: f"{value:.3f}")
        size = count(own["params"].iloc[0])
        cells = [str(len(own)), size, *ends, loss, listed([*filter(None, phases)] or [MISSING])]
        lines.append(" & ".join([name, *map(escape, cells)]) + r" \\")
    header = [r"run & checkpoints & $N$ & $D$ & $D/N$ & $L$ & learning rate \\"]
    caption = "The training runs: parameters $N$, pretraining tokens $D$, and the loss $L$ in full precision."
    return floating(tabular("lrrlllc", header, lines) if lines else "", caption, "runs", wide=True)


def _span(column: Frame, form) -> str:
    known = column.dropna()
    if known.empty:
        return MISSING
    first, final = form(known.iloc[0]), form(known.iloc[-1])
    return first if first == final else f"{first} to {final}"


def quantizers(study: Study) -> str:
    """Every method with all of its options, and the grids it was measured on."""
    rows = study.rows[study.rows["quantizer"] != FULL_PRECISION].drop_duplicates("label")
    rows = rows.set_index("label", drop=False).loc[study.labels]
    keys = [column for column in ("quantizer", "options", "calibration", "quantizer_version") if column in rows]
    lines = []
    for _, own in rows.groupby(keys, sort=False, dropna=False):
        row = own.iloc[0]
        version = str(row.get("quantizer_version") or MISSING).removesuffix(".0")
        options = [rf"\texttt{{{escape(option)}}}" for option in _options(row.get("options"))] or ["none"]
        grids = [escape(_grid(one, study.bits(one["label"]))) for one in own.to_dict("records")]
        cells = [escape(row["method"]), stacked(grids), escape(str(row.get("calibration") or MISSING)), escape(version)]
        lines.append(" & ".join([*cells, stacked(options)]) + r" \\ \addlinespace")
    header = [r"quantizer & grids & calibration & version & options \\"]
    caption = "The quantizers with every option. Version: of the implementation."
    return floating(tabular("lllll", header, lines) if lines else "", caption, "quantizers", wide=True)


def _grid(row: Mapping[str, Any], bits: Sequence[int]) -> str:
    """A number format with its bits and group size."""
    size = row.get("group_size")
    group = f"groups of {size:.0f}" if size == size and size is not None else "one scale per row"
    family = format_family(str(row.get("format") or "int"))
    name = family if family != "int" else "symmetric" if str(row.get("symmetric")) == "True" else "asymmetric"
    return f"{name}, {listed(bits)} bits, {group}"


def _options(text: object) -> list[str]:
    if not isinstance(text, str) or not text:
        return []
    return [f"{name}={json.dumps(value)}" for name, value in sorted(json.loads(text).items())]


def degradation(study: Study, titles: Titles) -> Iterator[str]:
    """All deltas of every run, in as many floats as they need."""
    for run in study.runs:
        table = grid(study, run)
        for part in table.split(MAX_COLUMNS):
            for rows in batches(part.rows, MAX_ROWS):
                one = replace(part, rows=list(rows))
                texts = [text for row in rows for text in row]
                caption = rf"$\delta$ of {titles[table.title]}, in nats per token; $L$ is the loss before. {_NOTE}"
                notes = [rf"$^{{\circ}}$ $\delta$ {escape(FLOOR_NOTE)}."] if any(FLOOR in t for t in texts) else []
                if any(t.endswith(PARTIAL) for t in texts):
                    notes.append(r"$^{*}$ Some layers were left in full precision.")
                yield floating(grid_tabular(one), caption, wide=True, below=notes)
