"""D_crit of every line of a folder, forecast from the checkpoints of its run.

A line has a forecast if it has at least `series.MIN_CHECKPOINTS` checkpoints of one training run.  Separately trained
models of one size are no run: nothing says how the next of them would differ from the last.  That a turn has happened
is claimed by its test alone (`turning.observed`), so an upper end inside the range is open here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from ptq_eval.laws.forecast.forecast import draw, learn, says_something, turn, unless_tested
from ptq_eval.laws.forecast.series import MIN_CHECKPOINTS, series_of
from ptq_eval.laws.turning.verdict import LEVEL, Forecast
from ptq_eval.results.points import Config, Point, Windows, by

Line = tuple[Config, str, float]
"""A configuration, a trajectory and a bit-width: one curve over D."""


def forecasts(points: Sequence[Point], windows: Windows, *, seed: int = 0) -> dict[Line, Forecast]:
    """The forecast of every line that can have one, from all its points; the draws are those of `seed`."""
    found: dict[Line, Forecast] = {}
    for run, own in by(points, "trajectory").items():
        if len({p.run for p in own}) > 1:
            continue
        names = {config: str(place) for place, config in enumerate(by(own, "config"))}
        configs = {name: config for config, name in names.items()}
        series = [s for s in series_of(own, windows, names) if len(s.tokens) >= MIN_CHECKPOINTS]
        learned = learn(series)
        for s in series:
            paths = draw(s, series, learned=learned, seed=seed)
            said = unless_tested(turn(paths, LEVEL), s.tokens[-1], False)
            low = said.low if says_something(said, s) else math.nan
            found[configs[s.quantizer], run, s.bits] = Forecast(
                low, said.value, said.high, LEVEL, len(s.tokens), paths.weights
            )
    return found
