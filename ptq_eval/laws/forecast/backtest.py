"""Had you asked earlier: what would have been stated at each checkpoint of a run, and what happened.

Every checkpoint from the fourth on is an origin, from which only the checkpoints up to it are used.  Stated are the
loss after quantization and delta at the next checkpoint and at those nearest twice and four times the D of the origin,
and D_crit.  The truth of D_crit is the turn observed over the whole run, with its interval: a minimum inside the range
after which the loss rises significantly (`turning.significance`, with control over the lines of the run).

A statement of a loss or a delta is refuted by a measurement outside its interval.  One of D_crit is refuted by an
observed turn whose interval lies outside of it, or, where its upper end is finite, by a later checkpoint beyond that
end with a significantly lower loss than all up to it.  A case is decisive if the run answers it: a turn is observed, or
a checkpoint after the origin has a significantly lower loss than all up to the origin, so that D_crit is known to be
larger than the origin's D.  A statement of D_crit is made if its upper end is finite or its lower end at or beyond the
origin's D: a lower end at an earlier checkpoint, with an open upper one, leaves open whether to train on.  Every
statement can be refuted, whether or not it counts as made.

A forecast assumes that the learning rate stays as it is or follows the schedule that the checkpoints show
(`decay.later_phase`).  Where the run did otherwise by the target, the statement was about another run: it is kept, not
`as_assumed`, and counted apart.

The score is the interval score of Gneiting and Raftery (2007, eq. 43): width, and 2/(1 − level) times the distance to
a truth outside; of the logarithm of the loss, of delta itself, and of log D.  No run shows D_crit beyond its last
checkpoint, and whether a case is decisive depends on what happened: scored over these alone, a method that never
predicts a turn would win wherever most cases are decided by a falling loss (Lerch et al. 2017, the forecaster's
dilemma).  So the forecasts of D_crit are scored, at every origin, by something that every run shows: which of its
checkpoints has the least loss after quantization.  All methods state it from the same draws of what checkpoints would
measure.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

import numpy as np

from ptq_eval.laws.forecast.baselines import FORECAST, METHODS, Method
from ptq_eval.laws.forecast.decay import later_phase
from ptq_eval.laws.forecast.forecast import HORIZON, Paths, Turn, excludes_some, grid, turn, untested
from ptq_eval.laws.forecast.series import MIN_CHECKPOINTS, Series
from ptq_eval.laws.turning.observed import TurningPoint, checkpoint_scatter, controlled, turning_point
from ptq_eval.results.points import Curve, by
from ptq_eval.sampling import SIGNIFICANT

LEVEL = 0.9
MIN_TO_TEST = 8
"""Checkpoints that a series has at least."""
NEAR = math.sqrt(2)
"""A checkpoint counts as at twice or four times D if it is no farther from it than this factor."""
RATIO = 50.0
"""The D/N at which a reader is shown what would have been stated."""
SAME_PHASE = 0.1
"""The most by which S may differ from what was assumed."""
INNER = 0.5
"""The level of the inner intervals."""
_LEAST_LOSS = 1e-3
"""Nats per token; a lower end below it counts as this in the score's logarithm."""


class What(StrEnum):
    """What a statement is about."""

    LOSS = "loss_q"
    DELTA = "delta"
    TURN = "critical_tokens"


class Ahead(StrEnum):
    """Which later checkpoint a statement is about; LAST is the run's last one, OPEN is for D_crit."""

    NEXT = "next"
    TWICE = "2x"
    FOUR_TIMES = "4x"
    LAST = "last"
    OPEN = "open"


@dataclass(frozen=True)
class Statement:
    """What one method would have stated at one origin, and what happened.

    D in tokens, losses and deltas in nats per token.  `target_tokens` is NaN for D_crit, whose `truth` is NaN where no
    turn was observed, and whose `value` and `high` are infinite where open.  `decisive` as explained above (always true
    of losses and deltas), and `made` (of a loss: its interval is no wider than the range of losses up to the origin;
    always true of deltas).  `width` and `score` in the units of the score, of a statement of D_crit those of the
    checkpoint with the least loss.  `as_assumed`: whether the learning rate did what was assumed; `half`: whether the
    truth is inside the interval of level `INNER` (false of D_crit).
    """

    run: str
    quantizer: str
    bits: float
    origin_tokens: float
    what: What
    target_tokens: float
    low: float
    value: float
    high: float
    level: float
    truth: float
    refuted: bool
    method: str
    ahead: Ahead
    made: bool
    decisive: bool
    width: float
    score: float
    as_assumed: bool = True
    half: bool = False

    def to_dict(self) -> dict[str, Any]:
        """A JSON object but for infinite numbers."""
        return asdict(self)


@dataclass(frozen=True)
class _Truth:
    """The observed turn of a whole run; NaN where there is none.  `least` is what counts as a significant fall."""

    place: float
    low: float
    high: float
    least: float


