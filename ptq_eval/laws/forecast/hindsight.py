"""Had you asked at D/N = 50: what would have been stated of every run in a folder, and what happened, for `fit.json`.

One origin per run instead of all: the backtest that every report can afford.  It takes half a second for the twelve
lines of a run, most of it for the joint law, one of the baselines.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ptq_eval.laws.base import finite_or_none
from ptq_eval.laws.forecast.backtest import LEVEL, What, asked_once, long_enough
from ptq_eval.laws.forecast.baselines import FORECAST
from ptq_eval.laws.forecast.score import scores
from ptq_eval.laws.forecast.series import series_of
from ptq_eval.laws.forecast.turns import Line
from ptq_eval.laws.turning.observed import TurningPoint
from ptq_eval.results.points import Point, Windows, by


def hindsight(
    points: Sequence[Point], windows: Windows, turns: Mapping[Line, TurningPoint], *, seed: int = 0
) -> dict[str, Any]:
    """A JSON object: "level", the forecast's "statements" (see `backtest.Statement`), and the "scores" of all methods.

    turns: what each line shows over all its checkpoints.  Runs with fewer than `backtest.MIN_TO_TEST` checkpoints, and
    separately trained models, have no statements.  The scores are of the loss at the last checkpoint.
    """
    found, rows = [], []
    for run, own in by(points, "trajectory").items():
        if len({p.run for p in own}) > 1:
            continue
        names = {config: str(place) for place, config in enumerate(by(own, "config"))}
        configs = {name: config for config, name in names.items()}
        series = long_enough(series_of(own, windows, names))
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
