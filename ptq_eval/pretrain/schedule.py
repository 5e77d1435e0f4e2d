"""Learning-rate schedules, as a factor of the peak rate.

constant   warm-up, then the peak to the end: every checkpoint of one run is comparable with every other.
cosine     warm-up, then a half cosine down to a tenth of the peak: intermediate checkpoints confound D with the rate.
wsd        warm-up, stable, decay (Hu et al. 2024, arXiv 2404.06395): a constant trunk; each wanted D gets a branch of
           its own that leaves the trunk at (1 − decay)·D and falls linearly to zero at D.
"""

from __future__ import annotations

import math
from typing import Literal

Schedule = Literal["constant", "cosine", "wsd"]
SCHEDULES: tuple[Schedule, ...] = ("constant", "cosine", "wsd")


def factor(schedule: Schedule, step: int, *, warmup: int, total: int) -> float:
    """The rate at `step` (0-based) as a share of the peak; for wsd, of the trunk."""
    if step < warmup:
        return (step + 1) / warmup
    if schedule == "cosine":
        done = (step - warmup) / max(1, total - warmup)
        return 0.1 + 0.45 * (1 + math.cos(math.pi * min(1.0, done)))
    return 1.0


def branch_factor(step: int, *, start: int, end: int) -> float:
    """The rate at `step` of a branch that decays linearly from the trunk at `start` to zero at `end`."""
    return max(0.0, (end - step) / max(1, end - start))


def phase(schedule: Schedule, step: int, *, warmup: int) -> str:
    """The schedule phase of a checkpoint saved after `step` steps of the trunk."""
    if step < warmup:
        return "warmup"
    return "decay" if schedule == "cosine" else "constant"
