"""How much of its learning-rate decay a checkpoint has behind it, from what its records say."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

ANNEALED, AT_PEAK = "annealed", ("constant", "warmup")
AVERAGED = "averaged"
"""The phase of an average of several checkpoints' weights."""
KNOWN = ("warmup", "constant", "decay", "annealed", AVERAGED)
"""The phases of a schedule."""


def phase_of(
    rates: np.ndarray, phases: Sequence[str] | np.ndarray, runs: Sequence[str] | np.ndarray, tokens: np.ndarray
) -> tuple[np.ndarray, list[str]]:
    """S [n] of every checkpoint, from 1 (peak) to 2 (decayed to zero), and what a reader must know of it.

    rates [n]: learning rates, NaN where unknown; phases [n]: one of `KNOWN`, or ""; runs [n]: names of training runs;
    tokens [n]: D.  NaN for an average, and where neither rate nor phase tells.  The peak of a run is the highest rate
    among its own points, so the rate of a run's only checkpoint tells nothing.
    """
    runs_, phases_ = np.asarray(runs), np.asarray(phases)
    s = np.full(len(rates), np.nan)
    single = []
    for run in dict.fromkeys(runs_.tolist()):
        rows = np.flatnonzero((runs_ == run) & np.isfinite(rates))
        if not len(rows):
            continue
        if len(np.unique(tokens[rows])) == 1:
            single += [run] if np.any(~np.isin(phases_[rows], (ANNEALED, *AT_PEAK))) else []
            continue
        peak = rates[rows].max()
        first = tokens[rows[rates[rows] >= peak]].min()
        share = 1 - rates[rows] / peak if peak > 0 else np.ones(len(rows))
        s[rows] = 1 + np.where(tokens[rows] < first, 0.0, share)
    s[np.isin(phases_, AT_PEAK)] = 1.0
    s[phases_ == ANNEALED] = 2.0
    s[phases_ == AVERAGED] = np.nan  # it acts like a decay, but how much of one is not known
    notes = []
    if single:
        notes.append(
            f"{len(single)} runs have a single checkpoint, whose learning rate tells nothing of a decay: give their "
            "phase (`annealed`, `constant`) in a column `phase`"
        )
    return s, notes
