"""Draws of the loss after quantization beyond the last checkpoint, and of D_crit.

A draw takes one candidate for the full-precision loss and one for delta, by weight, each with a size s of its error
(`rolling`), and moves it away from its curve by an amount that grows with the distance h in log D, z being standard
normal:

    z·s·h^GROWTH            for the logarithm of delta
    z·s·|slope|·h^GROWTH    for the loss, which stays where it would rise unless the checkpoints show a rise

A loss may also bend: from a place on whose distance is exponentially distributed, its fall per log D fades
exponentially.  No run shows beforehand that it will, so this prior is not weighted by what was seen, and the ends of
D_crit do not rest on it: the lower one is stated as if the loss bent at once, the upper one as if it never did.
Where the learning rate decays, the effect of the decay to come is added, with its error (`decay`).

So a draw is a smooth path from the last checkpoint on, and its minimum means something.  Checkpoints scatter about any
smooth path; that scatter enters what a later checkpoint will measure, and how sure the past minimum is, but not the
path.

No candidate for delta falls, and no path does: a departure that would let delta fall below its last value leaves it
there.  A delta that is not significant is not extrapolated: it stays at the weighted mean of those seen, and a later
one is drawn from Student's distribution with their noise, which may grow as a power of D.  That it is not seen does
not mean that it is not there: the lower end of D_crit allows for one that grows as a power of D and is as large as
the checkpoints leave room for.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from scipy import stats

from ptq_eval.laws.forecast.candidates import History, level_of_delta
from ptq_eval.laws.forecast.loss import draw_losses, mixed, uncertain
from ptq_eval.laws.forecast.rolling import DELTA, GROWTH, Weights, combine
from ptq_eval.laws.forecast.series import Series

N_DRAWS = 2000
HORIZON = 16.0
"""How many times the last D paths are drawn."""
FARTHEST = 4.0
"""How many times the last D the ends of D_crit may be: as far as the backtests go."""
UNANNOUNCED_HELD = 0.89
"""The share of lower ends of D_crit, stated at 95 %, that held on simulated runs whose learning rate decayed later and
whose checkpoints did not show it: the lowest of the families (`benchmarks/forecast.py`)."""
GRID = 60
"""Points of a path, evenly in log D."""
MOST_GROWTH = 3.0
"""The most that the logarithm of delta may grow by."""
NOISE_GROWTH = np.linspace(0.0, 1.0, 21)
"""Exponents of D with which the noise of deltas may grow; none is likelier than another beforehand."""
HIDDEN_LEVEL = 0.95
"""The probability with which a larger delta than `most_hidden` is excluded."""
NEIGHBOURS = 5
"""Checkpoints that say where the smooth path passed one of them."""
_PAST_LAST = HORIZON ** (0.5 / GRID)
"""How many times the last D a turn may be whose minimum is at the last checkpoint: half a step of the grid."""
_LEAST = 1e-12


@dataclass(frozen=True)
class Paths:
    """Draws of one series at x = log D [m]: smooth paths, and what checkpoints there would measure.

    loss and delta are [draws, m] paths of the loss after quantization and of delta; measured_loss and measured_delta
    have the scatter of checkpoints added; all in nats per token.  Beyond the last checkpoint they are forecasts, up to
    it they say what is known of the past.  weights: the share of each candidate by name, of "loss" and "delta".
    """

    x: np.ndarray
    loss: np.ndarray
    delta: np.ndarray
    measured_loss: np.ndarray
    measured_delta: np.ndarray
    weights: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    measured_before: np.ndarray | None = None
    """The full-precision loss of later checkpoints, [draws, places beyond the last checkpoint]; None for baselines."""
    early: np.ndarray | None = None
    """The loss after quantization, [draws, m], if its fall fades from the last checkpoint on and a delta that is not
    seen grows: the lower end of D_crit is from these paths.  None for baselines."""
    late: np.ndarray | None = None
    """The same if its fall never fades, for the upper end."""

    def interval(self, what: np.ndarray, tokens: float, level: float) -> tuple[float, float, float]:
        """(low, median, high) of one of the arrays at D = `tokens`, which is one of the places."""
        tail = (1 - level) / 2
        low, value, high = np.quantile(what[:, np.argmin(np.abs(self.x - math.log(tokens)))], [tail, 0.5, 1 - tail])
        return float(low), float(value), float(high)


def grid(tokens: float, horizon: float = HORIZON) -> np.ndarray:
    """`GRID` places in log D beyond D = `tokens`, up to `horizon` times as many: [m]."""
    return math.log(tokens) + np.linspace(0, math.log(horizon), GRID + 1)[1:]


def learn(siblings: Sequence[Series]) -> Weights:
    """The weights of the candidates for delta from all significant series of one run up to the same checkpoint."""
    return combine([_delta_history(s, siblings) for s in siblings if s.significant], DELTA)


def draw(
    series: Series,
    siblings: Sequence[Series],
    x: np.ndarray | None = None,
    *,
    learned: Weights | None = None,
    seed: int = 0,
    n_draws: int = N_DRAWS,
) -> Paths:
    """Paths of the loss after quantization at log D = x [m], beyond the last checkpoint of `series` (default: `grid`).

    siblings: the series of the same run, this one included, none of them beyond that checkpoint; learned: what `learn`
    says of them.  `series.MIN_CHECKPOINTS` checkpoints are needed.
    """
    past, now = series.x, series.loss_q
    x = grid(series.tokens[-1]) if x is None else np.asarray(x, float)
    rng = np.random.default_rng([seed, len(past)])
    losses, shares = draw_losses(series, x, rng, n_draws)
    scatter = series.scatter * uncertain(series.scatter_freedom, rng, n_draws)
    of_delta: dict[str, float] = {}
    if series.significant:
        grown, measured, later, of_delta = _growing(series, siblings, learned or learn(siblings), x, rng, n_draws)
        noise = series.noise
    else:
        grown, measured = _staying(series, siblings, x, rng, n_draws)
        later = measured - grown
        noise = np.zeros_like(past)
    seen = now + np.hypot(noise, scatter) * rng.standard_normal((n_draws, len(past)))
    added = grown + seen[:, -1:] - now[-1]
    ahead = losses.drawn + added
    hidden = 0.0 if series.significant else _hidden(series, x, rng, n_draws)
    scattered = ahead + later + scatter * rng.standard_normal(ahead.shape)
    seen = seen @ smoother(past, np.hypot(noise, series.scatter)).T
    deltas = np.broadcast_to(series.delta, seen.shape)
    return Paths(
        np.concatenate([past, x]),
        np.hstack([seen, ahead]),
        np.hstack([deltas, grown]),
        np.hstack([seen, scattered]),
        np.hstack([deltas, measured]),
        {"loss": shares, "delta": of_delta},
        losses.drawn + scatter * (rng.standard_normal((n_draws, 1)) + rng.standard_normal(ahead.shape)),
        np.hstack([seen, losses.bent_at_once + added + hidden]),
        np.hstack([seen, losses.never_bent + added]),
    )


def smoother(x: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """The matrix [n, n] that replaces a value at x [n] by a parabola through it and its neighbours, taken there.

    The parabola is fitted by least squares to the nearest `NEIGHBOURS` checkpoints; the ends stay as they are, and so
    do fewer checkpoints.  Where the noise [n] is zero everything stays.
    """
    found = np.eye(len(x))
    if len(x) < NEIGHBOURS or not np.all(noise > 0):
        return found
    for i in range(1, len(x) - 1):
        first = min(max(i - NEIGHBOURS // 2, 0), len(x) - NEIGHBOURS)
        near = slice(first, first + NEIGHBOURS)
        columns = np.vander(x[near] - x[i], 3) / noise[near, None]
        found[i, near] = np.linalg.pinv(columns)[-1] / noise[near]
    return found


def _growing(
    series: Series, siblings: Sequence[Series], weights: Weights, x: np.ndarray, rng: np.random.Generator, n_draws: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, dict[str, float]]:
    """Paths of a significant delta at x, what would be measured there, and the scatter of those checkpoints alone,
    [n_draws, m] each, and the candidates' shares.

    The loss after quantization starts from a last checkpoint whose scatter is drawn with the loss.
    """
    history = _delta_history(series, siblings)
    drawn, size, shares = mixed(DELTA.curves(history), weights, x, rng, n_draws)
    level = level_of_delta(history)
    ahead = history.progress(x) - history.progress(series.x[-1:])
    noise = float(history.noise[-1]) * uncertain(series.noise_freedom, rng, n_draws)
    growth = np.log(np.maximum(drawn, _LEAST) / max(level, _LEAST)) + size * ahead**GROWTH
    if decay := DELTA.decay(history):
        growth = growth + decay.mean(x) + rng.standard_normal((n_draws, 1)) * decay.spread(x)
    grown = level * np.exp(np.clip(growth, 0.0, MOST_GROWTH))
    scatter = noise * (grown / level if level > 0 else np.ones_like(grown))
    # The scatter of the last checkpoint, where the path starts, and of the one to come.
    start, end = rng.standard_normal((n_draws, 1)), rng.standard_normal(grown.shape)
    return grown, grown + scatter * (start + end), scatter * end, shares


def _staying(
    series: Series, siblings: Sequence[Series], x: np.ndarray, rng: np.random.Generator, n_draws: int
) -> tuple[np.ndarray, np.ndarray]:
    """A delta that is not significant, at x, and what would be measured there, [n_draws, m] each.

    Each draw takes an exponent of the noise by its likelihood, and with it the weighted mean of the deltas and their
    spread, which is at least the standard error.
    """
    same = [s for s in siblings if s.bits == series.bits and not s.significant]
    shares = growth_of_noise(same or [series])
    exponent = NOISE_GROWTH[rng.choice(len(shares), n_draws, p=shares)][:, None]
    known = bool(np.all(series.se > 0))
    unit = series.se if known else np.ones_like(series.se)
    noise = unit * np.exp(exponent * (series.x - series.x[-1]))
    weights = 1 / noise**2
    total = weights.sum(axis=1, keepdims=True)
    level = (weights * series.delta).sum(axis=1, keepdims=True) / total
    n = len(series.delta)
    spread = np.sqrt((weights * (series.delta - level) ** 2).sum(axis=1, keepdims=True) / (n - 1))
    spread = np.maximum(spread, 1.0) if known else spread
    later = np.hypot(unit[-1] * np.exp(exponent * (x - series.x[-1])), 1 / np.sqrt(total))
    t = rng.standard_t(n - 1, (n_draws, len(x)))
    return np.broadcast_to(level, t.shape), level + spread * later * t


def most_hidden(series: Series) -> float:
    """How large a delta in proportion to D may be at the last checkpoint, one-sided with `HIDDEN_LEVEL`, where deltas
    are not significant; nats per token, at least zero."""
    size, error = _hidden_size(series, np.ones(1))
    return max(float(size[0] + stats.t.ppf(HIDDEN_LEVEL, len(series.x) - 1) * error[0]), 0.0)


def _hidden_size(series: Series, exponents: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The size at the last checkpoint of a delta that grows as D to one of the exponents [k], and its error, [k] each.

    By weighted least squares; errors are as large as the deltas about it say, and at least the standard errors.
    """
    shapes, known = np.exp(exponents[:, None] * (series.x - series.x[-1])), bool(np.all(series.se > 0))
    unit = series.se if known else np.ones_like(series.se)
    total = (shapes / unit) ** 2 @ np.ones_like(unit)
    size = shapes @ (series.delta / unit**2) / total
    spread = np.sqrt(
        np.mean(((series.delta - size[:, None] * shapes) / unit) ** 2, axis=1) * len(unit) / (len(unit) - 1)
    )
    return size, (np.maximum(spread, 1.0) if known else spread) / np.sqrt(total)


