"""The tables of `ptq-eval inspect`: one per run with a line per checkpoint, and below what is wrong with which."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ptq_eval.report.common.numbers import count

_COLUMNS = {"step": "right", "D": "right", "D from": "left", "N": "right", "D/N": "right"}
_COLUMNS |= {"rate": "right", "phase": "left", "weights": "left"}


def inspection_table(rows: Sequence[Mapping[str, Any]]) -> RenderableType:
    """The rows of `ptq_eval.checkpoints.inspection_rows`; a cell is empty where a value is not known."""
    return Group(*(part for run, group in groupby(rows, lambda row: row["run"]) for part in _run(run, list(group))))


def _run(run: str, rows: Sequence[Mapping[str, Any]]) -> Iterator[RenderableType]:
    formats = ", ".join(dict.fromkeys(row["format"] for row in rows))
    title = Text.assemble((run, "bold"), f" ({formats})")
    drawn = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left", title_style="")
    for name, side in _COLUMNS.items():
        drawn.add_column(name, justify=side, no_wrap=True)  # type: ignore[arg-type]
    for row in rows:
        cells = [_place(row) if len(rows) > 1 else _step(row), *_cells(row)]
        drawn.add_row(*map(Text, cells), style="red" if row["fatal"] else "")
    yield drawn
    yield from (Text.assemble(("D: ", "bold"), note) for note in _sources(rows))
    for row in rows:
        if row["problems"]:
            where = _place(row) if len(rows) > 1 else _step(row)
            yield Text.assemble(
                (f"{run}{'@' if where else ''}{where}: ", "bold red" if row["fatal"] else "bold"), row["problems"]
            )


def _sources(rows: Sequence[Mapping[str, Any]], shown: int = 4) -> list[str]:
    """Where D comes from, each source once; where it is not known of one that is excluded for another reason, why.

    Of the others the problems say so.
    """
    notes = list(dict.fromkeys(row["tokens_note"] for row in rows if row["tokens"] is not None and row["tokens_note"]))
    notes = notes if len(notes) <= shown else [*notes[: shown - 1], f"and {len(notes) - shown + 1} more ways"]
    unknown: dict[str, list[str]] = {}
    for row in rows:
        if row["fatal"] and row["tokens"] is None and row["tokens_note"]:
            unknown.setdefault(row["tokens_note"], []).append(_place(row))
    return [*notes, *(f"not known of {', '.join(places)}: {note}" for note, places in unknown.items())]


def _step(row: Mapping[str, Any]) -> str:
    return "" if row["step"] is None else str(row["step"])


def _place(row: Mapping[str, Any]) -> str:
    """The step, or the name of a checkpoint among others whose step is not known."""
    return _step(row) or row["revision"].removeprefix("./")


def _cells(row: Mapping[str, Any]) -> list[str]:
    def known(name: str) -> str:
        return "" if row[name] is None else count(row[name])

    return [
        known("tokens"),
        row["tokens_source"],
        known("params"),
        known("tokens_per_param"),
        "" if row["learning_rate"] is None else f"{row['learning_rate']:.2g}",
        " ".join(part for part in (row["stage"], row["schedule_phase"]) if part),
        row["weights_sha"],
    ]
