"""The degradation tables as rows of text, for every form of output, and their Markdown.

One table per run: a row per checkpoint, a column per configuration and bit-width, delta with its standard error
in each cell.  LaTeX, Markdown and the terminal only differ in how they draw these rows, so they cannot disagree.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from ptq_eval.report.common.data import FULL_PRECISION, Frame, Study
from ptq_eval.report.common.numbers import MISSING, count, estimate, number, short, with_error
from ptq_eval.report.common.words import reason_text, remarks, scatter_text, status_text
from ptq_eval.sampling import SIGNIFICANT, errors_needed

if TYPE_CHECKING:
    from rich.table import Table

LEAD = ("checkpoint", "D", "D/N", "loss before")
"""The columns before the deltas."""
PARTIAL = "*"
"""Marks a delta measured with some layers left in full precision."""
FLOOR = "°"
"""Marks a delta that is not `clear`; figures draw it hollow."""
FLOOR_NOTE = (
    "is not significant beside its error and its noise floor together: other windows and other roundings as good as "
    "the one made could give it (at 2 and 3 bits the floor is low: 0.57 to 0.82 of the spread that was measured)"
)
FIT_HEADER = (
    "quantizer", "law", "constants [interval]", "scatter", "R², weighted", "objective", "points", "runs", "status",
)  # fmt: skip


@dataclass(frozen=True)
class Grid:
    """The deltas of one run: `columns` are (label, bits), `rows` start with the cells of `LEAD`."""

    title: str
    columns: list[tuple[str, int]]
    rows: list[list[str]]

    def part(self, columns: Sequence[tuple[str, int]]) -> Grid:
        """The same table with some columns only."""
        keep = [i for i, column in enumerate(self.columns) if column in columns]
        rows = [row[: len(LEAD)] + [row[len(LEAD) + i] for i in keep] for row in self.rows]
        return Grid(self.title, [self.columns[i] for i in keep], rows)

    def of(self, label: str) -> list[tuple[str, int]]:
        """The columns of one configuration."""
        return [column for column in self.columns if column[0] == label]

    def split(self, most: int) -> Iterator[Grid]:
        """Tables of at most `most` deltas, unless one configuration has more: it is never torn apart."""
        blocks: list[list[tuple[str, int]]] = [[]]
        for label in self.labels:
            own = self.of(label)
            if blocks[-1] and len(blocks[-1]) + len(own) > most:
                blocks.append([])
            blocks[-1] += own
        return (self.part(block) for block in blocks)

    @property
    def labels(self) -> list[str]:
        """Configurations in order."""
        return list(dict.fromkeys(label for label, _ in self.columns))


def grid(study: Study, run: str) -> Grid:
    """The degradation table of one run."""
    mine = study.rows[study.rows["trajectory"] == run]
    written = pd.Series(delta_cells(mine), index=mine.index, dtype=object)
    columns = [(label, bits) for label in study.labels for bits in study.bits(label)]
    full = study.baseline.set_index("point")["loss_fp"]
    rows = []
    for point, group in mine.groupby("point", sort=False):
        first = group.iloc[0]
        places = zip(group["label"], group["bits"], written[group.index])
        cells = {(label, bits): cell for label, bits, cell in reversed(list(places))}
        excluded = (group["status"] == "excluded").any()
        loss = f"{full[point]:.4f}" if point in full.index else ("excluded" if excluded else MISSING)
        lead = [_name(first, run), count(first["tokens"]), short(first["tokens_per_param"]), loss]
        rows.append(lead + [cells.get(column, MISSING) for column in columns])
    return Grid(study.title(run), columns, rows)


def _name(row: Mapping[str, Any], run: str) -> str:
    """A checkpoint's step or, among several runs, its whole name."""
    if row["run"] != run:
        return str(row["checkpoint"])
    return f"{row['step']:.0f}" if row["step"] == row["step"] else MISSING


def clear(points: Frame) -> Any:
    """Whether each delta is significant beside its error and, where known, its noise floor.

    Both are chance and independent, so they are added in squares: a delta beyond each alone is no rarity where they are
    alike.  What the draw of calibration windows does is part of both and counts once.
    """
    errors = errors_needed(points["delta_df"]) if "delta_df" in points else SIGNIFICANT
    least = errors * points["delta_se"].fillna(0)
    if "noise_floor" in points:
        draw = points["calibration_se"].fillna(0) if "calibration_se" in points else 0.0
        other = (points["noise_floor"].fillna(0) ** 2 - (SIGNIFICANT * draw) ** 2).clip(lower=0)
        least = np.sqrt(least**2 + other)
    return points["delta"].abs() > least


def delta_cells(points: Frame) -> list[str]:
    """δ of each row with its standard error and its marks, or why there is none."""
    rows = zip(points["delta"], points["delta_se"], points["status"], clear(points))
    return [_delta_cell(*row) for row in rows]


def _delta_cell(delta: float, error: float, status: str, is_clear: bool) -> str:
    if delta != delta:
        return str(status) if status not in ("ok", "partial") else MISSING
    return with_error(delta, error) + FLOOR * (not is_clear) + PARTIAL * (status == "partial")


