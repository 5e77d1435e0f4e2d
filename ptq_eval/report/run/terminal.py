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
from ptq_eval.report.common.tables import FIT_HEADER, FLOOR, FLOOR_NOTE, LEAD, Grid, clear, fit_rows, grid
from ptq_eval.report.run import answers
from ptq_eval.report.run.words import observed, sentences, unknown_tokens

_BETWEEN = 3
"""Blanks that the table's style puts around each column."""


class Report:
    """A rich renderable of a study; without `measurements`, of what its fit says alone."""

    def __init__(self, study: Study, *, measurements: bool = True) -> None:
        self.study, self.measurements = study, measurements

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """The answer as a table, degradation, fits, the answer in sentences, warnings."""
        yield from _answers(self.study, options.max_width)
        if self.measurements:
            yield from _degradations(self.study, options.max_width)
        if self.study.fits:
            yield _fits(self.study)
        yield from _sentences(self.study)
        yield from _troubles(self.study)
        for warning in self.study.warnings:
            yield Text.assemble(("warning: ", "bold yellow"), warning)


def _degradations(study: Study, width: int) -> Iterator[RenderableType]:
    for run in study.runs:
        for part in fitting(grid(study, run), width):
            yield degradation(part)
    yield Text("0.1234(56) means 0.1234 ± 0.0056, one standard error.\n", style="dim")
    if not clear(study.measured).all():
        yield Text(f"A δ marked {FLOOR} {FLOOR_NOTE}.\n", style="dim")


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
    heading = Text.assemble("δ of ", (table.title, "bold"), ", nats per token")
    drawn = Table(title=heading, title_justify="left", title_style="", box=box.SIMPLE_HEAD)
    for name in _header(table):
        drawn.add_column(Text(name), justify="right", no_wrap=True)
    for row in table.rows:
        drawn.add_row(*(Text(text) for text in row))
    return drawn


def _fits(study: Study) -> Table:
    drawn = Table(title="Fits", title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    drawn.add_column("law", overflow="fold")
    drawn.add_column("constants [interval]", overflow="fold")
    for name in ("scatter,\nweighted\nR²", "points,\nruns", "status"):
        drawn.add_column(name, justify="right", overflow="fold")
    for row in fit_rows(study, between="\n"):
        named: dict[str, str] = dict(zip(FIT_HEADER, row))
        pairs = (("quantizer", "law"), ("scatter", "R², weighted"), ("points", "runs"))
        law, quality, size = (f"{named[first]}\n{named[second]}" for first, second in pairs)
        texts = (law, named["constants [interval]"], quality, size, named["status"])
        drawn.add_row(*map(Text, texts))
    return drawn


def _answers(study: Study, width: int) -> Iterator[RenderableType]:
    tables = answers.tables(study)
    heading = Text("Beyond how many tokens does more data harm?", style="bold")
    for found in tables or [answers.Answers([], [])]:
        if _answer_width(found) > width:
            found = found.narrow()
        if all(_answer_width(found.part([name])) <= width for name in found.columns):
            for columns in _fitting_columns(found, width):
                yield _answer_table(found.part(columns), heading)
                heading = Text("")
        else:
            yield heading
            yield from _answer_lines(found)
    for line in answers.notes(tables[0]) if tables else ():
        yield Text(line, style="dim")
    for run, words in unknown_tokens(study):
        yield Text.assemble((f"{run}: ", "bold"), words)


def _answer_lines(found: answers.Answers) -> Iterator[RenderableType]:
    """The cells below each other, where not even two columns fit."""
    for run, label, cells in found.rows:
        yield Text(f"{' '.join(run.split())}, {label}", style="bold")
        for name, cell in zip(found.columns, cells):
            yield Text(f"{name}: {' '.join(cell.lines)}", style="bold" * cell.observed)


def _fitting_columns(found: answers.Answers, width: int) -> Iterator[list[str]]:
    """The columns in parts whose table fits in `width` characters, at least one in each."""
    chosen: list[str] = []
    for name in found.columns:
        if chosen and _answer_width(found.part([*chosen, name])) > width:
            yield chosen
            chosen = []
        chosen.append(name)
    if chosen:
        yield chosen


def _answer_width(found: answers.Answers) -> int:
    if not found.rows:
        return 0
    columns = [[line for *_, cells in found.rows for line in cells[i].lines] for i in range(len(found.columns))]
    lead = max(len(line) for run, label, _ in found.rows for text in (run, label) for line in text.split("\n"))
    return 2 * _BETWEEN + lead + sum(_BETWEEN + max(map(len, lines)) for lines in columns)


def _answer_table(found: answers.Answers, heading: Text) -> Table:
    drawn = Table(title=heading, title_justify="left", title_style="", box=box.SIMPLE_HEAD)
    for name in (", ".join(found.lead), *found.columns):
        drawn.add_column(name, overflow="fold")
    for run, label, cells in found.rows:
        texts = (Text("\n".join(cell.lines), style="bold" * cell.observed) for cell in cells)
        drawn.add_row(f"{run}\n{label}", *texts)
        drawn.add_section()
    return drawn


def _sentences(study: Study) -> Iterator[RenderableType]:
    for run, what, words, entry in sentences(study):
        yield Text.assemble((f"{run}, {what}: ", "bold red" if observed(entry) else "bold"), words)


def _troubles(study: Study) -> Iterator[RenderableType]:
    for _, row in study.troubled.iterrows():
        bits = f" {row['bits']:.0f} bits" if row["bits"] == row["bits"] else ""
        what = f"{row['status']}: {row['checkpoint']}, {row['label']}{bits}: "
        yield Text.assemble((what, "bold red"), row["message"])
