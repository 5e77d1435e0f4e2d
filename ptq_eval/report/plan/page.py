"""The files of a plan: `plan.json` with every answer, and up to three figures."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ptq_eval.laws.plan.planner import Plan
from ptq_eval.report.common import figures, files
from ptq_eval.report.plan import budget_figure as plan_budget_figure
from ptq_eval.report.plan import contour_figure as plan_contour_figure
from ptq_eval.report.plan import loss_figure as plan_loss_figure
from ptq_eval.report.plan import words as plan_words

if TYPE_CHECKING:
    from rich.console import RenderableType

VERSION = 1
FIGURES = {
    "loss_vs_tokens": plan_loss_figure,
    "loss_over_bits": plan_contour_figure,
    "precision_vs_budget": plan_budget_figure,
}


def write(out: str | Path, plan: Plan) -> list[Path]:
    """Write `plan.json` and, in `figures/`, each figure as PNG, PDF and CSV; the paths.  Raises OutputFullError."""
    out, source = Path(out), plan.source
    constants = {name: source.estimate(values).to_dict() for name, values in source.constants.items()}
    about = {"name": source.name, "note": source.note, "laws": [*source.laws], "constants": constants}
    content = {
        "version": VERSION,
        "source": {**about, "fitted_range": dict(source.ranges), "intervals": source.uncertainty},
        "question": vars(plan.question),
        "answers": [answer.to_dict() for answer in plan.answers],
        "sentences": plan_words.sentences(plan),
        "cautions": plan_words.cautions(plan),
    }
    empty = {
        "precision_vs_budget": bool(plan.planner.lacking("precision")[0]),
        "loss_over_bits": plan.planner.formulas.law is not None and not plan.planner.formulas.by_bits,
    }
    drawn = {name: figure for name, figure in FIGURES.items() if not empty.get(name)}
    for name in FIGURES.keys() - drawn.keys():
        for old in (out / "figures").glob(f"{name}.*"):  # of an earlier plan
            old.unlink()
    return [files.write_json(out / "plan.json", content), *figures.write(out / "figures", plan, drawn)]


def render(plan: Plan) -> RenderableType:
    """The plan for a rich console."""
    from ptq_eval.report.plan.tables import PlanReport

    return PlanReport(plan)
