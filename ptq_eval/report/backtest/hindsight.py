"""The section of `report.md` on what the page would have said at D/N = 50, and what happened; its fan chart.

The statements and scores are in the fit ("hindsight", see `laws.forecast.folder`).  The fan chart is of the largest
run among them, which is the nearest to one that a team would plan, and of its first quantizer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

from ptq_eval.laws.forecast.backtest import MIN_TO_TEST, NEAR, RATIO, What, long_enough
from ptq_eval.laws.forecast.baselines import FORECAST
from ptq_eval.laws.forecast.forecast import FARTHEST
from ptq_eval.laws.forecast.series import series_of
from ptq_eval.report.backtest import figure
from ptq_eval.report.common import tables
from ptq_eval.report.common.data import Frame, Study
from ptq_eval.report.common.numbers import count, number, percent, ratio, short
from ptq_eval.report.common.words import listed, plural

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Row = Mapping[str, Any]
_LINE = ("quantizer", "options", "group_size", "symmetric", "calibration", "format", "bits")
_HEADER = (
    "quantizer", "bits", "D_crit, forecast", "observed", "verdict", "last loss, forecast", "measured", "verdict",
)  # fmt: skip
METHOD_NAMES = {
    FORECAST: "forecast",
    "staying": "δ stays as it is",
    "joint": "joint law (Kumar et al.)",
    "power": "power of D per bit-width",
}
"""Methods as all pages on backtests name them."""


def section(study: Study) -> str:
    """The table of every run with enough checkpoints, a sentence that sums it up, and a fan chart; or why there is
    none."""
    found = study.fit.get("hindsight") or {"statements": ()}
    rows = found["statements"]
    if not rows:
        return _without(study)
    text = (
        f"At the checkpoint nearest D/N = {RATIO:g}, with the checkpoints up to it alone, the forecast would have "
        f"been this. Intervals are of {100 * found['level']:g} %.\n"
    )
    for run, own in groupby(rows, key=lambda row: row["run"]):
        text += _of_run(study, run, list(own))
    text += f"\n{_summary(rows, found['scores'])}\n"
    text += f"\n![Loss after quantization, forecast and measured](figures/{name(study)}.png)\n"
    return text + "\nIntervals that are much higher than what was measured are cut off.\n"


def _without(study: Study) -> str:
    checkpoints = study.measured.groupby("run")["tokens"].nunique()
    most = 0 if checkpoints.empty else int(checkpoints.max())
    if most >= MIN_TO_TEST:
        return "Not asked when this fit was made; `ptq-eval report OUT` makes it again.\n"
    return (
        f"Not asked: a run needs {MIN_TO_TEST} checkpoints with known D, so that enough are left to hold a forecast "
        f"against; the longest here has {most}.\n"
    )


def _of_run(study: Study, run: str, own: Sequence[Row]) -> str:
    params, losses = number(own[0]["params"]), [row for row in own if row["what"] == What.LOSS]
    origin, last = number(own[0]["origin_tokens"]), max(number(row["target_tokens"]) for row in losses)
    far = f", beyond the {FARTHEST:g} times up to which intervals are checked"
    text = (
        f"\n**{tables.cell(study.title(run))}**, asked at D = {count(origin)} "
        f"(D/N = {ratio(origin / params)}); the last loss is at {short(round(last / origin, 1))} times that D"
        f"{far if last > FARTHEST * NEAR * origin else ''}.\n\n"
    )
    turns = {_line(row): row for row in own if row["what"] == What.TURN}
    printed = [row for row in losses if study.label_of(row) in study.panels]
    text += tables.markdown(_HEADER, [_cells(study, row, turns[_line(row)]) for row in printed], left=1)
    more = len(losses) - len(printed)
    return f"{text}\n{plural(more, 'more line')} in `fit.json`.\n" if more else text


def _line(row: Row) -> tuple[Any, ...]:
    return tuple(row.get(name) for name in _LINE)


def _cells(study: Study, loss: Row, turn: Row) -> list[str]:
    stated = f"{number(loss['value']):.3f} [{number(loss['low']):.3f} to {number(loss['high']):.3f}]"
    happened = count(turn["truth"]) if turn["truth"] else "no turn"
    verdict = "**refuted**" if turn["refuted"] else "not refuted" if turn["decisive"] else "not decided"
    verdict = verdict if turn["made"] or turn["refuted"] else "says nothing"
    inside = "**outside**" if loss["refuted"] else "inside" if loss["made"] else "inside, says little"
    measured = f"{number(loss['truth']):.3f}"
    low, value, high = (math.inf if turn[end] is None else turn[end] for end in ("low", "value", "high"))
    said = turn_text(low, value, high, turn["level"])
    return [study.label_of(loss), f"{loss['bits']:g}", said, happened, verdict, stated, measured, inside]


def _summary(rows: Sequence[Row], scores: Sequence[Row]) -> str:
    by_method = {score["method"]: score for score in scores}
    own = by_method[FORECAST]
    inside = round((1 - own["refuted"]) * own["n"])
    others = [
        f"{short(score['score'])} ({METHOD_NAMES.get(method, method)})"
        for method, score in by_method.items()
        if method != FORECAST
    ]
    turns = [row for row in rows if row["what"] == What.TURN]
    runs = len({row["run"] for row in rows})
    made = [row for row in turns if row["made"]]
    decided, refuted = (sum(row[name] for row in made) for name in ("decisive", "refuted"))
    wide = sum(row["what"] == What.LOSS and not row["made"] and not row["refuted"] for row in rows)
    little = f" {wide} of these intervals say little: they are wider than the range of losses until then." * (wide > 0)
    return (
        f"{inside} of {plural(own['n'], 'last loss', 'last losses')} ({percent(inside / own['n'])}) are inside their "
        f"intervals, whose mean width is {short(own['width'])} in log loss.{little} Their mean interval "
        f"score (lower is better) is {short(own['score'])}; the baselines have {listed(others)}. Of "
        f"{plural(len(turns), 'statement')} of D_crit, {len(made)} have an upper end or exclude the D asked at; later "
        f"checkpoints can decide {decided} of these and refute {refuted or 'none'}. The lines of a run share its "
        "checkpoints, so these are no more than "
        f"{plural(runs, 'independent case')}."
    )


def shown(study: Study) -> str | None:
    """The run whose fan chart is drawn; None without statements."""
    rows = (study.fit.get("hindsight") or {}).get("statements") or ()
    return max(rows, key=lambda row: number(row["params"]))["run"] if rows else None


def name(study: Study) -> str:
    """The file of the fan chart, without its ending."""
    return figure.name(str(shown(study))).replace("fan", "asked", 1)


def data(study: Study) -> Frame:
    """The table of the fan chart."""
    run = shown(study)
    own = [p for p in study.points if p.trajectory == run]
    labels = {p.config: study.label_of(p.config.to_dict()) for p in own}
    series = series_of(own, labels=labels)
    return figure.data(long_enough(series), study.labels[:1])


def draw(table: Frame) -> Figure:
    """The fan chart."""
    return figure.draw(table)


def turn_text(low: float, value: float, high: float, level: float) -> str:
    """D_crit as a statement has it, in tokens: an interval, or "not before 40M"; what is open is not finite."""
    if not math.isfinite(high):
        return f"not before {count(low)} ({50 + 50 * level:g} %)"
    return f"{count(value) if math.isfinite(value) else 'open'} [{count(low)} to {count(high)}]"
