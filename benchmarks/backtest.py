"""What forecasts from earlier checkpoints would have stated, against the later ones, over every stored run.

Stored are the embedded trajectory and the runs of results/first-light (from five checkpoints on; `ptq-eval backtest`
asks for eight).  What the forecast assumes beforehand was chosen by simulated runs (`benchmarks/forecast.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.harness import ROOT, SEED, Claim, Outcome, Setup
from ptq_eval.laws.forecast.backtest import Ahead, Statement, What, backtest
from ptq_eval.laws.forecast.baselines import FORECAST, METHODS, Method
from ptq_eval.laws.forecast.forecast import draw, turn, untested
from ptq_eval.laws.forecast.score import Score, best_baseline, scores, total
from ptq_eval.laws.forecast.series import Series, series_of
from ptq_eval.results.points import read
from tests.laws.forecast.support import noise

STUDIES = ("embedded", "first-light/annealed", "first-light/constant")
FEWEST = 5
COVERAGE = (0.85, 0.95)
REFUTED, STATED = 0.10, 0.80
AHEAD = {Ahead.NEXT: "one checkpoint ahead", Ahead.TWICE: "at 2 times D", Ahead.FOUR_TIMES: "at 4 times D"}
ALONE: dict[str, Method] = {FORECAST: METHODS[FORECAST]}
COLUMNS = ["method", "what", "bits", "target", "n", "stated", "coverage", "width", "score"]


def measure(setup: Setup) -> Outcome:
    """Every statement of the forecast and of its baselines, summed up."""
    studies = {study: _stated(study, ALONE if setup.quick else METHODS) for study in STUDIES}
    stored = [s for own in studies.values() for s in own]
    outcome, found = Outcome(), scores(stored)
    outcome.claims = [*_coverage(found), *_alone(studies), *_turns(found, stored), *_against(found)]
    shown = [s for s in found if s.method == FORECAST or s.ahead is None]
    outcome.details["stored runs"] = {"columns": COLUMNS, "rows": [_row(score) for score in shown]}
    outcome.claims += _flat(20 if setup.quick else 100)
    return outcome


def _stated(study: str, methods: dict[str, Method]) -> list[Statement]:
    table = pd.read_csv(ROOT / "results" / study / "degradation.csv")
    series = series_of(read(table.to_dict("records"))[0])  # type: ignore[arg-type]
    return backtest(series, min_checkpoints=FEWEST, seed=SEED, methods=methods)


def _alone(studies: dict[str, list[Statement]]) -> Iterator[Claim]:
    """Coverage of the loss in each study on its own, over all distances, with its range over them.

    Two to four runs of one kind may well hold more than 95 %, so only the lower end is a goal.
    """
    for study in dict.fromkeys(name.split("/")[0] for name in studies):
        own = [s for name, stated in studies.items() if name.split("/")[0] == study for s in stated]
        own = [s for s in own if s.what is What.LOSS and s.method == FORECAST]
        shares = [float(np.mean([not s.refuted for s in own if s.ahead is ahead])) for ahead in AHEAD]
        text = f"{study} alone: 90 % intervals of loss after quantization, share inside"
        yield Claim(
            text, float(np.mean([not s.refuted for s in own])), min(shares), max(shares), COVERAGE[0], "at least"
        )


def _flat(curves: int) -> Iterator[Claim]:
    """How often flat curves with scatter are said to turn between two ends, with the forecast's rule and without."""
    for phi in (0.0, 0.5):
        ruled, raw = [], []
        for n in (5, 9, 15):
            rng, x = np.random.default_rng(SEED), np.log(1e6 * 2.0 ** np.arange(n))
            found = []
            for _ in range(curves):
                loss, delta = 3 + 0.01 * noise(n, rng, phi), 0.3 * (1 + 0.05 * noise(n, rng, phi))
                own = Series("run", "rtn", 2.0, 1e5, np.exp(x), loss, delta, np.full(n, 0.003), np.full(n, np.nan))
                said = turn(draw(own, [own]))
                found.append([said.high, untested(said, own.tokens[-1]).high])
            shares = np.mean(np.isfinite(found), axis=0)
            raw.append(float(shares[0]))
            ruled.append(float(shares[1]))
        text = f"simulated, flat curves of 5, 9 and 15 checkpoints, φ = {phi:g}: share with a D_crit of two ends"
        yield Claim(text, float(np.mean(ruled)), min(ruled), max(ruled), 0.08)
        yield Claim(f"{text}, had the turn needed no test", float(np.mean(raw)), min(raw), max(raw))


def _coverage(found: Sequence[Score]) -> Iterator[Claim]:
    """Coverage at each distance with its range over bit-widths; two claims, one for each end of the goal."""
    for ahead, words in AHEAD.items():
        for what in (What.LOSS, What.DELTA):
            score = next(
                (s for s in found if (s.method, s.what, s.bits, s.ahead) == (FORECAST, what, None, ahead)), None
            )
            if score is None:
                continue
            own = [s.coverage for s in found if (s.method, s.what, s.ahead) == (FORECAST, what, ahead)]
            about = "loss after quantization" if what is What.LOSS else "δ"
            text, both = f"stored runs: 90 % intervals of {about} {words}, share inside", (min(own), max(own))
            yield Claim(text, score.coverage, *both, COVERAGE[0], "at least")
            if what is What.LOSS:
                yield Claim(f"{text} (no wider than promised)", score.coverage, *both, COVERAGE[1])


def _turns(found: Sequence[Score], stored: Sequence[Statement]) -> Iterator[Claim]:
    score = total(found, What.TURN)
    if score is not None:
        own = [s for s in found if (s.method, s.what) == (FORECAST, What.TURN)]
        refuted, made = [s.refuted for s in own], [s.made for s in own]
        text = f"stored runs: D_crit, {score.n} decisive cases"
        yield Claim(f"{text}, statements refuted", score.refuted, min(refuted), max(refuted), REFUTED)
        yield Claim(
            f"{text}, share with two ends, or a lower one at or beyond the origin",
            score.made,
            min(made),
            max(made),
            STATED,
            "at least",
        )
        cases = [s for s in stored if s.what is What.TURN and s.method == FORECAST and s.decisive]
        closed = sum(np.isfinite(s.high) for s in cases) / len(cases)
        beyond = sum(s.low >= s.origin_tokens for s in cases) / len(cases)
        yield Claim(f"{text}, share with two ends", closed, closed, closed)
        yield Claim(f"{text}, share whose lower end is at or beyond the origin", beyond, beyond, beyond)


def _against(found: Sequence[Score]) -> Iterator[Claim]:
    """The mean interval score minus the best baseline's, all bit-widths together and each alone."""
    for what, unit in ((What.LOSS, "log loss"), (What.TURN, "log D of the lowest checkpoint")):
        for bits in dict.fromkeys(s.bits for s in found if s.what is what):
            own, best = total(found, what, bits), best_baseline(found, what, bits)
            if own and best:
                gap, width = own.score - best.score, "all bit-widths" if bits is None else f"{bits:g} bits"
                text = f"stored runs: interval score of {unit}, forecast ({own.score:.3g}) minus best baseline"
                yield Claim(f"{text} ({best.method}, {best.score:.3g}), {width}", gap, gap, gap, 0.0)


def _row(score: Score) -> list[Any]:
    target = score.ahead.value if score.ahead else "all"
    bits = "all" if score.bits is None else score.bits
    return [
        score.method, score.what.value, bits, target, score.n, score.made, score.coverage, score.width, score.score,
    ]  # fmt: skip
