"""The files of a plan: `plan.json` with every answer, and up to three figures."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ptq_eval.laws.plan.answers import Plan
from ptq_eval.laws.plan.question import Answer
from ptq_eval.report.common import figures, files
from ptq_eval.report.plan import budget_figure, contour_figure, loss_figure, words
from ptq_eval.report.plan.reasons import why_not

if TYPE_CHECKING:
    from rich.console import RenderableType

VERSION = 1
FIGURES = {
    "loss_vs_tokens": loss_figure,
    "loss_over_bits": contour_figure,
    "precision_vs_budget": budget_figure,
}


def write(out: str | Path, plan: Plan) -> list[Path]:
    """Write `plan.json` and, in `figures/`, each figure as PNG, PDF and CSV; the paths.  Raises OutputFullError."""
    out, source = Path(out), plan.source
    constants = {name: source.estimate(values).to_dict() for name, values in source.constants.items()}
    about = {"name": source.name, "note": source.note, "laws": [*source.laws], "constants": constants}
    content = {
        "version": VERSION,
        "source": {**about, "fitted_range": dict(source.ranges), "intervals": words.uncertainty(source)},
        "question": vars(plan.question),
        "answers": [_answer(plan, answer) for answer in plan.answers],
        "endings": plan.endings.to_dict(),
        "sentences": words.sentences(plan),
        "cautions": words.cautions(plan),
    }
    empty = {
        "precision_vs_budget": bool(plan.planner.lacking("precision")),
        "loss_over_bits": plan.planner.formulas.law is not None and not plan.planner.formulas.by_bits,
    }
    drawn = {name: figure for name, figure in FIGURES.items() if not empty.get(name)}
    for name in FIGURES.keys() - drawn.keys():
        for old in (out / "figures").glob(f"{name}.*"):  # of an earlier plan
            old.unlink()
    return [files.write_json(out / "plan.json", content), *figures.write(out / "figures", plan, drawn)]


def _answer(plan: Plan, answer: Answer) -> dict[str, Any]:
    """An answer as JSON, with its label and its reasons in words beside their values."""
    text = {"label": words.label(plan, answer), "why_not": why_not(answer)}
    return {**answer.to_dict(), **text}


def render(plan: Plan) -> RenderableType:
    """The plan for a rich console."""
    from ptq_eval.report.plan.tables import PlanReport

    return PlanReport(plan)
