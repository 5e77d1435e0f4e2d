"""What two results of one cell say of each other: window by window from records, or from two rows of tables.

Records are compared on the windows that both measured, which are all of them unless a measurement stopped early
(`early_stop`); tokens and design refer to these windows.  Rows alone are not paired any more: the errors of both δ
are added, which bounds the error of the difference however the two depend on each other.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from ptq_eval.results.gate.chance import EXACT, Luck
from ptq_eval.results.gate.decision import Evidence
from ptq_eval.results.points import number
from ptq_eval.sampling import Design, independent, mean_and_error

if TYPE_CHECKING:
    from ptq_eval.records import Measurement
    from ptq_eval.results.gate.sides import Cell


@dataclass(frozen=True)
class Compared:
    """What the results of one cell say.

    base, new: losses, nats per token.  evidence: without chance yet where `roundings` decides it.  changed: the
    evidence that two independently rounded models would give, on which power rests where nothing changed.
    windows: (common, base, new).  draws: calibration draws in common.  luck_known: whether the chance of the roundings
    is.
    """

    base: float
    new: float
    evidence: Evidence
    changed: Evidence
    windows: tuple[int, int, int]
    draws: int = 1
    roundings: Luck | None = None
    luck_known: bool = True


def from_records(old: Cell, other: Cell) -> Compared | None:
    """The comparison of two cells with records; None where they have no window in common."""
    both = in_common(old, other)
    assert old.full is not None
    assert other.full is not None
    design = old.design or independent(len(old.full.nll))
    losses = np.array([[_by_window(m, design) for m in pair] for pair in both])
    common = np.flatnonzero(np.all([_seen(m, design) for pair in both for m in pair], axis=0))
    if not len(common):
        return None
    full = np.array([_by_window(m, design)[common] for m in (old.full, other.full)])
    tokens = np.asarray(old.full.n_tokens, float)[common]
    some = design if len(common) == len(design.units) else design.at(common)
    base, new = losses[:, 0, common], losses[:, 1, common]
    sds = [number(cell.row.get("rounding_sd")) for cell in (old, other)]
    numerics = number(old.row.get("numerics_sd"))
    luck = Luck((sds[0], sds[1]), numerics, base - full[0], new - full[1])
    weights = tokens / tokens.sum()
    evidence, apart = of_losses(base, new, tokens, some), of_losses(full[:1], base, tokens, some)
    return Compared(
        float((base.mean(axis=0) * weights).sum()),
        float((new.mean(axis=0) * weights).sum()),
        evidence,
        replace(evidence, error=math.sqrt(2) * apart.error, chance=luck.independent),
        (len(common), min(len(m.nll) for m, _ in both), min(len(m.nll) for _, m in both)),
        len(both),
        luck if np.isfinite(losses[:, :, common]).all() else None,
        luck.known,
    )


def of_losses(base: np.ndarray, new: np.ndarray, tokens: np.ndarray, design: Design) -> Evidence:
    """The evidence of losses per token [draws, windows] of both, without chance."""
    if (infinite := beyond(base, new)) is not None:
        worsening, error = infinite, 0.0
    else:
        found = mean_and_error((new - base).mean(axis=0) * tokens, tokens, design)
        worsening, error = (0.0 if abs(value) < EXACT else value for value in found)
    return Evidence(worsening, error, float(design.freedom), len(tokens), share=design.share)


def beyond(base: np.ndarray, new: np.ndarray) -> float | None:
    """The worsening where a value is not finite, which is worse than any that is: ±inf, or 0 where both have one."""
    finite = [bool(np.isfinite(losses).all()) for losses in (base, new)]
    if all(finite):
        return None
    return {(True, False): math.inf, (False, True): -math.inf}.get((finite[0], finite[1]), 0.0)


def in_common(old: Cell, other: Cell) -> list[tuple[Measurement, Measurement]]:
    """The measurements of both with the same calibration windows."""
    own = {m.trial.calibration_corpus: m for m in other.draws if m.nll}
    return [(m, own[m.trial.calibration_corpus]) for m in old.draws if m.nll and m.trial.calibration_corpus in own]


def _seen(m: Measurement, design: Design) -> np.ndarray:
    """Whether each window [n] was measured."""
    found = np.zeros(len(design.units), bool)
    found[list(m.windows) or slice(None)] = True
    return found


def _by_window(m: Measurement, design: Design) -> np.ndarray:
    """Loss per window of the corpus [n], nats per token; NaN where it was not measured."""
    found = np.full(len(design.units), np.nan)
    found[list(m.windows) or slice(None)] = np.asarray(m.nll) / np.asarray(m.n_tokens)
    return found


def from_rows(old: Cell, other: Cell) -> Compared:
    """The comparison of two rows, its error a bound."""
    a, b = old.row, other.row
    base, new = number(a["loss_q"]), number(b["loss_q"])
    sds = [number(row.get("rounding_sd")) for row in (a, b)]
    counts = [number(row.get("windows")) for row in (a, b)]
    n = int(min((count for count in counts if math.isfinite(count)), default=0))
    dfs = [df for row in (a, b) if math.isfinite(df := number(row.get("delta_df")))]
    evidence = Evidence(new - base, 0.0, min(dfs, default=float(max(n - 1, 1))), n)
    known = all(map(math.isfinite, sds))
    error = number(a["delta_se"]) + number(b["delta_se"])
    changed = replace(evidence, error=error, chance=math.hypot(*sds) if known else 0.0)
    if (base, a["delta"]) != (new, b["delta"]):  # another model
        evidence = changed
    return Compared(base, new, evidence, changed, (n, n, n), luck_known=known)
