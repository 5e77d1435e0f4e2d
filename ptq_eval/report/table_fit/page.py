"""The report of a fit to a user's table: `fit.json`, `report.md`, a figure, and the same in a terminal."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ptq_eval.laws.turning.verdict import VerdictKind
from ptq_eval.report.common import figures, files
from ptq_eval.report.common.numbers import MISSING, count, estimate, number, short, tokens_estimate
from ptq_eval.report.common.tables import markdown, quality_table
from ptq_eval.report.common.words import (
    interval_text,
    message_text,
    reason_text,
    scatter_text,
    status_text,
    with_fit_texts,
)
from ptq_eval.report.table_fit import figure as data_figure

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult

NAME = "fit_against_data"
HEADER = ("law", "constants [interval]", "scatter", "R², weighted", "objective", "AICc", "points", "status")
TURNS = ("N", "served as", "D_crit [interval]", "× largest D", "verdict")
MOST_TURNS = 40
"""Rows of the table of critical tokens on a page; all are in fit.json."""


def write(out: Path, found: Any) -> list[Path]:
    """Write a `DataFit` below `out`; the paths written.  Raises OutputFullError."""
    return [
        *files.write_fit(out, found.fit, [result.replicates for result in found.results]),
        *figures.write(out / "figures", found, {NAME: data_figure}),
        files.write_text(out / "report.md", page(found.fit)),
    ]


def name_of(entry: Mapping[str, Any]) -> str:
    """The law and the group of an entry."""
    return ", ".join([str(entry["law"]), *(f"{key} {value}" for key, value in entry["group"].items())])


def rows(fit: Mapping[str, Any], between: str) -> Iterator[list[str]]:
    """The fits in the columns of `HEADER`; `between` joins the constants."""
    for entry in fit["fits"]:
        marks = dict.fromkeys(entry["held"], " (held)")
        named = entry["parameters"].items()
        constants = between.join(f"{name} = {estimate(value)}{marks.get(name, '')}" for name, value in named)
        objective = f"{number(entry['objective']):.10g}" if entry["objective"] is not None else MISSING
        numbers = [scatter_text(entry), short(entry["r2_weighted"]), objective]
        numbers += [short(entry[name]) for name in ("aicc", "n_points")]
        yield [name_of(entry), constants or MISSING, *numbers, status_text(entry)]


def held_texts(entry: Mapping[str, Any]) -> list[str]:
    """What the points did not determine, at which value it was kept, and why."""
    reasons, texts = entry.get("held_because") or {}, []
    for name, reason in reasons.items():
        value = number(entry["parameters"][name]["value"])
        why = reason_text(reason)
        texts.append(f"{name} is held at {value:.4g}, because these rows do not determine it: {why}")
    if texts:
        texts[-1] += "; the other constants hold only together with what is held"
    return texts


def turns(fit: Mapping[str, Any]) -> list[list[str]]:
    """The critical tokens in the columns of `TURNS`."""
    return [
        [
            count(entry["params"]),
            served_as(entry),
            tokens_estimate(entry["predicted"]),
            short(entry["extrapolation_factor"]),
            verdict_text(entry),
        ]
        for entry in fit["critical_tokens"]
    ]


def verdict_text(entry: Mapping[str, Any]) -> str:
    """What the law says of D_crit, and where the lowest measured loss is."""
    text = f"predicted at {short(entry['extrapolation_factor'])}× the largest D seen"
    if entry["verdict_kind"] != VerdictKind.PREDICTED:
        text = f"not identifiable: {reason_text(entry['reason'])}"
    tokens, largest = number(entry["observed_tokens"]), number(entry["largest_tokens"])
    if not math.isfinite(tokens):
        return text
    where = f"at D = {count(tokens)}" if tokens < largest else "at the largest D"
    after = "" if entry["trained_as_served"] else " after quantization"
    return f"{text}; the lowest measured loss{after} is {where}"


def with_texts(fit: Mapping[str, Any]) -> dict[str, Any]:
    """The fit of a table with its sentences: "status", "message" and "interval" of each fit, each "verdict"."""
    fits = [with_fit_texts(entry) for entry in fit["fits"]]
    critical = [{**entry, "verdict": verdict_text(entry)} for entry in fit["critical_tokens"]]
    return {**fit, "fits": fits, "critical_tokens": critical}


def served_as(entry: Mapping[str, Any]) -> str:
    """The bits or the floating-point format (E4M3) of an entry, and whatever else it holds for."""
    other = {name: f"{value:g}" for name, value in (entry.get("at") or {}).items()}
    parts = [short(entry["bits"])] if entry["bits"] is not None else []
    if {"E_bits", "M_bits"} <= set(other):
        parts.append(f"E{other.pop('E_bits')}M{other.pop('M_bits')}")
    return ", ".join([*parts, *(f"{name} {value}" for name, value in other.items())]) or MISSING


def page(fit: Mapping[str, Any]) -> str:
    """The fit in Markdown."""
    about = fit["data"]
    mapping = (
        ", ".join(f"`{name} = {text}`" for name, text in about["columns"].items()) or "columns by their usual names"
    )
    where = f", rows with `{about['where']}`" if about["where"] else ""
    parts = [f"# Fit to {about['source']}\n", f"{about['rows']} rows; {mapping}{where}.\n"]
    parts.append(markdown(HEADER, rows(fit, ", "), left=2))
    if quality := quality_table([(name_of(entry), entry) for entry in fit["fits"]], "law"):
        parts.append(quality)
    for entry in fit["fits"]:
        bend = f" (linear beyond {entry['huber_delta']:g})" if "huber" in entry["loss"] else ""
        parts.append(f"{name_of(entry)}: `{entry['equation']}` ({entry['source']}); {entry['loss']} loss{bend}; ")
        parts[-1] += f"{message_text(entry)}; {interval_text(entry)}.\n"
        parts += [f"{name_of(entry)}: {text}.\n" for text in held_texts(entry)]
    parts.append(f"![measured over fitted values, and residuals](figures/{NAME}.png)\n")
    if fit["critical_tokens"]:
        shown = turns(fit)[:MOST_TURNS]
        more = len(fit["critical_tokens"]) - len(shown)
        parts.append("## Beyond how many tokens does more data harm?\n\n" + markdown(TURNS, shown, left=0))
        parts += [f"{more} more in fit.json.\n"] if more else []
    parts += [f"- {warning}" for warning in fit["warnings"]]
    return "\n".join(parts).rstrip() + "\n"


class Rendered:
    """A rich renderable of a fit to a table."""

    def __init__(self, fit: Mapping[str, Any]) -> None:
        self.fit = fit

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Fits, critical tokens, warnings."""
        from rich import box
        from rich.table import Table
        from rich.text import Text

        drawn = Table(box=box.SIMPLE_HEAD)
        for i, name in enumerate(HEADER):
            drawn.add_column(name, justify="left" if i < 2 else "right", overflow="fold")
        for row in rows(self.fit, "\n"):
            drawn.add_row(*(Text(text) for text in row))
        yield drawn
        for entry in self.fit["fits"]:
            yield Text(f"{name_of(entry)}: {message_text(entry)}; {interval_text(entry)}", style="dim")
            for text in held_texts(entry):
                yield Text(f"{name_of(entry)}: {text}")
        if self.fit["critical_tokens"]:
            table = Table(title="Critical tokens", title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
            for name in TURNS:
                table.add_column(name)
            for row in turns(self.fit)[:MOST_TURNS]:
                table.add_row(*(Text(text) for text in row))
            yield table
        for warning in self.fit["warnings"]:
            yield Text.assemble(("warning: ", "bold yellow"), warning)
