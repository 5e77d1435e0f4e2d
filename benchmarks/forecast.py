"""Forecasts of simulated runs whose curves, and so D_crit, are known.

No simple law holds over a real run, so most of these depart from one.  The full-precision loss is E + B·D^−beta whose
fall per log D wanders; log delta follows one of four laws (a power, a saturating one, one in log D, a power whose
exponent falls) plus a wandering slope, or a wandering slope alone.  6 to 20 checkpoints span a factor of 20 to 200 in
D; scatter is small or large, independent or autocorrelated.  Delta at 2, 3 and 4 bits is smaller by 4 each time, so
that many runs turn at 2 bits and few at 4; at 8 bits it is noise that grows, or tiny.

There are four families: runs whose slopes wander as much as any that were seen, smooth ones with many checkpoints,
smooth ones whose data are repeated from some D on, so that their loss bends, and one with constants of its own.  The
constants of the forecast were compared on runs of the first three, drawn with other seeds (`CHOOSING`); two rows of
that table are repeated here.  Nothing was chosen by the fourth.  Every checkpoint from the fourth on is an origin.  The
joint law, whose refits take most of a backtest's time, is not among the baselines.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import get_context
from unittest.mock import patch

import numpy as np

from benchmarks.harness import SEED, Claim, Outcome, Setup
from ptq_eval.laws.forecast import forecast as forecast_module
from ptq_eval.laws.forecast import rolling
from ptq_eval.laws.forecast.backtest import Ahead, Statement, What, backtest
from ptq_eval.laws.forecast.baselines import FORECAST, METHODS
from ptq_eval.laws.forecast.score import best_baseline, scores, total
from ptq_eval.laws.forecast.series import Series

RUNS, FEW, CHOOSING = 12, 2, 4
"""Runs of each family, of each in a rehearsal, and of each that constants are compared on."""
FEWEST = 5
LEAST, MOST = 0.85, 0.95
REFUTED = 0.10
BITS, SMALLER = (2.0, 3.0, 4.0), 4.0
REPEATS = 15.4
"""Repetitions of the data after which most of their worth is gone (R*, Muennighoff et al.)."""
FINE = 4
"""Places of the exact curves per checkpoint."""
LAWS = ("power", "saturating", "logarithmic", "bent", "none")
FAST = (FORECAST, "staying", "power")
AHEAD = {Ahead.NEXT: "one checkpoint ahead", Ahead.TWICE: "at 2 times D", Ahead.FOUR_TIMES: "at 4 times D"}
TRIED = ((0.2, 0.2, 1.2, 1.15, 1.5), (0.2, 0.25, 0.8, 1.0, 1e9))
"""Median errors of the loss and of log delta assumed beforehand, the spread of their logarithms, the power of the
distance that they grow with, and how far back in log D they count.  The first are in use; with the second all errors
count alike."""


@dataclass(frozen=True)
class Run:
    """One simulated run: its series, and D_crit of each in tokens, infinite where the curve falls to its end."""

    series: list[Series]
    truth: list[float]


def measure(setup: Setup) -> Outcome:
    """Coverage and score of simulated forecasts, and what other constants would have given."""
    outcome, rows = Outcome(), []
    with ProcessPoolExecutor(len(os.sched_getaffinity(0)), get_context("spawn")) as pool:
        for family in FAMILIES:
            runs = [_drawn(family, i, SEED) for i in range(FEW if setup.quick else RUNS)]
            found = pool.map(partial(_stated, methods=FAST), runs)
            stated = [s for each in found for s in each]
            claims = [*_coverage(stated), *_against(stated), *_turns(runs, stated)]
            outcome.claims += [replace(claim, what=f"{family} runs: {claim.what}") for claim in claims]
        for family in CHOSEN_BY:
            runs = [_drawn(family, i, SEED + 1) for i in range(FEW // 2 if setup.quick else CHOOSING)]
            for constants in TRIED:
                found = pool.map(partial(_stated, methods=(FORECAST,), constants=constants), runs)
                rows.append([family, *constants, *_summed([s for each in found for s in each])])
    columns = ["runs", "assumed, loss", "assumed, log δ", "spread", "growth", "memory"]
    columns += ["inside (loss)", "score (loss)", "score (lowest)"]
    outcome.details["constants tried, on other runs"] = {"columns": columns, "rows": rows}
    return outcome


def _drawn(family: str, place: int, seed: int) -> Run:
    return simulate(np.random.default_rng([seed, place]), str(place), FAMILIES[family])


@dataclass(frozen=True)
class Family:
    """What the runs of a family are drawn from: each constant one of a few values, or anywhere in a range.

    drift: how the fall of the full-precision loss wanders, as a share per root of log D; wander: the same of the slope
    of log delta, of which `shared` (a correlation) is common to the bit-widths, as is that share of the scatter.
    scatter: of the loss, nats; relative: of delta.  size: delta at 2 bits, nats; smaller: its ratio from one bit-width
    to the next.
    """

    checkpoints: tuple[int, int]
    span: tuple[float, float]
    drift: tuple[float, ...]
    wander: tuple[float, ...]
    scatter: tuple[float, ...]
    relative: tuple[float, ...]
    size: tuple[float, float]
    smaller: float = SMALLER
    shared: float = 0.0
    repeated: bool = False
    """Whether data are repeated from some D on, so that the loss falls as Muennighoff et al. found (2305.16264)."""
    noise_at_8: bool = True
    """Whether delta at 8 bits is noise in every run; else it is that in half of them, and small but significant in the
    others."""


WANDERING = Family(
    (6, 21), (20, 200), (0.0, 0.2, 0.4), (0.0, 0.2, 0.4), (0.002, 0.006, 0.015), (0.03, 0.08, 0.15), (0.1, 0.8)
)
SMOOTH = Family(
    (8, 31), (20, 400), (0.0, 0.05, 0.1), (0.0, 0.05, 0.1), (0.0005, 0.001, 0.003), (0.003, 0.01, 0.03), (0.02, 0.8),
    shared=0.5, noise_at_8=False,
)  # fmt: skip
HELD_OUT = Family(
    (7, 26), (10, 1000), (0.03, 0.15, 0.3), (0.03, 0.15, 0.3), (0.001, 0.004, 0.01), (0.01, 0.05, 0.1), (0.05, 1.5),
    smaller=6.0, shared=0.7, noise_at_8=False,
)  # fmt: skip
REPEATED = Family(
    (8, 16), (20, 400), (0.0, 0.05, 0.1), (0.0, 0.1, 0.2), (0.001, 0.003, 0.006), (0.01, 0.03, 0.06), (0.05, 1.0),
    smaller=5.0, shared=0.5, noise_at_8=False, repeated=True,
)  # fmt: skip
FAMILIES = {"wandering": WANDERING, "smooth": SMOOTH, "repeated": REPEATED, "held out": HELD_OUT}
CHOSEN_BY = ("wandering", "smooth", "repeated")
"""The families by which the constants of the forecast were chosen."""


def simulate(rng: np.random.Generator, name: str, family: Family = WANDERING) -> Run:
    """One run of a family."""
    n = int(rng.integers(*family.checkpoints))
    step = math.log(rng.uniform(*family.span)) / (n - 1) / FINE
    x = math.log(1e6) + step * np.arange(2 * n * FINE)
    seen = np.arange(n) * FINE
    drift, wander = rng.choice(family.drift), rng.choice(family.wander)
    scatter, relative = rng.choice(family.scatter), rng.choice(family.relative)
    phi, law, size = rng.choice((0.0, 0.5)), str(rng.choice(LAWS)), rng.uniform(*family.size)
    wander = max(family.wander) if law == "none" else wander
    loss = _falling(x, rng, drift, seen[-1] if family.repeated else None)
    measured = loss[seen] + scatter * _noise(n, rng, phi)
    unknown, series, truth = np.full(n, np.nan), [], []
    common, common_noise = _steps(x, rng), _noise(n, rng, phi)
    for place, bits in enumerate((*BITS, 8.0)):
        if bits == 8.0 and (family.noise_at_8 or rng.random() < 0.5):
            noise = 3e-4 * np.exp(0.3 * (x[seen] - x[0])) * rng.standard_normal(n)
            series.append(Series(name, "rtn", 8.0, 1e5, np.exp(x[seen]), measured, noise, np.full(n, 2e-4), unknown))
            truth.append(_least(x, loss))
            continue
        steps = _together(common, _steps(x, rng), family.shared)
        scattered = 1 + relative * _together(common_noise, _noise(n, rng, phi), family.shared)
        exact = size / family.smaller**place * _grown(x, rng, law, wander, steps)
        delta, se = exact[seen] * scattered, 0.02 * exact[seen]
        series.append(Series(name, "rtn", bits, 1e5, np.exp(x[seen]), measured, delta, se, unknown))
        truth.append(_least(x, loss + exact))
    return Run(series, truth)


def _together(common: np.ndarray, own: np.ndarray, correlation: float) -> np.ndarray:
    """Standard normal numbers that correlate with `common` by the root of `correlation`."""
    return math.sqrt(correlation) * common + math.sqrt(1 - correlation) * own


def _least(x: np.ndarray, curve: np.ndarray) -> float:
    place = int(np.argmin(curve))
    return math.exp(x[place]) if place < len(x) - 1 else math.inf


def _steps(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return rng.standard_normal(len(x) - 1)


def _walk(x: np.ndarray, steps: np.ndarray, size: float) -> np.ndarray:
    return size * np.cumsum(np.sqrt(np.diff(x)) * steps)


def _falling(x: np.ndarray, rng: np.random.Generator, drift: float, last: int | None) -> np.ndarray:
    """E + B·D^−beta whose fall wanders; with data repeated from a D before x[last] on, D counts for less and less."""
    useful = x if last is None else _useful(x, rng.uniform(x[0] - math.log(REPEATS), x[last]))
    exact = rng.uniform(2, 3) + rng.uniform(1, 2.5) * np.exp(-rng.uniform(0.2, 0.7) * (useful - x[0]))
    factors = np.exp(np.clip(_walk(x, _steps(x, rng), drift), -3, 0.7))
    return exact[0] + np.concatenate([[0.0], np.cumsum(np.diff(exact) * factors)])


def _useful(x: np.ndarray, unique: float) -> np.ndarray:
    """Log D that fresh data would need for the same loss, log D of the fresh ones being `unique` (eq. 5)."""
    repeats = np.maximum(np.exp(x - unique) - 1, 0.0)
    return np.minimum(x, unique) + np.log1p(REPEATS * -np.expm1(-repeats / REPEATS))


def _grown(x: np.ndarray, rng: np.random.Generator, law: str, wander: float, steps: np.ndarray) -> np.ndarray:
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
        logs = np.zeros_like(x)
    slopes = _walk(x, steps, wander) + (rng.uniform(0.3, 0.9) if law == "none" else 0.0)
    logs = logs + np.concatenate([[0.0], np.cumsum(slopes * np.diff(x))])
    return np.minimum(np.maximum.accumulate(np.exp(np.clip(logs - logs[len(x) // 4], -5, 5))), 20.0)


def _noise(n: int, rng: np.random.Generator, phi: float) -> np.ndarray:
    found = rng.standard_normal(n)
    for i in range(1, n):
        found[i] = phi * found[i - 1] + math.sqrt(1 - phi**2) * found[i]
    return found


def _stated(run: Run, methods: Sequence[str], constants: tuple[float, ...] = TRIED[0]) -> list[Statement]:
    loss, delta, spread, growth, memory = constants
    with (
        patch.object(forecast_module, "LOSS", replace(rolling.LOSS, prior=loss)),
        patch.object(forecast_module, "DELTA", replace(rolling.DELTA, prior=delta)),
        patch.object(rolling, "SPREAD", spread),
        patch.object(rolling, "MEMORY", memory),
        patch.object(rolling, "GROWTH", growth),
        patch.object(forecast_module, "GROWTH", growth),
    ):
        return backtest(run.series, min_checkpoints=FEWEST, methods={name: METHODS[name] for name in methods})


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
    for what, unit in ((What.LOSS, "log loss"), (What.TURN, "log D of the lowest checkpoint")):
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
        made = float(np.mean([s.made for s in cases]))
        text = f"D_crit, {len(cases)} cases ({name})"
        yield Claim(f"{text}: statements that exclude the exact D_crit", wrong, wrong, wrong, REFUTED)
        yield Claim(f"{text}: share with two ends", closed, closed, closed)
        yield Claim(f"{text}: share with two ends, or a lower one at or beyond the origin", made, made, made)


def _summed(stated: Sequence[Statement]) -> list[float]:
    found = scores(stated)
    of_loss, of_turn = total(found, What.LOSS), total(found, What.TURN)
    assert of_loss
    assert of_turn
    return [of_loss.coverage, of_loss.score, of_turn.score]