def interval_score(low: float, high: float, truth: float, level: float) -> float:
    """Gneiting and Raftery (2007), eq. 43."""
    return high - low + 2 / (1 - level) * max(low - truth, truth - high, 0.0)


def backtest(
    series: Sequence[Series],
    *,
    level: float = LEVEL,
    min_checkpoints: int = MIN_TO_TEST,
    horizon: float = HORIZON,
    seed: int = 0,
    methods: Mapping[str, Method] = METHODS,
    progress: Callable[[float, float], None] = lambda done, total: None,
) -> list[Statement]:
    """Every statement of every method about the series with at least `min_checkpoints` checkpoints, in their order.

    progress(done, total) counts origins.
    """
    runs = by(long_enough(series, min_checkpoints), "run")
    total = sum(len(origins(own)) for own in runs.values())
    found, done = [], 0
    for own in runs.values():
        truths = _truths(own, level, seed)
        for origin in origins(own):
            for s, name, paths in _asked(own, origin, horizon, seed, methods):
                found += _statements(s, origin, name, paths, level, truths[id(s)])
            done += 1
            progress(done, total)
    return found


def asked_once(
    own: Sequence[Series],
    turns: Mapping[int, TurningPoint],
    *,
    level: float = LEVEL,
    seed: int = 0,
    methods: Mapping[str, Method] = METHODS,
) -> list[Statement]:
    """What would have been stated of one run at D/N = `RATIO`: D_crit, and the loss at the last checkpoint.

    own: its series that are `long_enough`; turns: what each shows over the whole run, by its id, with control over all
    lines that are read together.
    """
    origin, found = asked_at(own), []
    for s, name, paths in _asked(own, origin, HORIZON, seed, methods):
        truth, last = _truth(s, turns[id(s)]), len(s.tokens) - 1
        found.append(_measured_statement(s, origin, name, paths, level, What.LOSS, Ahead.LAST, last))
        found.append(_turn_statement(s, origin, name, paths, level, truth))
    return found


def _asked(
    own: Sequence[Series], origin: float, horizon: float, seed: int, methods: Mapping[str, Method]
) -> Iterator[tuple[Series, str, Paths]]:
    """(whole series, method, its paths from the checkpoints up to the origin) of every series of a run."""
    siblings = [part for s in own if len((part := s.until(origin)).tokens) >= MIN_CHECKPOINTS]
    for whole in by(own, "quantizer").values():
        whole = [s for s in whole if np.any(s.tokens > origin) and s.tokens[MIN_CHECKPOINTS - 1] <= origin]
        group = [s.until(origin) for s in whole]
        if not group:
            continue
        x = np.union1d(np.concatenate([s.x[s.tokens > origin] for s in whole]), grid(origin, horizon))
        for name, method in methods.items():
            for s, paths in zip(whole, method(group, siblings, x, seed)):
                yield s, name, paths


def long_enough(series: Sequence[Series], min_checkpoints: int = MIN_TO_TEST) -> list[Series]:
    """The series with at least `min_checkpoints` checkpoints, and one more than a forecast needs."""
    return [s for s in series if len(s.tokens) >= max(min_checkpoints, MIN_CHECKPOINTS + 1)]


def origins(own: Sequence[Series]) -> list[float]:
    """The D from which a run's later checkpoints are forecast, in tokens: from the fourth checkpoint to the last but
    one."""
    tokens = np.unique(np.concatenate([s.tokens for s in own]))
    return [float(D) for D in tokens[MIN_CHECKPOINTS - 1 : -1]]


def targets(series: Series, origin: float) -> Iterator[tuple[Ahead, int]]:
    """The checkpoints, as places in `series`, that are forecast from D = `origin`."""
    first = int(np.searchsorted(series.tokens, origin, side="right"))
    yield Ahead.NEXT, first
    for ahead, factor in ((Ahead.TWICE, 2), (Ahead.FOUR_TIMES, 4)):
        distance = np.abs(series.x[first:] - math.log(factor * origin))
        if distance.min() <= math.log(NEAR):
            yield ahead, first + int(np.argmin(distance))


def _statements(
    series: Series, origin: float, method: str, paths: Paths, level: float, truth: _Truth
) -> Iterator[Statement]:
    for ahead, i in targets(series, origin):
        for what in (What.LOSS, What.DELTA):
            yield _measured_statement(series, origin, method, paths, level, what, ahead, i)
    yield _turn_statement(series, origin, method, paths, level, truth)