def _hidden(series: Series, x: np.ndarray, rng: np.random.Generator, n_draws: int) -> np.ndarray:
    """Draws of how a delta that is not seen grows from the last checkpoint on, [n_draws, m]; each has an exponent of
    its own, as those of noise have (`NOISE_GROWTH`)."""
    place = rng.integers(len(NOISE_GROWTH), size=n_draws)
    size, error = (values[place, None] for values in _hidden_size(series, NOISE_GROWTH))
    now = np.maximum(size + error * rng.standard_t(len(series.x) - 1, (n_draws, 1)), 0.0)
    return now * np.expm1(NOISE_GROWTH[place, None] * (x - series.x[-1]))


def growth_of_noise(group: Sequence[Series]) -> np.ndarray:
    """The probability of each of `NOISE_GROWTH`, from deltas that are noise: one bit-width, several quantizers.

    The noise is a multiple of the standard error (of any constant where that is not known) and a power of D, and the
    multiple is the most likely one.  The quantizers share their checkpoints: k of them count as the square root
    of k.
    """
    total = np.zeros(len(NOISE_GROWTH))
    for s in group:
        ahead = s.x - s.x[-1]
        unit = s.se if np.all(s.se > 0) else np.ones_like(s.se)
        squares = np.mean((s.delta / unit / np.exp(NOISE_GROWTH[:, None] * ahead)) ** 2, axis=1)
        total -= 0.5 * len(s.x) * np.log(squares + _LEAST**2) + NOISE_GROWTH * ahead.sum()
    shares = np.exp((total - total.max()) / math.sqrt(len(group)))
    return shares / shares.sum()


