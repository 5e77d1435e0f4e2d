"""A plan in a terminal: what serving costs, the optimum under the budget, both in words, and what to beware of."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from rich import box
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from ptq_eval.laws.plan.answers import Plan
from ptq_eval.laws.plan.question import Answer
from ptq_eval.report.common.numbers import MISSING, count, short
from ptq_eval.report.plan import endings
from ptq_eval.report.plan.words import beyond, bits, cautions, farther, interval, loss, percent, sentences, size

_SERVING = ("N", "D_crit", "D_crit/N", "loss before", "added", "after", "beyond the data")
_OPTIMUM = ("served at", "trained at", "N", "D", "D/N", "weights", "loss", "budget spent", "beyond the data")


class PlanReport:
    """A rich renderable of a plan."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Constants, serving, optimum, words, cautions."""
        plan = self.plan
        yield Text.assemble(("Constants: ", "bold"), plan.source.name, ". ", plan.source.note)
        yield _serving(plan)
        yield from _optima(plan)
        if plan.endings.choices:
            yield _endings(plan)
        for sentence in sentences(plan):
            yield Text(sentence)
        for caution in cautions(plan):
            yield Text.assemble(("note: ", "bold yellow"), caution)


def _serving(plan: Plan) -> Table:
    given = plan.question.tokens
    at = "" if given is None else f", D = {count(given)}"
    title = Text.assemble(_way(plan), at)
    drawn = _table(title, "served at", *(_SERVING if given is not None else (*_SERVING[:3], _SERVING[-1])))
    losses = {answer.at["bits"]: answer for answer in plan.of("loss")}
    for answer in plan.of("critical_tokens"):
        serve, values = answer.at["bits"], answer.values
        turn = interval(values["D"]) + " !" * farther(answer) if "D" in values else MISSING
        cells = [answer.label, count(answer.at.get("N")), turn]
        cells.append(interval(values["tokens_per_param"], short) if values else MISSING)
        if given is not None:
            found, far = losses[serve].values, losses[serve].beyond
            answer = replace(answer, beyond={**answer.beyond, **{axis: far[axis] for axis in ("P",) if axis in far}})
            cells += [loss(found[name]) if name in found else MISSING for name in ("before", "damage", "after")]
        drawn.add_row(*map(Text, [*cells, beyond(answer)]))
    return drawn


def _way(plan: Plan) -> str:
    """How the served model came about under the law, with the group size where that counts."""
    formulas, group = plan.planner.formulas, plan.source.serving.group_size
    ways = {"sun": "Trained and served in one format", "chen": "Trained to be quantized"}
    name = "" if formulas.law is None else formulas.law.name
    way = ways.get(name, "Trained at 16 bits, then quantized")
    return way if group is None else f"{way}, {group:g} numbers per scale"


def _optima(plan: Plan) -> Iterator[RenderableType]:
    answers = [answer for answer in plan.of("optimum") if answer.values]
    for setting in dict.fromkeys(answer.setting for answer in answers):
        mine = [answer for answer in answers if answer.setting == setting]
        drawn = _table(Text.assemble("Least loss, ", (_budget(mine[0]), "bold")), *_OPTIMUM)
        for answer in mine:
            drawn.add_row(*map(Text, _optimum_cells(answer, plan)))
        yield drawn


def _budget(answer: Answer) -> str:
    at = answer.at
    words = [f"C = {short(at['budget'])} FLOPs at 16 bits"]
    if at.get("served_tokens"):
        words.append(f"{count(at['served_tokens'])} tokens served from it")
    if "memory" in at:
        words.append(f"weights of at most {size(at['memory'])}")
    words.append(f"N = {count(at['N'])}" if "N" in at else "N, D and P free")
    return ", ".join(words)


def _optimum_cells(answer: Answer, plan: Plan) -> list[str]:
    values, serve = answer.values, answer.at.get("serve_bits")
    given = answer.at.get("train_bits")
    trained = f"{given:g}" if given is not None else f"{interval(values['P'], bits)} (best)"
    held = values["P"].value if serve is None else serve
    return [
        "as trained" if serve is None else plan.planner.label(serve),
        trained,
        interval(values["N"]),
        interval(values["D"]),
        short(values["D"].value / values["N"].value),
        size(values["N"].value * held / 8),
        "≤ " * answer.at_most + loss(values["loss"]),
        percent(values["spent"]) + ", stops at D_crit" * answer.stops_at_critical,
        beyond(answer),
    ]


def _endings(plan: Plan) -> Table:
    title = Text("Ways to end the run: change in the loss after quantization against the trunk at the same D")
    drawn = _table(title, "served at", *endings.HEADER)
    for row in endings.rows(plan):
        drawn.add_row(*map(Text, row))
    return drawn


def _table(title: Text, *columns: str) -> Table:
    drawn = Table(title=title, title_justify="left", title_style="", box=box.SIMPLE_HEAD)
    for name in columns:
        drawn.add_column(Text(name), justify="right")
    return drawn
