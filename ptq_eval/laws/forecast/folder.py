"""The forecasts of a folder, for `fit.json`: D_crit of every line from all its checkpoints, and from the first ones.

Only checkpoints of one training run have a forecast.  Separately trained models of one size are no run: nothing says
how the next of them would differ from the last.  That a turn has happened is claimed by its test alone
(`turning.observed`), so an upper end inside the range is open here.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ptq_eval.laws.forecast.backtest import What, asked_once, long_enough
from ptq_eval.laws.forecast.baselines import FORECAST
from ptq_eval.laws.forecast.forecast import draw, learn, most_hidden, says_something, turn, untested
from ptq_eval.laws.forecast.score import scores
from ptq_eval.laws.forecast.series import MIN_CHECKPOINTS, Series, series_of
from ptq_eval.laws.quality import finite_or_none
from ptq_eval.laws.turning.observed import TurningPoint
from ptq_eval.laws.turning.verdict import LEVEL, Forecast
from ptq_eval.results.points import Config, Point, Windows, by

Line = tuple[Config, str, float]
"""A configuration, a trajectory and a bit-width: one curve over D."""


def forecasts(points: Sequence[Point], windows: Windows, *, seed: int = 0) -> dict[Line, Forecast]:
    """The forecast of every line with at least `series.MIN_CHECKPOINTS`, from all of them; its draws are by `seed`."""
    found: dict[Line, Forecast] = {}
    for run, configs, every in _runs(points, windows):
        series = [s for s in every if len(s.tokens) >= MIN_CHECKPOINTS]
        learned = learn(series)
        for s in series:
            paths = draw(s, series, learned=learned, seed=seed)
            said = untested(turn(paths, LEVEL), s.tokens[-1])
            low = said.low if says_something(said, s) else math.nan
            found[configs[s.quantizer], run, s.bits] = Forecast(
                low,
                said.value,
                said.high,
                LEVEL,
                len(s.tokens),
                paths.weights,
                math.nan if s.significant else most_hidden(s),
            )
    return found


def hindsight(
    points: Sequence[Point], windows: Windows, turns: Mapping[Line, TurningPoint], *, seed: int = 0
) -> dict[str, Any]:
    """Had you asked at D/N = 50: what would have been stated of every run, and what happened.

    One origin per run instead of all: the backtest that every report can afford.  It takes half a second for the twelve
    lines of a run, most of it for the joint law, one of the baselines.

    turns: what each line shows over all its checkpoints.  Returns a JSON object: "level", the forecast's "statements"
    (see `backtest.Statement`), and the "scores" of all methods, of the loss at the last checkpoint.  Runs with fewer
    than `backtest.MIN_TO_TEST` checkpoints have no statements.
    """
    found, rows = [], []
    for run, configs, every in _runs(points, windows):
        series = long_enough(every)
        if not series:
            continue
        lines = {id(s): turns[configs[s.quantizer], run, s.bits] for s in series}
        for one in (stated := asked_once(series, lines, seed=seed)):
            if one.method == FORECAST:
                values = {name: finite_or_none(v) if isinstance(v, float) else v for name, v in one.to_dict().items()}
                rows.append({**values, **configs[one.quantizer].to_dict(), "params": series[0].params})
        found += stated
    of_loss = [score for score in scores(found) if (score.what, score.bits, score.ahead) == (What.LOSS, None, None)]
    return {"level": LEVEL, "statements": rows, "scores": [score.to_dict() for score in of_loss]}


def _runs(points: Sequence[Point], windows: Windows) -> Iterator[tuple[str, dict[str, Config], list[Series]]]:
    """Every trajectory of one training run: its name, its configurations by the name they have in its series, these."""
    for run, own in by(points, "trajectory").items():
        if len({p.run for p in own}) == 1:
            names = {config: str(place) for place, config in enumerate(by(own, "config"))}
            yield run, {name: config for config, name in names.items()}, series_of(own, windows, names)
