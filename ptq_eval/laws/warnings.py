"""Warnings that accompany a fit, each a kind with its facts; `report/run/warnings.py` has the sentences.

The gravest is the confound of Catalan-Tatjer et al. (arXiv 2510.06213): degradation jumps when the learning rate
decays and hardly depends on the number of tokens where all models were annealed alike.  Intermediate checkpoints
of one decaying run therefore cannot separate the effects of D and of the learning rate.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from ptq_eval.laws.base import FitResult, n_distinct
from ptq_eval.laws.findings import Caution, Finding, Why, caution
from ptq_eval.laws.fit.requirements import MIN_SIZES
from ptq_eval.laws.turning.observed import TurningPoint
from ptq_eval.laws.turning.predicted import CriticalTokens, poor_fit
from ptq_eval.laws.turning.significance import MIN_TO_TEST, SIGNIFICANCE
from ptq_eval.laws.turning.verdict import MAX_FACTOR, VerdictKind
from ptq_eval.results.points import FULL_PRECISION, Config, Point, by
from ptq_eval.sampling import errors_needed

FEW_RUNS = 10
FEW_CHECKPOINTS = 4

SCHEDULES = ("decaying", "constant", "unknown", "annealed")
"""What the checkpoints of a run may be, in the order of the warnings; see `schedule`."""


def cautions(
    points: Sequence[Point], rises: Mapping[str, TurningPoint], critical: Sequence[CriticalTokens]
) -> list[Finding]:
    """All warnings that the points and what was made of them call for.

    `rises`: by trajectory, the turning point of the full-precision loss.
    """
    return [
        *_full_precision_rises(rises),
        *_schedules(points),
        *_mixed(points),
        *_few(points),
        *_few_sizes(points),
        *_negative(points),
        *_extrapolated(critical),
    ]


def schedule(points: Sequence[Point]) -> str:
    """Of the checkpoints of one run: "decaying", "constant", "annealed" (each separately) or "unknown"."""
    ordered = sorted(points, key=lambda p: p.D)
    phases = {p.phase for p in ordered if p.phase}
    if phases == {"annealed"}:
        return "annealed"
    rates = np.array([p.learning_rate for p in ordered])
    known = bool(np.all(np.isfinite(rates)))
    peak = int(np.argmax(rates)) if known else 0
    if phases & {"decay", "annealed"} or (known and rates[peak:].min() < 0.99 * rates[peak]):
        return "decaying"
    return "constant" if known or (phases and all(p.phase for p in ordered)) else "unknown"


def _full_precision_rises(rises: Mapping[str, TurningPoint]) -> list[Finding]:
    found = []
    for run, turn in rises.items():
        if not turn.rise > errors_needed(turn.evaluation_df) * turn.evaluation_se:
            continue
        unknown = math.isnan(turn.rise_se)
        scatter = "unknown" if turn.untested else "beyond" if turn.adjusted_p <= SIGNIFICANCE else "within"
        facts = {"run": run, "tokens": turn.tokens, "rise": turn.rise, "scatter": scatter}
        error = turn.evaluation_se if unknown else turn.rise_se
        found.append(caution(Caution.FULL_PRECISION_RISES, **facts, error=error))
    return found


def _schedules(points: Sequence[Point]) -> list[Finding]:
    runs: dict[str, list[str]] = {}
    for run, group in by(points, "run").items():
        if len({p.D for p in group}) > 1:
            runs.setdefault(schedule(group), []).append(run)
    return [caution(Caution.SCHEDULE, schedule=kind, runs=runs[kind]) for kind in SCHEDULES if kind in runs]


def _mixed(points: Sequence[Point]) -> list[Finding]:
    annealed = [p.phase == "annealed" for p in points]
    return [] if all(annealed) or not any(annealed) else [caution(Caution.MIXED_PHASES)]


def _few(points: Sequence[Point]) -> list[Finding]:
    found = []
    n_runs = len(by(points, "training"))
    if n_runs < FEW_RUNS:
        found.append(caution(Caution.FEW_RUNS, runs=n_runs, needed=FEW_RUNS))
    for name, group in by(points, "trajectory").items():
        n = len({p.D for p in group})
        if n < FEW_CHECKPOINTS:
            found.append(caution(Caution.NO_TREND, trajectory=name, points=n, needed=FEW_CHECKPOINTS))
        elif n < MIN_TO_TEST:
            found.append(caution(Caution.SCATTER_UNSURE, trajectory=name, points=n, needed=MIN_TO_TEST))
    return found


def _few_sizes(points: Sequence[Point]) -> list[Finding]:
    """With two sizes, whatever else differs between their runs is attributed to size."""
    sizes = n_distinct([p.N for p in points])
    return [caution(Caution.RUNS_OF_SIZES, sizes=sizes)] if 1 < sizes < MIN_SIZES else []


def _negative(points: Sequence[Point]) -> list[Finding]:
    groups = by([p for p in points if p.config.quantizer != FULL_PRECISION], "config")
    counts = ((config, sum(p.delta < 0 for p in group), len(group)) for config, group in groups.items())
    return [
        caution(Caution.NEGATIVE_DELTAS, quantizer=config.quantizer, negative=negative, deltas=n, format=config.format)
        for config, negative, n in counts
        if negative
    ]


def poor_fits(config: Config, result: FitResult) -> list[Finding]:
    """A warning if the law describes the deltas of a configuration poorly; see `turning.predicted.poor_fit`."""
    poor = poor_fit(result)
    names = ("quantizer", "group_size", "calibration", "format")
    about = {name: getattr(config, name) for name in names}
    return [caution(Caution.POOR_FIT, **about, **poor.to_dict())] if poor else []


def _extrapolated(critical: Sequence[CriticalTokens]) -> list[Finding]:
    said = [c for c in critical if c.verdict.kind is VerdictKind.PREDICTED or _too_far(c)]
    beyond = [c.extrapolation_factor for c in said if c.extrapolation_factor > 1]
    if not beyond:
        return []
    far = sum(factor > MAX_FACTOR for factor in beyond)
    facts = {"extrapolated": len(beyond), "critical_tokens": len(critical), "largest": max(beyond)}
    return [caution(Caution.EXTRAPOLATED, **facts, too_far=far, limit=MAX_FACTOR)]


def _too_far(critical: CriticalTokens) -> bool:
    reason = critical.verdict.reason
    return reason is not None and reason.kind is Why.TOO_FAR