def _delta_history(series: Series, siblings: Sequence[Series]) -> History:
    same = [s for s in siblings if s.quantizer == series.quantizer and s.significant]
    others = tuple((s.x, s.delta, s.noise) for s in same)
    return History(series.x, series.delta, series.noise, series.phase, others, series.se)


@dataclass(frozen=True)
class Turn:
    """Where the loss after quantization is least, from draws: D in tokens; `value` and `high` infinite where open."""

    low: float
    value: float
    high: float


def turn(paths: Paths, level: float = 0.9) -> Turn:
    """D_crit with its interval; an end beyond the horizon is open.

    A path that stays at its least loss turns where it leaves it.  A minimum at one place is anywhere nearer to this
    than to the places beside it.  An end is also where it would be if what no checkpoint shows beforehand were as bad
    for it as it may be (`Paths.early`, `Paths.late`): a probability that is stated of one end has to hold then, too.
    """
    said = _turn(paths, paths.loss, level)
    if paths.early is not None:
        said = replace(said, low=min(said.low, _turn(paths, paths.early, level).low))
    if paths.late is not None:
        said = replace(said, high=max(said.high, _turn(paths, paths.late, level).high))
    return said


def _turn(paths: Paths, loss: np.ndarray, level: float) -> Turn:
    last = len(paths.x) - 1
    lowest = loss.min(axis=1, keepdims=True)
    least = last - np.argmax(loss[:, ::-1] <= lowest + _LEAST, axis=1)
    middles = (paths.x[1:] + paths.x[:-1]) / 2
    inside = (least > 0) & (least < last)
    ends = (np.where(inside, middles[np.clip(least + step, 0, last - 1)], paths.x[least]) for step in (-1, 0))
    place = np.random.default_rng(0).uniform(*ends)
    open_share = float(np.mean(least == last))
    tail = (1 - level) / 2
    low, value, high = np.exp(np.quantile(place, [tail, 0.5, 1 - tail]))
    return Turn(
        float(low),
        float(value) if open_share < 0.5 else math.inf,
        float(high) if open_share <= tail else math.inf,
    )


