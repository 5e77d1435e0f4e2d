"""What `ptq-eval arena` writes: `arena.json`, `arena.csv`, `arena.md` with a figure, and the counts in a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from ptq_eval.report.arena import figure, words
from ptq_eval.report.common import figures, files
from ptq_eval.report.common.numbers import MISSING, number
from ptq_eval.report.common.tables import cell, console, markdown

if TYPE_CHECKING:
    from rich.console import RenderableType

NAME = "arena"
TITLE = "The law arena"
_TABLE_HEADER = ("table", "what", "source", "licence")


def write(out: Path, found: Mapping[str, Any]) -> list[Path]:
    """Write what `ptq_eval.arena` returned below `out`; the paths written.  Raises OutputFullError."""
    return [
        files.write_json(out / f"{NAME}.json", found),
        files.write_csv(out / f"{NAME}.csv", rows(found)),
        files.write_text(out / f"{NAME}.md", page(found)),
        *figures.write(out / "figures", found, {NAME: figure}),
    ]


def rows(found: Mapping[str, Any]) -> pd.DataFrame:
    """One row per table, ranking, question and law: its score, or the kind of the reason why there is none."""
    numbers = ("score", "error", "crps", "beyond", "difference", "difference_error", "p")
    made = []
    for table in found["tables"]:
        for ranking in table["rankings"]:
            for one in ranking["questions"]:
                head = {"table": table["name"], "ranking": ranking["label"], "response": ranking["response"]}
                head |= {"held_out": one["held_out"], "points": one["n_points"], "runs": one["n_runs"]}
                for score in one["scores"]:
                    scored = {name: number(score[name]) for name in numbers}
                    made.append({**head, "law": score["law"], "place": score["place"], **scored, "reason": ""})
                for law, reason in {**one["not_identified"], **ranking["excluded"]}.items():
                    why = reason.get("reason", reason)["kind"]
                    made.append({**head, "law": law, "place": "not_identified", "reason": why})
                if one["reason"]:
                    made.append(
                        {**head, "law": "every law", "place": "not_identified", "reason": one["reason"]["kind"]}
                    )
    return pd.DataFrame(made)


def page(found: Mapping[str, Any]) -> str:
    """The page in Markdown."""
    parts = [
        f"# {TITLE}\n\n{words.how(found)}",
        f"Made by\n\n```sh\n{words.command(found)} -o OUT\n```\n",
        "## How often\n\n" + "\n".join(_counts(found)),
        f"![Score of every law in every ranking](figures/{NAME}.png)\n",
        "## Tables\n\n" + markdown(_TABLE_HEADER, _tables(found), left=4),
    ]
    for table in found["tables"]:
        parts += [_ranking(table, ranking) for ranking in table["rankings"]]
    return "\n".join(parts)


def _counts(found: Mapping[str, Any]) -> Iterator[str]:
    yield (
        "In how many rankings a law is best or not significantly different from the best (good), significantly worse, "
        "without an error (too few runs), or not identified.\n"
    )
    for response, symbol in words.RESPONSES.items():
        counted = words.counts(found, response)
        if counted:
            header = (f"law of {symbol}", *words.QUESTIONS.values())
            yield markdown(header, _count_rows(counted), left=4)


def _count_rows(counted: Mapping[str, Any]) -> list[list[str]]:
    return [
        [words.law_name(law), *(words.count_cell(own[name]) for name in words.QUESTIONS)]
        for law, own in counted.items()
    ]


def _tables(found: Mapping[str, Any]) -> list[list[str]]:
    return [
        [table["name"], *(table[x] or MISSING for x in ("title", "source", "licence"))] for table in found["tables"]
    ]


def _ranking(table: Mapping[str, Any], ranking: Mapping[str, Any]) -> str:
    text = f"## {cell(words.title(table, ranking))}\n\n{words.design(ranking)}.\n\n"
    if table["where"]:
        text += f"Rows where `{table['where']}`.\n\n"
    scored = ranking_rows(ranking)
    if scored:
        text += markdown(("law", *words.QUESTIONS.values()), scored, left=4) + "\n"
    lines = [*words.questions(ranking), *words.reasons(ranking)]
    return text + "".join(f"- {cell(line)}.\n" for line in lines)


def ranking_rows(ranking: Mapping[str, Any]) -> list[list[str]]:
    """The scores of each law that has one, in the order of the first question that ranks it."""
    cells: dict[str, dict[str, str]] = {}
    for one in ranking["questions"]:
        for score in one["scores"]:
            cells.setdefault(score["law"], {})[one["held_out"]] = words.score(score)
    return [
        [words.law_name(law), *(own.get(name, words.NOT_IDENTIFIED) for name in words.QUESTIONS)]
        for law, own in cells.items()
    ]


def render(found: Mapping[str, Any]) -> RenderableType:
    """The rankings with their reasons, for a rich console."""
    from rich.console import Group
    from rich.text import Text

    parts: list[Any] = []
    for table in found["tables"]:
        for ranking in table["rankings"]:
            parts.append(Text(f"{words.title(table, ranking)} ({words.design(ranking)})", style="bold"))
            plain = [[text.replace("*", "") for text in row] for row in ranking_rows(ranking)]
            parts.append(console(("law", *words.QUESTIONS.values()), plain))
            parts += [
                Text(f"- {line.replace('*', '')}") for line in (*words.questions(ranking), *words.reasons(ranking))
            ]
            parts.append(Text(""))
    return Group(*parts)
