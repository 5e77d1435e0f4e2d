"""The report in a terminal: the same rows as on the page, drawn by rich.

The degradation table of a run is as wide as the console allows: what does not fit beside the
rest follows below it.
"""

from __future__ import annotations

from collections.abc import Iterator

from rich import box
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from ptq_eval.report.common.data import Study
from ptq_eval.report.common.tables import FIT_HEADER, LEAD, Grid, fit_rows, grid, title
from ptq_eval.report.run.words import answers, observed

_BETWEEN = 3
"""Blanks that the table's style puts around each column."""


class Report:
    """A rich renderable of a study; without `measurements`, of what its fit says alone."""

    def __init__(self, study: Study, *, measurements: bool = True) -> None:
        self.study, self.measurements = study, measurements

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Degradation, fits, critical tokens, warnings."""
        if self.measurements:
            yield from _degradations(self.study, options.max_width)
        if self.study.fits:
            yield _fits(self.study)
        yield from _answers(self.study)
        yield from _troubles(self.study)
        for warning in self.study.warnings:
            yield Text.assemble(("warning: ", "bold yellow"), warning)


def _degradations(study: Study, width: int) -> Iterator[RenderableType]:
    for run in study.runs:
        for part in fitting(grid(study, run), width):
            yield degradation(part)
    yield Text("0.1234(56) means 0.1234 ± 0.0056, one standard error.\n", style="dim")


def fitting(table: Grid, width: int) -> Iterator[Grid]:
    """The table in parts that fit in `width` characters; a configuration is torn apart only where it must be."""
    chosen: list[tuple[str, int]] = []
    for label in table.labels:
        own = table.of(label)
        for group in [own] if _width(table.part(own)) <= width else [[column] for column in own]:
            if chosen and _width(table.part([*chosen, *group])) > width:
                yield table.part(chosen)
                chosen = []
            chosen += group
    yield table.part(chosen)


def _header(table: Grid) -> list[str]:
    return [*LEAD, *(f"{label}\n{bits} bits" for label, bits in table.columns)]


def _width(table: Grid) -> int:
    cells = zip(*[[max(text.split("\n"), key=len) for text in row] for row in [_header(table), *table.rows]])
    return _BETWEEN + sum(_BETWEEN + max(map(len, column)) for column in cells)


def degradation(table: Grid) -> Table:
    """The deltas of one run."""
    heading = Text.assemble("δ of ", (title(table.run, table.params), "bold"), ", nats per token")
    drawn = Table(title=heading, title_justify="left", title_style="", box=box.SIMPLE_HEAD)
    for name in _header(table):
        drawn.add_column(Text(name), justify="right", no_wrap=True)
    for row in table.rows:
        drawn.add_row(*(Text(text) for text in row))
    return drawn


def _fits(study: Study) -> Table:
    drawn = Table(title="Fits", title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    drawn.add_column("law")
    drawn.add_column("constants [interval]", overflow="fold")
    shown = [FIT_HEADER.index(name) for name in ("R²", "points", "runs", "status")]
    for i in shown:
        drawn.add_column(FIT_HEADER[i], justify="right")
    for row in fit_rows(study, between="\n"):
        drawn.add_row(*(Text(text) for text in (f"{row[0]}\n{row[1]}", row[2], *(row[i] for i in shown))))
    return drawn


def _answers(study: Study) -> Iterator[RenderableType]:
    if study.critical:
        yield Text("Beyond how many tokens does more data harm?", style="bold")
    for run, what, words, entry in answers(study):
        yield Text.assemble((f"{run}, {what}: ", "bold red" if observed(entry) else "bold"), words)


def _troubles(study: Study) -> Iterator[RenderableType]:
    for _, row in study.troubled.iterrows():
        bits = f" {row['bits']:.0f} bits" if row["bits"] == row["bits"] else ""
        what = f"{row['status']}: {row['checkpoint']}, {row['label']}{bits}: "
        yield Text.assemble((what, "bold red"), row["message"])
