"""What a reader must be told before believing a fit: one plain sentence each.

The gravest is the confound of Catalan-Tatjer et al. (arXiv 2510.06213): degradation jumps when the learning rate
decays and hardly depends on the number of tokens where all models were annealed alike.  Intermediate checkpoints
of one decaying run therefore cannot tell the effect of D from that of the learning rate.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from ptq_eval.laws.base import FitResult, n_distinct
from ptq_eval.laws.fit.bootstrap import MIN_RUNS
from ptq_eval.laws.turning.observed import MIN_FOR_MEDIAN, SIGNIFICANT, TurningPoint
from ptq_eval.laws.turning.predicted import FARTHEST, CriticalTokens, poorly
from ptq_eval.results.points import FULL_PRECISION, Config, Point, by

FEW_RUNS = 10
FEW_CHECKPOINTS = 4

_SCHEDULE = {
    "decaying": "are intermediate checkpoints of one decaying run: D and the learning rate change together, and "
    "degradation is known to jump when the learning rate decays (arXiv 2510.06213), so growth with D may be "
    "the learning rate's doing",
    "constant": "are intermediate checkpoints of one constant-rate run: the learning rate does not confound D, "
    "but no model is annealed, and annealed models may degrade otherwise (arXiv 2510.06213)",
    "unknown": "are intermediate checkpoints of one run of unknown schedule: if its learning rate decays, "
    "growth with D may be the learning rate's doing (arXiv 2510.06213)",
    "annealed": "are annealed models, each at its own D, not intermediate checkpoints; where they are branches of one "
    "trunk they share its seed and data order and are not independent runs",
}


def cautions(
    points: Sequence[Point], rises: Mapping[str, TurningPoint], critical: Sequence[CriticalTokens]
) -> list[str]:
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


def _full_precision_rises(rises: Mapping[str, TurningPoint]) -> list[str]:
    notes = []
    for run, turn in rises.items():
        if turn.rise > SIGNIFICANT * turn.evaluation_se:
            unknown = math.isnan(turn.rise_se)
            error = turn.evaluation_se if unknown else turn.rise_se
            size = f"{turn.rise:.2g} ± {error:.1g} nats per token at the last checkpoint"
            what = f"{run}: the full-precision loss itself rises after D = {turn.tokens:.3g} tokens, by {size}"
            meaning = "within the scatter of checkpoints"
            if unknown:
                meaning = "so few checkpoints do not tell whether that is their scatter"
            elif turn.rise > SIGNIFICANT * turn.rise_se:
                meaning = "the model got worse, not only its quantized form"
            notes.append(f"{what}: {meaning}")
    return notes


def _schedules(points: Sequence[Point]) -> list[str]:
    runs: dict[str, list[str]] = {}
    for run, group in by(points, "run").items():
        if len({p.D for p in group}) > 1:
            runs.setdefault(schedule(group), []).append(run)
    return [f"the points of {', '.join(runs[kind])} {text}" for kind, text in _SCHEDULE.items() if kind in runs]


def _mixed(points: Sequence[Point]) -> list[str]:
    annealed = [p.phase == "annealed" for p in points]
    if all(annealed) or not any(annealed):
        return []
    return [
        "annealed and other checkpoints enter one fit of delta: this mixes the effect of D with that of the learning "
        "rate (arXiv 2510.06213); fit the folder `annealed` alone"
    ]


def _few(points: Sequence[Point]) -> list[str]:
    notes = []
    n_runs = len(by(points, "training"))
    if n_runs < FEW_RUNS:
        what = f"only {n_runs} training run{'s' * (n_runs != 1)} (fewer than {FEW_RUNS})"
        notes.append(f"{what}: intervals say little about what another seed or data order would give")
    for name, group in by(points, "trajectory").items():
        count = len({p.D for p in group})
        if count < FEW_CHECKPOINTS:
            what = f"{count} point{'s' * (count != 1)} along D (fewer than {FEW_CHECKPOINTS})"
            notes.append(f"{name} has {what}: no trend in D can be judged from it")
        elif count < MIN_FOR_MEDIAN:
            what = f"only {count} points along D (fewer than {MIN_FOR_MEDIAN})"
            notes.append(f"{name} has {what}: it is hardly known how checkpoints scatter, a turn may be chance")
    return notes


def _few_sizes(points: Sequence[Point]) -> list[str]:
    """With two runs of two sizes, whatever else differs between them is taken for the effect of size."""
    n_runs = len(by(points, "training"))
    if n_runs >= MIN_RUNS or n_distinct([p.N for p in points]) < 2:
        return []
    return [
        f"C_T and gamma_N rest on {n_runs} runs of different size: their intervals do not cover differences "
        "between runs and are far too narrow; the critical tokens of these very runs are not affected"
    ]


def _negative(points: Sequence[Point]) -> list[str]:
    notes = []
    groups = by([p for p in points if p.config.quantizer != FULL_PRECISION], "config")
    for config, group in groups.items():
        negative = sum(p.delta < 0 for p in group)
        if negative:
            share = f"{negative} of {len(group)} deltas ({100 * negative / len(group):.0f} %) are negative"
            notes.append(f"{config.quantizer}: {share}; they are fitted like all others, not dropped")
    return notes


def poor_fit(config: Config, result: FitResult) -> list[str]:
    """A warning where the law describes the deltas of a configuration poorly; see `critical.poorly`."""
    how = poorly(result)
    return [
        f"{_name(config)}: the law describes these deltas poorly ({how}); its constants and what is predicted from "
        "them are not to be relied on"
    ] * bool(how)


def _name(config: Config) -> str:
    """A quantizer with what tells its configurations apart."""
    grid = f"group size {config.group_size}" if config.group_size else "one scale per row"
    calibration = f", {config.calibration}" if config.calibration not in ("", "none") else ""
    return f"{config.quantizer} ({grid}{calibration})"


def _extrapolated(critical: Sequence[CriticalTokens]) -> list[str]:
    beyond = [c.extrapolation_factor for c in critical if c.extrapolation_factor > 1]
    if not beyond:
        return []
    text = f"{len(beyond)} of {len(critical)} critical token counts are extrapolated beyond the largest D seen"
    text += f", by up to {max(beyond):.3g}×"
    far = sum(factor > FARTHEST for factor in beyond)
    return [f"{text}; {far} of them by more than {FARTHEST:g}×, too far to believe" if far else text]