def _measured_statement(
    series: Series, origin: float, method: str, paths: Paths, level: float, what: What, ahead: Ahead, i: int
) -> Statement:
    """What is stated of the loss or the delta of checkpoint i."""
    D, draws = float(series.tokens[i]), paths.measured_loss if what is What.LOSS else paths.measured_delta
    low, value, high = paths.interval(draws, D, level)
    true = float(getattr(series, what)[i])
    inner = paths.interval(draws, D, INNER)
    ends = [low, high, true]
    if what is What.LOSS:
        ends = [math.log(max(end, _LEAST_LOSS)) for end in ends]
    return Statement(
        series.run, series.quantizer, series.bits, origin, what, D, low, value, high, level,
        true, not low <= true <= high, method, ahead,
        made=what is What.DELTA or high - low <= float(np.ptp(series.until(origin).loss_q)),
        decisive=True,
        width=ends[1] - ends[0],
        score=interval_score(ends[0], ends[1], ends[2], level),
        as_assumed=bool(_as_assumed(series, origin)[i]),
        half=inner[0] <= true <= inner[2],
    )  # fmt: skip


def _as_assumed(series: Series, origin: float) -> np.ndarray:
    """At which checkpoints the learning rate is as a forecast from D = `origin` assumes it, or not known: [n]."""
    known = series.until(origin)
    off = np.abs(series.phase - later_phase(known.x, known.phase)(series.x))
    return ~(off > SAME_PHASE) | (series.tokens <= origin)


def _turn_statement(series: Series, origin: float, method: str, paths: Paths, level: float, truth: _Truth) -> Statement:
    said = _said(series.until(origin), paths, level) if method == FORECAST else turn(paths, level)
    known = not math.isnan(truth.place)
    refuted = known and (truth.high < said.low or truth.low > said.high)
    refuted |= _falls_after(series, said.high, truth.least)
    low, high, place = _lowest(series, origin, paths, level)
    return Statement(
        series.run, series.quantizer, series.bits, origin, What.TURN, math.nan, said.low, said.value, said.high, level,
        truth.place, refuted, method, Ahead.OPEN,
        made=excludes_some(said, origin),
        decisive=known or _falls_after(series, origin, truth.least),
        width=high - low,
        score=interval_score(low, high, place, level),
        as_assumed=bool(np.all(_as_assumed(series, origin))),
    )  # fmt: skip


def _lowest(series: Series, origin: float, paths: Paths, level: float) -> tuple[float, float, float]:
    """The ends of what is stated of the checkpoint with the least loss, and which it is, as log D.

    Checkpoints up to the origin are known; the later ones are drawn.
    """
    later = series.tokens > origin
    places = np.searchsorted(paths.x, series.x[later])
    drawn = np.repeat(series.loss_q[None], len(paths.loss), axis=0)
    drawn[:, later] = paths.measured_loss[:, places]
    tail = (1 - level) / 2
    ends = np.quantile(series.x[np.argmin(drawn, axis=1)], [tail, 1 - tail], method="inverted_cdf")
    return float(ends[0]), float(ends[1]), float(series.x[np.argmin(series.loss_q)])


def _said(series: Series, paths: Paths, level: float) -> Turn:
    """D_crit as a report of these checkpoints has it: an observed turn first, else the forecast."""
    if 0 < np.argmin(series.loss_q) < len(series.tokens) - 1:
        observed = turning_point(*_measured(series), errors=series.se, level=level)
        if observed.interior:
            return Turn(observed.place.low, observed.place.value, observed.place.high)
    return untested(turn(paths, level), series.tokens[-1])


def _measured(series: Series) -> Curve:
    return Curve(series.tokens, series.loss_q, series.windows, series.design, series.calibration_se)


def _falls_after(series: Series, tokens: float, least: float) -> bool:
    """Whether a checkpoint beyond D = `tokens` has a lower loss, by `least`, than all up to there."""
    later = series.tokens > tokens
    if not later.any() or later.all():
        return bool(later.all())
    return bool(series.loss_q[later].min() < series.loss_q[~later].min() - least)


def _truths(own: Sequence[Series], level: float, seed: int) -> dict[int, _Truth]:
    """The turns that a whole run shows, by the id of the series, with control over all its lines.  Without evaluation
    windows the errors of the deltas are used."""
    turns = {id(s): turning_point(*_measured(s), errors=s.se, seed=seed, level=level) for s in own}
    turns = controlled(turns, {id(s): (s.quantizer, s.bits) for s in own})
    return {id(s): _truth(s, turns[id(s)]) for s in own}


def _truth(series: Series, found: TurningPoint) -> _Truth:
    scatter = float(np.nan_to_num(checkpoint_scatter(series.x, series.loss_q)))
    least = SIGNIFICANT * math.sqrt(2) * math.hypot(scatter, float(np.median(series.se)))
    if not found.interior:
        return _Truth(math.nan, math.nan, math.nan, least)
    return _Truth(found.place.value, found.place.low, found.place.high, least)


def asked_at(own: Sequence[Series], ratio: float = RATIO) -> float:
    """The origin of a run, in tokens, that is nearest to D/N = `ratio`."""
    return min(origins(own), key=lambda D: abs(math.log(D / own[0].params / ratio)))
