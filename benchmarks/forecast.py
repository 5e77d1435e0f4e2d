"""Forecasts of simulated runs (`simulated_runs`), whose later checkpoints and D_crit are known.

The constants of the forecast were compared on runs of all families but `held out`, drawn with other seeds.  Of the
`rising` runs, whose loss rises from some D on, only the origins after the rise was seen are held to the promise:
before, nothing tells of it.  So it is with learning rates: a statement about a checkpoint by which the rate did
something else than the checkpoints showed is counted apart.  Every checkpoint from the fourth on is an origin.  The
joint law, whose refits take most of a backtest's time, is not among the baselines.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context

import numpy as np

from benchmarks.harness import SEED, Claim, Outcome, Setup
from benchmarks.simulated_runs import BITS, FAMILIES, Run, simulate
from ptq_eval.laws.forecast.backtest import Ahead, Statement, What, backtest
from ptq_eval.laws.forecast.baselines import FORECAST, METHODS
from ptq_eval.laws.forecast.candidates import History, risen
from ptq_eval.laws.forecast.score import best_baseline, scores, total

RUNS, FEW = 10, 1
"""Runs of each family, and of each in a rehearsal."""
FEWEST = 5
LEAST, MOST = 0.85, 0.95
HALF = (0.4, 0.6)
"""Limits of what 50 % intervals hold."""
REFUTED = 0.10
NOT_BEFORE = 'stated as "not before", beyond the origin'
FAST = (FORECAST, "staying", "power")
AHEAD = {Ahead.NEXT: "one checkpoint ahead", Ahead.TWICE: "at 2 times D", Ahead.FOUR_TIMES: "at 4 times D"}


def measure(setup: Setup) -> Outcome:
    """Coverage and score of simulated forecasts."""
    outcome, rows = Outcome(), []
    with ProcessPoolExecutor(len(os.sched_getaffinity(0)), get_context("spawn")) as pool:
        for family in FAMILIES:
            runs = [_drawn(family, i, SEED) for i in range(FEW if setup.quick else RUNS)]
            stated = [s for each in pool.map(_stated, runs) for s in each]
            if FAMILIES[family].rising:
                stated = _after_rise(runs, stated)
            claims = [*_coverage(stated), *_against(stated), *_turns(runs, stated)]
            outcome.claims += [replace(claim, what=f"{family} runs: {claim.what}") for claim in claims]
            rows += [[family, *row] for row in _apart(stated)]
    columns = ["runs", "run", "losses", "inside 90 %", "inside 50 %", "the learning rate did otherwise"]
    outcome.details["each run alone"] = {"columns": columns, "rows": rows}
    return outcome


def _drawn(family: str, place: int, seed: int) -> Run:
    return simulate(np.random.default_rng([seed, place]), str(place), FAMILIES[family])


def _stated(run: Run) -> list[Statement]:
    return backtest(run.series, min_checkpoints=FEWEST, methods={name: METHODS[name] for name in FAST})


def _after_rise(runs: Sequence[Run], stated: Sequence[Statement]) -> list[Statement]:
    """The statements whose origin is after a rise that its checkpoints show."""
    seen = set()
    for run in runs:
        whole = run.series[0]
        for tokens in whole.tokens:
            s = whole.until(tokens)
            if len(s.x) >= 4 and risen(History(s.x, s.loss_fp, np.full_like(s.x, s.scatter), s.phase)):
                seen.add((s.run, float(tokens)))
    return [s for s in stated if (s.run, s.origin_tokens) in seen]


def _apart(stated: Sequence[Statement]) -> Iterator[list[object]]:
    """What each run alone holds, of losses after quantization."""
    for run in dict.fromkeys(s.run for s in stated):
        own = [s for s in stated if (s.run, s.method, s.what) == (run, FORECAST, What.LOSS)]
        kept = [s for s in own if s.as_assumed]
        shares = [float(np.mean([each(s) for s in kept])) for each in (lambda s: not s.refuted, lambda s: s.half)]
        yield [run, len(kept), *shares, len(own) - len(kept)]


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
            halves = [s.half for s in own]
            half, text = next(s.half for s in own if s.bits is None), text.replace("90", "50")
            yield Claim(text, half, min(halves), max(halves), HALF[0], "at least")
            yield Claim(f"{text} (no wider than promised)", half, min(halves), max(halves), HALF[1])


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
    every = [s for s in stated if s.what is What.TURN and s.method == FORECAST and s.bits in BITS]
    own = [s for s in every if s.as_assumed]
    groups = {"all": own, "that turned before the origin": [s for s in own if truth[s.run, s.bits] < s.origin_tokens]}
    groups["that turn later, within the run"] = [
        s for s in own if s.origin_tokens <= truth[s.run, s.bits] < last[s.run, s.bits]
    ]
    two_ends = [s for s in own if math.isfinite(s.high)]
    groups["stated with two ends"] = two_ends
    groups["stated with two ends, the upper one beyond the origin"] = [s for s in two_ends if s.high > s.origin_tokens]
    beyond = [s for s in every if not math.isfinite(s.high) and s.low >= s.origin_tokens]
    groups[NOT_BEFORE] = [s for s in beyond if s.as_assumed]
    groups[f"{NOT_BEFORE}; the learning rate did otherwise later"] = [s for s in beyond if not s.as_assumed]
    for name, cases in groups.items():
        if not cases:
            continue
        wrong = float(np.mean([not s.low <= truth[s.run, s.bits] <= s.high for s in cases]))
        closed = float(np.mean([math.isfinite(s.high) for s in cases]))
        made = float(np.mean([s.made for s in cases]))
        text = f"D_crit, {len(cases)} cases ({name})"
        yield Claim(f"{text}: statements that exclude the exact D_crit", wrong, wrong, wrong, REFUTED)
        yield Claim(f"{text}: share with two ends", closed, closed, closed)
        yield Claim(f"{text}: share with two ends, or a lower one at or beyond the origin", made, made, made)
