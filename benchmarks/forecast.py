"""Forecasts of simulated runs whose curves, and so D_crit, are known.

No simple law holds over a real run, so most of these depart from one.  The full-precision loss is E + B·D^−beta whose
fall per log D wanders; log delta follows one of four laws (a power, a saturating one, one in log D, a power whose
exponent falls) plus a wandering slope, or a wandering slope alone.  6 to 20 checkpoints span a factor of 20 to 200 in
D; scatter is small or large, independent or autocorrelated.  Delta at 2, 3 and 4 bits is smaller by 4 each time, so
that many runs turn at 2 bits and few at 4; at 8 bits it is noise that grows.

Every checkpoint from the fourth on is an origin.  The constants of the forecast were compared on runs of the same
family drawn with other seeds (`CHOOSING`); that table is repeated here.  The joint law, whose refits take most of a
backtest's time, is not among the baselines.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any
from unittest.mock import patch

import numpy as np

from benchmarks.harness import SEED, Claim, Outcome, Setup
from ptq_eval.laws.forecast import forecast as forecast_module
from ptq_eval.laws.forecast import rolling
from ptq_eval.laws.forecast.backtest import Ahead, Statement, What, backtest
from ptq_eval.laws.forecast.baselines import FORECAST, METHODS, Method
from ptq_eval.laws.forecast.score import best_baseline, scores, total
from ptq_eval.laws.forecast.series import Series

RUNS, FEW, CHOOSING = 80, 6, 24
FEWEST = 5
LEAST, MOST = 0.85, 0.95
REFUTED = 0.10
BITS, SMALLER = (2.0, 3.0, 4.0), 4.0
FINE = 4
"""Places of the exact curves per checkpoint."""
LAWS = ("power", "saturating", "logarithmic", "bent", "none")
FAST: dict[str, Method] = {name: METHODS[name] for name in (FORECAST, "staying", "power")}
AHEAD = {Ahead.NEXT: "one checkpoint ahead", Ahead.TWICE: "at 2 times D", Ahead.FOUR_TIMES: "at 4 times D"}
TRIED = ((0.2, 0.3, 3.0), (0.12, 0.3, 3.0), (0.3, 0.3, 3.0), (0.2, 0.2, 3.0), (0.2, 0.4, 3.0), (0.2, 0.3, 5.0))
"""Assumed errors of the loss and of log delta, and their weight in origins; the first are in use."""


@dataclass(frozen=True)
class Run:
    """One simulated run: its series, and D_crit of each in tokens, infinite where the curve falls to its end."""

    series: list[Series]
    truth: list[float]


def measure(setup: Setup) -> Outcome:
    """Coverage and score of simulated forecasts, and what other constants would have given."""
    outcome = Outcome()
    runs = [simulate(np.random.default_rng([SEED, i]), str(i)) for i in range(FEW if setup.quick else RUNS)]
    stated = _stated(runs, FAST)
    outcome.claims = [*_coverage(stated), *_against(stated), *_turns(runs, stated)]
    choosing = [
        simulate(np.random.default_rng([SEED + 1, i]), str(i)) for i in range(FEW // 2 if setup.quick else CHOOSING)
    ]
    rows = [_tried(choosing, *constants) for constants in TRIED]
    columns = ["assumed, loss", "assumed, log δ", "weight", "inside (loss)", "score (loss)", "score (D_crit)"]
    outcome.details["constants tried, on other runs"] = {"columns": columns, "rows": rows}
    return outcome


def simulate(rng: np.random.Generator, name: str) -> Run:
    """One run of the family."""
    n = int(rng.integers(6, 21))
    step = math.log(rng.uniform(20, 200)) / (n - 1) / FINE
    x = math.log(1e6) + step * np.arange(2 * n * FINE)
    seen = np.arange(n) * FINE
    drift, wander = rng.choice((0.0, 0.2, 0.4)), rng.choice((0.0, 0.2, 0.4))
    scatter, relative = rng.choice((0.002, 0.006, 0.015)), rng.choice((0.03, 0.08, 0.15))
    phi, law, size = rng.choice((0.0, 0.5)), str(rng.choice(LAWS)), rng.uniform(0.1, 0.8)
    loss = _falling(x, rng, drift)
    measured = loss[seen] + scatter * _noise(n, rng, phi)
    unknown, series, truth = np.full(n, np.nan), [], []
    for place, bits in enumerate(BITS):
        exact = size / SMALLER**place * _grown(x, rng, law, wander)
        delta = exact[seen] * (1 + relative * _noise(n, rng, phi))
        series.append(Series(name, "rtn", bits, 1e5, np.exp(x[seen]), measured, delta, 0.02 * exact[seen], unknown))
        truth.append(_least(x, loss + exact))
    noise = 3e-4 * np.exp(0.3 * (x[seen] - x[0])) * rng.standard_normal(n)
    series.append(replace(series[-1], bits=8.0, delta=noise, se=np.full(n, 2e-4)))
    return Run(series, [*truth, _least(x, loss)])


def _least(x: np.ndarray, curve: np.ndarray) -> float:
    place = int(np.argmin(curve))
    return math.exp(x[place]) if place < len(x) - 1 else math.inf


def _walk(x: np.ndarray, rng: np.random.Generator, size: float) -> np.ndarray:
    return size * np.cumsum(np.sqrt(np.diff(x)) * rng.standard_normal(len(x) - 1))


def _falling(x: np.ndarray, rng: np.random.Generator, drift: float) -> np.ndarray:
    exact = rng.uniform(2, 3) + rng.uniform(1, 2.5) * np.exp(-rng.uniform(0.2, 0.7) * (x - x[0]))
    factors = np.exp(np.clip(_walk(x, rng, drift), -3, 0.7))
    return exact[0] + np.concatenate([[0.0], np.cumsum(np.diff(exact) * factors)])


def _grown(x: np.ndarray, rng: np.random.Generator, law: str, wander: float) -> np.ndarray:
    """Delta in units of its size a quarter on, which never falls."""
    middle = x[len(x) // 4]
    h = x - middle
    if law == "power":
        logs = rng.uniform(0.3, 0.9) * h
    elif law == "saturating":
        logs = -np.log1p(np.exp(rng.uniform(0, 2) - h))
    elif law == "logarithmic":
        logs = np.log1p(rng.uniform(0.2, 0.5) * (x - x[0]))
    elif law == "bent":
        first, bend = rng.uniform(0.5, 1.0), rng.uniform(0.05, 0.15)
        near = np.minimum(h, first / (2 * bend))
        logs = first * near - bend * near**2
    else:
        logs, wander = np.zeros_like(x), 0.4
    slopes = _walk(x, rng, wander) + (rng.uniform(0.3, 0.9) if law == "none" else 0.0)
    logs = logs + np.concatenate([[0.0], np.cumsum(slopes * np.diff(x))])
    return np.minimum(np.maximum.accumulate(np.exp(np.clip(logs - logs[len(x) // 4], -5, 5))), 20.0)


def _noise(n: int, rng: np.random.Generator, phi: float) -> np.ndarray:
    found = rng.standard_normal(n)
    for i in range(1, n):
        found[i] = phi * found[i - 1] + math.sqrt(1 - phi**2) * found[i]
    return found


def _stated(runs: Sequence[Run], methods: Mapping[str, Method]) -> list[Statement]:
    return [s for run in runs for s in backtest(run.series, min_checkpoints=FEWEST, methods=methods)]


def _coverage(stated: Sequence[Statement]) -> Iterator[Claim]:
    """Coverage at each distance, all runs together, with its range over bit-widths; one claim per end of the goal."""
    found = scores(stated)
    for ahead, words in AHEAD.items():
        for what, about in ((What.LOSS, "loss after quantization"), (What.DELTA, "δ")):
            own = [s for s in found if (s.method, s.what, s.ahead) == (FORECAST, what, ahead)]
            total_, both = next(s.coverage for s in own if s.bits is None), [s.coverage for s in own]
            text = f"90 % intervals of {about} {words}, share inside"
            yield Claim(text, total_, min(both), max(both), LEAST, "at least")
            yield Claim(f"{text} (no wider than promised)", total_, min(both), max(both), MOST)


def _against(stated: Sequence[Statement]) -> Iterator[Claim]:
    found = scores(stated)
    for what, unit in ((What.LOSS, "log loss"), (What.TURN, "log D")):
        for bits in (*BITS, 8.0):
            own, best = total(found, what, bits), best_baseline(found, what, bits)
            if own and best:
                gap = own.score - best.score
                text = f"interval score of {unit}, forecast ({own.score:.3g}) minus the better baseline"
                yield Claim(f"{text} ({best.method}, {best.score:.3g}), {bits:g} bits", gap, gap, gap, 0.0)


def _turns(runs: Sequence[Run], stated: Sequence[Statement]) -> Iterator[Claim]:
    """What is stated of D_crit against the exact one, whether or not a later checkpoint decided."""
    truth = {(s.run, s.bits): D for run in runs for s, D in zip(run.series, run.truth)}
    last = {(s.run, s.bits): s.tokens[-1] for run in runs for s in run.series}
    own = [s for s in stated if s.what is What.TURN and s.method == FORECAST and s.bits in BITS]
    groups = {"all": own, "that turned before the origin": [s for s in own if truth[s.run, s.bits] < s.origin_tokens]}
    groups["that turn later, within the run"] = [
        s for s in own if s.origin_tokens <= truth[s.run, s.bits] < last[s.run, s.bits]
    ]
    for name, cases in groups.items():
        wrong = float(np.mean([not s.low <= truth[s.run, s.bits] <= s.high for s in cases]))
        closed = float(np.mean([math.isfinite(s.high) for s in cases]))
        text = f"D_crit, {len(cases)} cases ({name})"
        yield Claim(f"{text}: statements that exclude the exact D_crit", wrong, wrong, wrong, REFUTED)
        yield Claim(f"{text}: share with two ends", closed, closed, closed)


def _tried(runs: Sequence[Run], loss: float, delta: float, weight: float) -> list[Any]:
    with (
        patch.object(forecast_module, "LOSS", replace(rolling.LOSS, prior=loss)),
        patch.object(forecast_module, "DELTA", replace(rolling.DELTA, prior=delta)),
        patch.object(rolling, "PRIOR_COUNT", weight),
    ):
        found = scores(_stated(runs, {FORECAST: METHODS[FORECAST]}))
    of_loss, of_turn = total(found, What.LOSS), total(found, What.TURN)
    assert of_loss
    assert of_turn
    return [loss, delta, weight, of_loss.coverage, of_loss.score, of_turn.score]
