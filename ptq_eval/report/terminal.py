"""The report in a terminal: the same rows as on the page, drawn by rich.

The degradation table of a run is as wide as the console allows: configurations that do not fit beside each
other follow below one another.
"""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from ptq_eval.report.numbers import count
from ptq_eval.report.sentences import answers, observed
from ptq_eval.report.study import Study
from ptq_eval.report.tables import FIT_HEADER, LEAD, Grid, fit_rows, grid

_PADDING = 3


class Report:
    """A rich renderable of a study."""

    def __init__(self, study: Study) -> None:
        self.study = study

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Degradation, fits, critical tokens, warnings."""
        for run in self.study.runs:
            for part in fitting(grid(self.study, run), options.max_width):
                yield degradation(part)
        if self.study.fits:
            yield _fits(self.study)
        yield from _answers(self.study)
        yield from _troubles(self.study)
        for warning in self.study.warnings:
            yield Text.assemble(("warning: ", "bold yellow"), warning)


def fitting(table: Grid, width: int) -> Iterator[Grid]:
    """The table in as few parts as fit in `width` characters; a configuration is never torn apart."""
    chosen: list[str] = []
    for label in table.labels:
        if chosen and _width(table.part([*chosen, label])) > width:
            yield table.part(chosen)
            chosen = []
        chosen.append(label)
    yield table.part(chosen)


def _width(table: Grid) -> int:
    header = [*LEAD, *(label if len(label) > 6 else "x bits" for label, _ in table.columns)]
    return 1 + sum(_PADDING + max(len(row[i]) for row in [header, *table.rows]) for i in range(len(header)))


def degradation(table: Grid) -> Table:
    """The deltas of one run."""
    title = Text.assemble("δ of ", (table.run, "bold"), f" (N = {count(table.params)}), nats per token")
    drawn = Table(title=title, caption="0.1234(56) means 0.1234 ± 0.0056 (one standard error)", title_justify="left")
    for name in LEAD:
        drawn.add_column(name, justify="right", no_wrap=True)
    for label, bits in table.columns:
        drawn.add_column(Text(f"{label}\n{bits} bits"), justify="right", no_wrap=True)
    for row in table.rows:
        drawn.add_row(*(Text(text) for text in row))
    return drawn


def _fits(study: Study) -> Table:
    drawn = Table(title="Fits", title_justify="left")
    for i, name in enumerate(FIT_HEADER):
        drawn.add_column(name, justify="left" if i < 3 else "right", overflow="fold")
    for row in fit_rows(study):
        drawn.add_row(*(Text(text.replace(", ", "\n") if i == 2 else text) for i, text in enumerate(_open(row))))
    return drawn


def _open(row: list[str]) -> list[str]:
    """Constants one per line: the comma inside an interval stays."""
    return [text.replace("], ", "]\n") if i == 2 else text for i, text in enumerate(row)]


def _answers(study: Study) -> Iterator[RenderableType]:
    for run, what, words, entry in answers(study):
        colour = "bold red" if observed(entry) else "bold"
        yield Text.assemble((f"{run}, {what}: ", colour), words)


def _troubles(study: Study) -> Iterator[RenderableType]:
    for _, row in study.troubled.iterrows():
        bits = f" {row['bits']:.0f} bits" if row["bits"] == row["bits"] else ""
        what = f"{row['status']}: {row['checkpoint']}, {row['label']}{bits}: "
        yield Text.assemble((what, "bold red"), row["message"])