def untested(said: Turn, last: float) -> Turn:
    """What of a turn may be stated where none passed its test, from checkpoints up to D = `last`.

    An upper end within the measured range, or half a step of the grid beyond, is a claim that the turn happened, so
    that end is open.  Of the draws of a flat curve many have their minimum at an earlier checkpoint.  Neither end is
    beyond `FARTHEST` times the last D: how well forecasts hold farther on has not been tested.
    """
    farthest = FARTHEST * last
    low, value = min(said.low, farthest), said.value if said.value <= farthest else math.inf
    if said.high <= last * _PAST_LAST * (1 + 1e-9):
        return Turn(low, math.inf, math.inf)
    return Turn(low, value, said.high if said.high <= farthest else math.inf)


def excludes_some(said: Turn, last: float) -> bool:
    """Whether a turn has an upper end, or a lower one at or beyond D = `last`, the last checkpoint's.

    Either answers whether to train on; a lower end at an earlier checkpoint with an open upper one does not.
    """
    return math.isfinite(said.high) or said.low >= last * (1 - 1e-9)


def says_something(said: Turn, series: Series) -> bool:
    """Whether the upper end of a turn is finite, or its lower end beyond the first checkpoint."""
    return math.isfinite(said.high) or said.low > series.tokens[0] * (1 + 1e-9)
