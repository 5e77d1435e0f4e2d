"""What `ptq-eval backtest` writes: one row per statement, a page that sums them up, and a fan chart of every run.

A backtest of the 24 lines of two runs takes about 16 seconds, most of them for the joint law's refits, so `ptq-eval
run` asks at one checkpoint of each run only (`hindsight`): the section of `report.md` adds the sums of what `ptq-eval
backtest` made, if that is of the same measurements.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from ptq_eval.laws.forecast.backtest import Ahead, Statement, What, asked_at
from ptq_eval.laws.forecast.baselines import FORECAST
from ptq_eval.laws.forecast.score import Score, best_baseline, scores, total
from ptq_eval.laws.forecast.series import Series
from ptq_eval.report.backtest import figure, hindsight
from ptq_eval.report.backtest.hindsight import METHOD_NAMES, turn_text
from ptq_eval.report.common import figures, files, tables
from ptq_eval.report.common.data import Study, labels
from ptq_eval.report.common.numbers import MISSING, count, number, percent, short
from ptq_eval.results.points import Config, by

if TYPE_CHECKING:
    from rich.console import RenderableType

    from ptq_eval.results.load import Results

NAME = "backtest.json"
TITLE = "Had you asked earlier"
VERSION = 5
"""Raised whenever the content of `backtest.json` changes its meaning."""

TARGETS = {None: "all", Ahead.NEXT: "next checkpoint", Ahead.TWICE: "2× D", Ahead.FOUR_TIMES: "4× D"}
HEADINGS = {
    What.LOSS: "Loss after quantization",
    What.DELTA: "δ",
    What.TURN: "Critical number of tokens, D_crit",
}
UNITS = {What.LOSS: "log loss", What.DELTA: "nats", What.TURN: "log D"}
_HEADER = ("about", "method", "n", "stated", "inside", "width", "interval score")
ANSWER_HEADER = ("run", "quantizer", "bits", "stated at D", "D_crit stated", "observed", "verdict")

WORDS = """\
At every checkpoint from the fourth on, only the checkpoints up to it were used, and what they say of later ones was
held against what was measured: the loss after quantization and δ at the next checkpoint and at those nearest twice and
four times that D, and D_crit. *Inside* is the share of measurements within the interval; the score is the interval
score (lower is better). Statements about a checkpoint by which the learning rate did something else than the forecast
assumes are not counted. A statement of D_crit can be refuted where later checkpoints decide (*decisive* cases); its
width and score, over all cases, are those of what a method says about which checkpoint of the run has the least loss.
How the forecast is made, and what each column counts, is described in docs/turns-and-forecasts.md.
"""


@dataclass(frozen=True)
class Backtest:
    """Everything that a page needs: the series that were tested, the statements about them, and the settings."""

    series: Sequence[Series]
    statements: Sequence[Statement]
    settings: Mapping[str, Any]

    @cached_property
    def scores(self) -> list[Score]:
        """The statements summed up."""
        return scores(self.statements)

    @property
    def level(self) -> str:
        """The level of the intervals, as "90 %"."""
        return f"{100 * self.settings['level']:g} %"


def labels_of(results: Results) -> dict[Config, str]:
    """The name that a report gives to each configuration."""
    names = dict(zip(results.frame["key"], labels(results.frame)))
    return {point.config: str(names[point.key]) for point in results.points}


def write(out: Path, test: Backtest) -> list[Path]:
    """Write `backtest.json`, `backtest.md` and the fan charts below `out`; the paths.  Raises OutputFullError."""
    drawn = _figures(test)
    record = {
        "version": VERSION,
        **test.settings,
        "figures": list(drawn),
        "statements": [statement.to_dict() for statement in test.statements],
        "summary": [score.to_dict() for score in test.scores],
    }
    return [
        files.write_json(out / NAME, record),
        *figures.write(out / "figures", test, drawn),
        files.write_text(out / "backtest.md", document(test, list(drawn))),
    ]


def _figures(test: Backtest) -> dict[str, Any]:
    """One fan chart per run, by file name, as `figures.write` expects them."""
    found: dict[str, Any] = {}
    for run, own in by(test.series, "run").items():
        name = figure.name(run)
        while name in found:
            name += "_"
        found[name] = SimpleNamespace(data=lambda _, own=own: figure.data(own), draw=figure.draw)
    return found


def document(test: Backtest, figure_names: Sequence[str] = ()) -> str:
    """The page as Markdown."""
    text = f"# Forecasts held against what happened\n\n{WORDS}\n{findings(test)}\n\n"
    text += "## Had you asked then\n\n" + tables.markdown(ANSWER_HEADER, answer_rows(test), left=2)
    for name in figure_names:
        text += f"\n![Loss after quantization, forecast and measured](figures/{name}.png)\n"
    for what in What:
        text += f"\n## {HEADINGS[what]}\n\n"
        text += tables.markdown(score_header(test, what), score_rows(test, what), left=3)
    return text


def render(test: Backtest) -> RenderableType:
    """Findings, the answers and the scores as tables for a rich console."""
    from rich import box
    from rich.console import Group
    from rich.table import Column, Table

    parts: list[Any] = [findings(test)]
    shown = [(ANSWER_HEADER, answer_rows(test))]
    shown += [(score_header(test, what), [r for r in score_rows(test, what) if r[1] == "all"]) for what in What]
    for heading, (header, body) in zip(("Had you asked then", *HEADINGS.values()), shown):
        table = Table(*(Column(n) for n in header), box=box.SIMPLE, padding=(0, 1, 0, 0), title=heading)
        table.title_justify = "left"
        for row in body:
            table.add_row(*row)
        parts.append(table)
    return Group(*parts)


def findings(test: Backtest) -> str:
    """The main result in a few sentences."""
    found, loss, turns = [], total(test.scores, What.LOSS), total(test.scores, What.TURN)
    if loss:
        found.append(
            f"{_percent(loss.coverage)} of {loss.n} later measurements of the loss after quantization are inside their "
            f"{test.level} intervals."
        )
    best = best_baseline(test.scores, What.LOSS)
    if loss and best:
        found.append(
            f"Their mean interval score is {short(loss.score)}; that of the best baseline "
            f"({METHOD_NAMES.get(best.method, best.method)}) is {short(best.score)}, and lower is better."
        )
    if turns and turns.n:
        cases = "case" if turns.n == 1 else "cases"
        found.append(
            f"In {turns.n} decisive {cases}, later checkpoints refuted {_percent(turns.refuted)} of the statements of "
            "D_crit."
        )
    else:
        found.append("No case was decisive for D_crit.")
    return " ".join(found)


def answer_rows(test: Backtest) -> list[list[str]]:
    """D_crit as stated at the checkpoint nearest D/N = 50, and what was observed, per run, quantizer and bit-width."""
    found = []
    for own in by(test.series, "run").values():
        origin = asked_at(own)
        for s in test.statements:
            if (s.run, s.origin_tokens, s.what, s.method) == (own[0].run, origin, What.TURN, FORECAST):
                happened = count(s.truth) if math.isfinite(s.truth) else "no turn"
                verdict = "refuted" if s.refuted else "not refuted" if s.decisive else "not decided"
                stated = f"{count(origin)} (D/N {short(origin / own[0].params)})"
                found.append(
                    [
                        s.run,
                        s.quantizer,
                        f"{s.bits:g}",
                        stated,
                        turn_text(s.low, s.value, s.high, s.level),
                        happened,
                        verdict,
                    ]
                )
    return found


def score_header(test: Backtest, what: What) -> tuple[str, ...]:
    """The columns of `score_rows`."""
    unit = UNITS[what]
    if what is What.TURN:
        return ("method", "bits", "decisive", "stated", "refuted", f"width ({unit})", f"score ({unit})")
    return ("method", "bits", "target", "n", f"inside {test.level}", f"width ({unit})", f"score ({unit})")


def score_rows(test: Backtest, what: What) -> list[list[str]]:
    """One row per bit-width, distance and method."""
    found = []
    for s in test.scores:
        if s.what is not what:
            continue
        head = [METHOD_NAMES.get(s.method, s.method), "all" if s.bits is None else f"{s.bits:g}"]
        middle = [TARGETS[s.ahead], f"{s.n}", _percent(s.coverage)]
        if what is What.TURN:
            middle = [f"{s.n}", _percent(s.made), _percent(s.refuted)]
        found.append([*head, *middle, short(s.width), short(s.score)])
    return found


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %" if share == share else MISSING


def read(out: Path) -> dict[str, Any] | None:
    """The backtest below `out`; None without one.  Raises OutputMismatchError for a damaged file."""
    return files.read_json(out / NAME, ("records", "summary", "level"), "ptq-eval backtest OUT")


def section(found: Mapping[str, Any] | None, study: Study) -> str:
    """What would have been said at one checkpoint of each run, and the backtest from all of them, if there is one."""
    text = hindsight.section(study)
    if not hindsight.shown(study):
        return text
    if found is None:
        return (
            text + "\n`ptq-eval backtest OUT` asks at every checkpoint from the fourth on, and adds the result here.\n"
        )
    return f"{text}\n### At every checkpoint\n\n{_summary(found, study.digest)}"


def _summary(found: Mapping[str, Any], records: str) -> str:
    """One row per method for the loss and D_crit, all bit-widths and distances together.

    records: the digest of the page's measurements.
    """
    maker = "another version of ptq-eval made the backtest" if found.get("version") != VERSION else ""
    others = "the backtest was made of other measurements than this page" if found["records"] != records else ""
    if maker or others:
        return f"**Out of date: {maker or others}.** `ptq-eval backtest OUT` makes it again.\n"
    level = f"{100 * number(found['level']):g} %"
    text = (
        "At every checkpoint from the fourth on, what the checkpoints up to it say of later ones was held against what "
        f"was measured. *Inside*: the share of statements that later checkpoints did not refute, of {level} intervals; "
        "the interval score is better the lower it is; for D_crit it is that of which checkpoint has the least loss. "
        "By bit-width and distance in `backtest.md`.\n\n"
    )
    rows = []
    for what in (What.LOSS, What.TURN):
        for one in found["summary"]:
            if (one["what"], one["bits"], one["ahead"]) == (what, None, None):
                numbers = [percent(one["made"]), percent(one["coverage"]), short(one["width"]), short(one["score"])]
                about = f"{HEADINGS[what]} ({UNITS[what]})"
                rows.append([about, METHOD_NAMES.get(one["method"], one["method"]), f"{one['n']}", *numbers])
    return text + tables.markdown(_HEADER, rows, left=2)
