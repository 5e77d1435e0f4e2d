"""A comparison of two results to read: in a terminal, as Markdown for a pull request, as JSON."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from ptq_eval.report.common.numbers import MISSING, plus_minus, rough
from ptq_eval.report.common.tables import console as console_table
from ptq_eval.report.common.tables import markdown as markdown_table
from ptq_eval.report.gate import words
from ptq_eval.report.gate.names import Names
from ptq_eval.results.gate.decision import Outcome, Shortage
from ptq_eval.results.gate.verdict import Comparison, Judged

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult

VERSION = 1
"""Of the shape of the JSON file."""
SHOWN = 20
"""Rows of a table of cells; the others are in the JSON file, and folded away in Markdown."""
_ORDER = (Outcome.WORSE, Outcome.UNTESTED, Outcome.NOT_WORSE, Outcome.BETTER, Outcome.SAME)


def header(found: Comparison) -> list[str]:
    """The columns of the table of cells."""
    if found.documents:
        lead = ["task", "metric", "old", "new"]
        return [*lead, "worse by", "p", "could have seen", "documents", "needed", ""]
    lead = ["checkpoint", "quantizer", "old loss", "new loss"]
    return [*lead, "worse by", "p", "could have seen", "windows", "needed", ""]


def rows(found: Comparison, names: Names) -> list[list[str]]:
    """The cells as text, those that matter most first: by outcome, then by how much worse they are."""
    ordered = sorted(found.cells, key=lambda cell: (_ORDER.index(cell.outcome), -cell.pair.evidence.worsening))
    return [_row(cell, names) for cell in ordered]


def _row(cell: Judged, names: Names) -> list[str]:
    pair = cell.pair
    same = cell.outcome == Outcome.SAME
    return [
        names.place(pair.about),
        names.method(pair.about),
        f"{pair.base:.4f}",
        f"{pair.new:.4f}",
        "0" if same else _signed(plus_minus(pair.evidence.worsening, pair.evidence.total)),
        MISSING if same or cell.outcome == Outcome.BETTER else _p(cell.adjusted_p),
        rough(cell.smallest),
        f"{pair.windows[0]:,}",
        _needed(cell.needed),
        words.OUTCOMES[cell.outcome],
    ]


def _signed(text: str) -> str:
    return text if text.startswith(("-", "(")) else f"+{text}"


def _p(value: float) -> str:
    return MISSING if math.isnan(value) else "< 0.0001" if value < 1e-4 else rough(value)


def _needed(needed: int | Shortage | None) -> str:
    if isinstance(needed, int):
        return f"{needed:,}"
    return MISSING if needed is None else "no number"


def paragraphs(found: Comparison, names: Names) -> Iterator[tuple[str, list[str]]]:
    """(kind, sentences) around the table."""
    yield "power", list(words.power(found, names))
    yield "remarks", list(words.remarks(found, names))
    yield "origins", list(words.origins(found))


def markdown(found: Comparison) -> str:
    """For the summary of a CI job, or a comment on a pull request."""
    names = Names(found)
    table, about = rows(found, names), dict(paragraphs(found, names))
    parts = [f"## Quantization: {words.VERDICTS[found.verdict].lower()}\n\n{words.headline(found, names)}\n"]
    if about["power"]:
        parts.append(" ".join(about["power"]) + "\n")
    if about["remarks"]:
        parts.append("\n".join(f"- {text}" for text in about["remarks"]) + "\n")
    if table:
        parts.append(markdown_table(header(found), table[:SHOWN], left=2))
    if table[SHOWN:]:
        rest = markdown_table(header(found), table[SHOWN:], left=2)
        parts.append(f"<details><summary>{len(table) - SHOWN} more cells</summary>\n\n{rest}\n</details>\n")
    parts.append(f"{words.fine_print(found)}\n\n" + "\\\n".join(f"{text}" for text in about["origins"]) + "\n")
    return "\n".join(parts)


class Rendered:
    """A rich renderable of a comparison."""

    def __init__(self, found: Comparison) -> None:
        self.found = found

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """The verdict, the table and what its reader must know."""
        from rich.text import Text

        found, names = self.found, Names(self.found)
        table, about = rows(found, names), dict(paragraphs(found, names))
        if table:
            yield console_table(header(found), table[:SHOWN], unbroken=4)
        if table[SHOWN:]:
            yield Text(f"… and {len(table) - SHOWN} more cells (--json, --markdown)\n")
        first, rest = words.headline(found, names).split(":", 1)
        yield Text.assemble((f"{first}:", "bold"), rest)
        for text in (*about["power"], *about["remarks"]):
            yield Text(text)
        yield Text(words.fine_print(found), style="dim")
        for text in about["origins"]:
            yield Text(text, style="dim")


def to_dict(found: Comparison) -> dict[str, Any]:
    """Everything as a JSON object, sentences included."""
    names = Names(found)
    about = dict(paragraphs(found, names))
    return {
        "version": VERSION,
        "verdict": found.verdict.value,
        "exit_code": found.verdict.exit_code,
        "text": words.headline(found, names),
        "power": about["power"],
        "remarks": about["remarks"],
        "base": asdict(found.base),
        "new": asdict(found.new),
        "tolerance": found.rule.tolerance,
        "level": found.rule.level,
        "judge": found.judge,
        "cells": [_cell(cell, names) for cell in found.cells],
        "not_comparable": [{**asdict(one), "name": names.of(one.about)} for one in found.mismatches],
        "missing": [{**asdict(one), "name": names.of(one.about)} for one in found.missing],
        "added": [{**about, "name": names.of(about)} for about in found.added],
        "skipped_metrics": list(found.skipped),
    }


def _cell(cell: Judged, names: Names) -> Mapping[str, Any]:
    pair, evidence = cell.pair, cell.pair.evidence
    common, base, new = pair.windows
    return {
        "name": names.of(pair.about),
        **pair.about,
        "outcome": cell.outcome.value,
        "base": pair.base,
        "new": pair.new,
        "worsening": evidence.worsening,
        "error": evidence.error,
        "df": evidence.df,
        "chance": evidence.chance,
        "luck": pair.luck,
        "luck_may_explain": cell.luck,
        "p": cell.adjusted_p,
        "smallest_detectable": cell.smallest,
        "windows": common,
        "windows_base": base,
        "windows_new": new,
        "windows_needed": cell.needed if isinstance(cell.needed, int) else None,
        "calibration_draws": pair.draws,
        "full_precision_drift": pair.drift,
        "paired": pair.paired,
        "luck_known": pair.luck_known,
    }
