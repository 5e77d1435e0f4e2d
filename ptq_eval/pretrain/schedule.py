"""Learning-rate schedules, as factors of the peak rate.

constant   Warm-up, then the peak rate to the end: all checkpoints of a run are comparable with each other.
cosine     Warm-up, then half a cosine down to a tenth of the peak: in intermediate checkpoints D and the learning rate
           are confounded.
wsd        Warm-up, stable, decay (Hu et al. 2024, arXiv 2404.06395): a trunk at constant rate, and for each D a branch
           that leaves the trunk at (1 − decay)·D and decays linearly to zero at D.
"""

from __future__ import annotations

import math
from typing import Literal

Schedule = Literal["constant", "cosine", "wsd"]
SCHEDULES: tuple[Schedule, ...] = ("constant", "cosine", "wsd")


COSINE_FLOOR = 0.1


def factor(schedule: Schedule, step: int, *, warmup: int, total: int) -> float:
    """The learning rate at `step` (0-based) divided by the peak rate; for wsd, the trunk's."""
    if step < warmup:
        return (step + 1) / warmup
    if schedule == "cosine":
        done = (step - warmup) / max(1, total - warmup)
        return COSINE_FLOOR + (1 - COSINE_FLOOR) / 2 * (1 + math.cos(math.pi * min(1.0, done)))
    return 1.0


def branch_factor(step: int, *, start: int, end: int) -> float:
    """The same for a branch that decays linearly from the trunk's rate at step `start` to zero at `end`."""
    return max(0.0, (end - step) / max(1, end - start))


def branch_start(end: int, *, warmup: int, decay: float) -> int:
    """The step at which the branch that ends at `end` leaves the trunk."""
    return min(end - 1, max(warmup, round((1 - decay) * end)))


def phase(schedule: Schedule, step: int, *, warmup: int) -> str:
    """The schedule phase of a checkpoint saved after `step` steps of the trunk."""
    if step < warmup:
        return "warmup"
    return "decay" if schedule == "cosine" else "constant"
