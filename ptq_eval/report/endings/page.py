"""What `average` and `probe` write: a record, a table of every ending, a figure, and a page."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from ptq_eval.report.common import figures, files, tables
from ptq_eval.report.common.numbers import MISSING, count, plus_minus, rough, with_error
from ptq_eval.report.endings import figure, words
from ptq_eval.results.endings import least

if TYPE_CHECKING:
    from rich.console import RenderableType

HEADER = ("checkpoint", "quantizer", "ending", "made", "D", "loss before", "loss", "δ", "difference", "p", "")
ANSWERS = ("checkpoint", "quantizer", "least loss", "difference")


def files_of(kind: str) -> str:
    """The names of what `write` writes."""
    return f"{kind}.json, {kind}.csv, {kind}.md, figures/{kind}.{{png,pdf,csv}}"


def write(out: Path, record: Mapping[str, Any]) -> list[Path]:
    """Write `KIND.json`, `.csv`, `.md` and the figure below `out`; the paths.  Raises OutputFullError."""
    kind = record["kind"]
    return [
        *figures.write(out / "figures", record, {kind: figure}),
        files.write_csv(out / f"{kind}.csv", frame(record)),
        files.write_text(out / f"{kind}.md", document(record)),
        files.write_json(out / f"{kind}.json", record),
    ]


def frame(record: Mapping[str, Any]) -> pd.DataFrame:
    """Every row of the record."""
    return pd.DataFrame(record["rows"])


def document(record: Mapping[str, Any]) -> str:
    """The page as Markdown."""
    kind = record["kind"]
    title, image = words.TITLES[kind], f"![Differences from {words.reference(record)}](figures/{kind}.png)"
    parts = [f"# {title}", words.about(record), tables.markdown(ANSWERS, answers(record), left=4), image]
    return "\n\n".join(part.rstrip() for part in [*parts, tables.markdown(HEADER, body(record), left=4)]) + "\n"


def render(record: Mapping[str, Any]) -> RenderableType:
    """Both tables for a rich console, one of each for all that is compared at one D."""
    from rich.console import Group
    from rich.text import Text

    shown: list[RenderableType] = []
    for group in dict.fromkeys(row["group"] for row in record["rows"]):
        shown.append(Text(group))
        for header, rows in ((HEADER, body(record)), (ANSWERS, answers(record))):
            shown.append(tables.console(header[1:], [row[1:] for row in rows if row[0] == group], unbroken=3))
    return Group(*shown)


def answers(record: Mapping[str, Any]) -> list[list[str]]:
    """One row for each checkpoint and configuration: the ending with the least loss, and by how much."""
    named = dict(zip((row["key"] for row in record["rows"]), words.method_names(record["rows"])))
    others = [row for row in record["rows"] if row.get("decision") is not None]
    runner_up = {(row["group"], named[row["key"]]): row for row in least(others)}
    found = []
    for best in least(record["rows"]):
        method = named[best["key"]]
        said = words.answer(best, record, runner_up.get((best["group"], method)))
        found.append([best["group"], method, best["ending"], said])
    return found


def body(record: Mapping[str, Any]) -> list[list[str]]:
    """One row for each ending and configuration, those that are compared with each other together."""
    named = zip(record["rows"], words.method_names(record["rows"]))
    places = {group: place for place, group in enumerate(dict.fromkeys(row["group"] for row in record["rows"]))}
    methods = {method: place for place, method in enumerate(dict.fromkeys(words.method_names(record["rows"])))}
    ordered = sorted(named, key=lambda one: (places[one[0]["group"]], methods[one[1]]))
    return [_row(row, method) for row, method in ordered]


def _row(row: Mapping[str, Any], method: str) -> list[str]:
    compared = row.get("decision") is not None
    difference = plus_minus(row["difference"], words.error(row)) if compared else MISSING
    return [
        row["group"], method, row["ending"], words.span(row), count(row["tokens"]), f"{row['loss_before']:.4f}",
        with_error(row["loss"], row["loss_se"]), with_error(row["delta"], row["delta_se"]), difference,
        rough(row["p"]) if compared else MISSING, words.decision(row),
    ]  # fmt: skip