def fit_name(study: Study, entry: Mapping[str, Any]) -> str:
    """What a fit is about: a configuration and, where it does not cover all runs, which of them."""
    label, runs = study.label_of(entry), set(entry.get("runs") or ())
    name = "full precision" if label == FULL_PRECISION else label
    partial = runs and runs != set(study.rows["run"])
    return f"{name} ({', '.join(sorted(runs))})" if partial else name


def fit_rows(study: Study, between: str = ", ") -> list[list[str]]:
    """The fits, one row each, in the columns of `FIT_HEADER`; `between` joins the constants."""
    rows = []
    for entry in study.fits:
        stuck = entry.get("at_bound") or ()
        constants = between.join(
            f"{name} = {estimate(value, at_bound=name in stuck)}"
            for name, value in (entry.get("parameters") or {}).items()
        )
        rows.append(
            [
                fit_name(study, entry),
                str(entry.get("law", MISSING)),
                constants or MISSING,
                scatter_text(entry),
                *(short(entry.get(name)) for name in ("r2_weighted", "objective", "n_points", "n_runs")),
                status_text(entry),
            ]
        )
    return rows


def quality_table(fits: Iterable[tuple[str, Mapping[str, Any]]], about: str) -> str:
    """How well each law describes the points of each bit-width, in Markdown; "" where nothing is known.

    fits: entries of `fit.json` with the names of their rows, which are `about` something.
    """
    named = [(name, entry) for name, entry in fits if entry.get("by_bits")]
    bits = sorted({number(one["bits"]) for _, entry in named for one in entry["by_bits"]})
    rows = []
    for name, entry in named:
        found = {number(one["bits"]): one for one in entry["by_bits"]}
        rows.append([name, *(_quality(entry, found.get(width)) for width in bits)])
    header = [about, *(f"{width:g} bits" for width in bits)]
    title = (
        "Scatter about the law beyond evaluation noise, and R² weighted by the errors, by bit-width. In the R² over "
        "all bit-widths the smallest deltas weigh most, since errors are proportional to delta; where these are noise, "
        "it is lower than at the other bit-widths:\n\n"
    )
    return title + markdown(header, rows) if rows else ""


def _quality(entry: Mapping[str, Any], one: Mapping[str, Any] | None) -> str:
    return f"{scatter_text(entry, one)}, R² {short(one['r2_weighted'])}" if one else MISSING


def fit_line(study: Study, entry: Mapping[str, Any]) -> str:
    """A fit in one line of Markdown: its form, its loss, points kept and dropped, scatter, peculiarities."""
    huber = number(entry.get("huber_delta"))
    bend = f", linear beyond {huber:g} standard deviations" if entry.get("loss") == "huber" and huber == huber else ""
    parts = [
        f"`{entry['equation']}`" if entry.get("equation") else "form not recorded",
        f"{entry.get('loss') or 'unrecorded'} loss{bend}",
        f"{short(entry.get('n_points'))} points, {short(entry.get('n_dropped'))} dropped",
        f"scatter about the law beyond evaluation noise: {scatter_text(entry)}",
        *remarks(entry),
    ]
    if entry.get("reason"):
        parts.append(f"no fit: {reason_text(entry['reason'])}")
    return f"{cell(fit_name(study, entry))}: {'; '.join(parts)}."


def markdown(header: Sequence[str], rows: Iterable[Sequence[Any]], left: int = 1) -> str:
    """A table in GitHub's Markdown: the first `left` columns flush left, the others flush right."""
    rules = [":---" if i < left else "---:" for i in range(len(header))]
    lines = [header, rules, *rows]
    return "\n".join("| " + " | ".join(cell(value) for value in line) + " |" for line in lines) + "\n"


def cell(value: Any) -> str:
    """Text that cannot break a Markdown table or become a tag; a tuple is one cell of several lines."""
    if isinstance(value, tuple):
        return "<br>".join(map(cell, value))
    return " ".join(str(value).split()).replace("|", "\\|").replace("<", "&lt;")


def degradation_markdown(table: Grid) -> str:
    """One run's deltas in Markdown."""
    return markdown([*LEAD, *(f"{label} {bits} bits" for label, bits in table.columns)], table.rows, left=0)


def rows_of(record: Mapping[str, Any]) -> pd.DataFrame:
    """Every row of every checkpoint of a study; the first columns are run, step, tokens and params."""
    lead = ("run", "step", "tokens", "params")
    return pd.DataFrame(
        [{**{name: entry[name] for name in lead}, **row} for entry in record["checkpoints"] for row in entry["rows"]]
    )


def checkpoint(entry: Mapping[str, Any]) -> str:
    """`run@step`, from what a study stores of a checkpoint."""
    return f"{entry['run']}@{entry['step'] if entry['step'] is not None else 'only'}"


def console(header: Sequence[str], rows: Iterable[Sequence[str]], unbroken: int = 0) -> Table:
    """The rows as a table for a rich console; the first `unbroken` columns are not wrapped."""
    from rich import box
    from rich.table import Column, Table

    columns = (Column(name, overflow="fold", no_wrap=i < unbroken) for i, name in enumerate(header))
    table = Table(*columns, box=box.SIMPLE, padding=(0, 1, 0, 0))
    for row in rows:
        table.add_row(*row)
    return table
