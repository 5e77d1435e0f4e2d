"""The table of `ptq-eval inspect`: one line per checkpoint, and below it what is wrong with which."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ptq_eval.report.numbers import count

_RIGHT = ("step", "D", "N", "D/N", "rate")


def inspection_table(rows: Sequence[Mapping[str, Any]]) -> RenderableType:
    """The rows of `ptq_eval.checkpoints.inspection_rows`; a cell is empty where a value is not known."""
    drawn = Table(box=box.SIMPLE_HEAD)
    for name in ("run", "step", "D", "source", "N", "D/N", "format", "rate", "phase", "weights"):
        drawn.add_column(name, justify="right" if name in _RIGHT else "left", no_wrap=name != "run", overflow="fold")
    problems = []
    for row in rows:
        drawn.add_row(*(Text(cell) for cell in _cells(row)), style="red" if "!" in _marks(row) else "")
        if row["problems"]:
            where = f"{row['run']}@{'' if row['step'] is None else row['step']}: "
            problems.append(Text.assemble((where, "bold red" if "!" in _marks(row) else "bold"), row["problems"]))
    return Group(drawn, *problems)


def _marks(row: Mapping[str, Any]) -> str:
    """The first character of each problem: "!" where it keeps the checkpoint out of every fit."""
    return "".join(problem[:1] for problem in row["problems"].split("; "))


def _cells(row: Mapping[str, Any]) -> list[str]:
    def shown(name: str, form: str = "") -> str:
        return "" if row[name] is None else format(row[name], form)

    return [
        row["run"],
        shown("step"),
        "" if row["tokens"] is None else count(row["tokens"]),
        row["tokens_source"],
        "" if row["params"] is None else count(row["params"]),
        shown("tokens_per_param", ".3g"),
        row["format"],
        shown("learning_rate", ".2g"),
        " ".join(part for part in (row["stage"], row["schedule_phase"]) if part),
        row["weights_sha"],
    ]
