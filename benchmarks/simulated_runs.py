"""Simulated runs whose curves, and so D_crit, are known (`benchmarks/forecast.py`).

No simple law holds over a real run, so most of these depart from one.  The full-precision loss is E + B·D^−beta whose
fall per log D wanders; log delta follows one of four laws (a power, a saturating one, one in log D, a power whose
exponent falls) plus a wandering slope, or a wandering slope alone.  6 to 40 checkpoints span a factor of 10 to 1000 in
D; scatter is small or large, independent or autocorrelated.  Delta at 2, 3 and 4 bits is smaller by 4 each time, so
that many runs turn at 2 bits and few at 4; at 8 bits it is noise that grows, or tiny.

What a family may have beside: data repeated from some D on; a loss whose fall fades from some D on, or begins only at
some D; checkpoints evenly in D; a learning rate that decays, as a cosine or at the end; a loss that rises at the end.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ptq_eval.laws.forecast.series import Series

BITS, SMALLER = (2.0, 3.0, 4.0), 4.0
REPEATS = 15.4
"""Repetitions of the data after which most of their worth is gone (R*, Muennighoff et al.)."""
FINE = 4
"""Places of the exact curves per checkpoint."""
LAWS = ("power", "saturating", "logarithmic", "bent", "none")


@dataclass(frozen=True)
class Run:
    """One simulated run: its series, and D_crit of each in tokens, infinite where the curve falls to its end."""

    series: list[Series]
    truth: list[float]


@dataclass(frozen=True)
class Family:
    """What the runs of a family are drawn from: each constant one of a few values, or anywhere in a range.

    drift: how the fall of the full-precision loss wanders, as a share per root of log D; wander: the same of the slope
    of log delta, of which `shared` (a correlation) is common to the bit-widths, as is the same share of the scatter.
    scatter: of the loss, nats; relative: of delta.  size: delta at 2 bits, nats; smaller: its ratio from one bit-width
    to the next.  even and fading: the share of runs whose checkpoints are evenly in D, and whose loss flattens from
    some D on.  schedules: of the learning rate, "" where it is not recorded.
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
    even: float = 0.0
    fading: float = 0.0
    rising: bool = False
    """Whether the loss rises from some D on, as where few data are repeated often."""
    schedules: tuple[str, ...] = ("",)
    starting: bool = False
    """Whether the loss hardly falls at first, as before anything is learned."""


WANDERING = Family(
    (6, 21), (20, 200), (0.0, 0.2, 0.4), (0.0, 0.2, 0.4), (0.002, 0.006, 0.015), (0.03, 0.08, 0.15), (0.1, 0.8)
)
SMOOTH = Family(
    (8, 31), (20, 400), (0.0, 0.05, 0.1), (0.0, 0.05, 0.1), (0.0005, 0.001, 0.003), (0.003, 0.01, 0.03), (0.02, 0.8),
    shared=0.5, noise_at_8=False,
)  # fmt: skip
REPEATED = Family(
    (8, 16), (20, 400), (0.0, 0.05, 0.1), (0.0, 0.1, 0.2), (0.001, 0.003, 0.006), (0.01, 0.03, 0.06), (0.05, 1.0),
    smaller=5.0, shared=0.5, noise_at_8=False, repeated=True,
)  # fmt: skip
ROUGH = Family(
    (7, 26), (10, 1000), (0.03, 0.15, 0.3), (0.03, 0.15, 0.3), (0.001, 0.004, 0.01), (0.01, 0.05, 0.1), (0.05, 1.5),
    smaller=6.0, shared=0.7, noise_at_8=False,
)  # fmt: skip
FADING = Family(
    (8, 16), (20, 200), (0.0, 0.05, 0.1, 0.2), (0.0, 0.1, 0.2), (0.001, 0.003, 0.01), (0.01, 0.03, 0.06), (0.05, 1.0),
    shared=0.5, noise_at_8=False, fading=1.0,
)  # fmt: skip
EVEN = Family(
    (10, 31), (10, 30), (0.0, 0.1, 0.2), (0.0, 0.1, 0.2), (0.001, 0.004, 0.01), (0.01, 0.03, 0.1), (0.05, 1.0),
    shared=0.5, noise_at_8=False, even=1.0,
)  # fmt: skip
DECAYING = Family(
    (8, 21), (20, 100), (0.0, 0.05, 0.1), (0.0, 0.05, 0.1), (0.001, 0.004, 0.01), (0.01, 0.03, 0.06), (0.05, 1.0),
    shared=0.5, noise_at_8=False, even=0.5, schedules=("cosine", "wsd"),
)  # fmt: skip
RISING = Family(
    (8, 21), (10, 100), (0.0, 0.1), (0.0, 0.1, 0.2), (0.001, 0.004, 0.01), (0.01, 0.03, 0.06), (0.05, 1.0),
    shared=0.5, noise_at_8=False, rising=True,
)  # fmt: skip
HELD_OUT = Family(
    (6, 29), (8, 600), (0.02, 0.12, 0.25), (0.02, 0.12, 0.25), (0.0008, 0.003, 0.012), (0.008, 0.04, 0.1), (0.03, 1.2),
    smaller=5.0, shared=0.6, noise_at_8=False, even=0.4, fading=0.4, schedules=("", "", "cosine", "wsd"),
)  # fmt: skip
STARTING = Family(
    (5, 13), (16, 200), (0.0, 0.1, 0.2), (0.0, 0.1, 0.2), (0.001, 0.004, 0.01), (0.01, 0.03, 0.1), (0.05, 1.0),
    shared=0.5, noise_at_8=False, starting=True,
)  # fmt: skip
FAMILIES = {
    "wandering": WANDERING, "smooth": SMOOTH, "repeated": REPEATED, "rough": ROUGH, "flattening": FADING,
    "evenly spaced": EVEN, "decaying": DECAYING, "rising": RISING, "starting": STARTING, "held out": HELD_OUT,
}  # fmt: skip


def simulate(rng: np.random.Generator, name: str, family: Family = WANDERING) -> Run:
    """One run of a family."""
    x, seen = _places(rng, family)
    n, end = len(seen), seen[-1]
    drift, wander = rng.choice(family.drift), rng.choice(family.wander)
    scatter, relative = rng.choice(family.scatter), rng.choice(family.relative)
    phi, law, size = rng.choice((0.0, 0.5)), str(rng.choice(LAWS)), rng.uniform(*family.size)
    wander = max(family.wander) if law == "none" else wander
    schedule = str(rng.choice(family.schedules))
    phase = _phase(x, float(x[end]), schedule)
    ends = end + 1 if phase.any() else len(x)  # a run whose learning rate is zero goes no further
    loss = _loss(x, rng, drift, family, end, phase)
    measured = loss[seen] + scatter * _noise(n, rng, phi)
    known, series, truth = phase[seen] if schedule else np.full(n, np.nan), [], []
    common, common_noise, effect = _steps(x, rng), _noise(n, rng, phi), rng.uniform(0, 1)
    for place, bits in enumerate((*BITS, 8.0)):
        if bits == 8.0 and (family.noise_at_8 or rng.random() < 0.5):
            noise = 3e-4 * np.exp(0.3 * (x[seen] - x[0])) * rng.standard_normal(n)
            series.append(Series(name, "rtn", 8.0, 1e5, np.exp(x[seen]), measured, noise, np.full(n, 2e-4), known))
            truth.append(_least(x[:ends], loss[:ends]))
            continue
        steps = _together(common, _steps(x, rng), family.shared)
        scattered = 1 + relative * _together(common_noise, _noise(n, rng, phi), family.shared)
        exact = size / family.smaller**place * _grown(x, rng, law, wander, steps) * np.exp(effect * phase)
        delta, se = exact[seen] * scattered, 0.02 * exact[seen]
        series.append(Series(name, "rtn", bits, 1e5, np.exp(x[seen]), measured, delta, se, known))
        truth.append(_least(x[:ends], (loss + exact)[:ends]))
    return Run(series, truth)


def _places(rng: np.random.Generator, family: Family) -> tuple[np.ndarray, np.ndarray]:
    """Log D of the exact curves, twice as far as the checkpoints go, and where among them these are."""
    n, span = int(rng.integers(*family.checkpoints)), rng.uniform(*family.span)
    seen = np.arange(n) * FINE
    if rng.random() < family.even:
        first = 1e6 * span / n
        return np.log(first + (span * 1e6 - first) / (n - 1) / FINE * np.arange(2 * n * FINE)), seen
    return math.log(1e6) + math.log(span) / (n - 1) / FINE * np.arange(2 * n * FINE), seen


def _phase(x: np.ndarray, end: float, schedule: str) -> np.ndarray:
    """The share of the decay that is done: a cosine to a thousandth of the peak, or a line over the last 15 %."""
    share = np.minimum(np.exp(x - end), 1.0)
    if schedule == "cosine":
        return 0.999 * (1 - np.cos(np.pi * share)) / 2
    if schedule == "wsd":
        return 0.999 * np.clip((share - 0.85) / 0.15, 0, 1)
    return np.zeros_like(x)


def _loss(
    x: np.ndarray, rng: np.random.Generator, drift: float, family: Family, end: int, phase: np.ndarray
) -> np.ndarray:
    """The exact loss.  The learning rate acts as Tissue et al. found (2408.11029): progress counts its integral over D,
    and each decrease lowers the loss, with some delay."""
    steps = np.diff(np.exp(x))
    progress = np.log(np.exp(x[0]) + np.concatenate([[0.0], np.cumsum(steps * (1 - phase[1:]))]))
    useful = _useful(progress, rng.uniform(x[0] - math.log(REPEATS), x[end])) if family.repeated else progress
    loss = _falling(x, useful, rng, drift)
    if rng.random() < family.fading:
        place, rate = rng.uniform(x[0], x[end]), rng.uniform(0.8, 2.5)
        left = 1 / (1 + np.exp(rate * ((x[1:] + x[:-1]) / 2 - place)))
        loss = loss[0] + np.concatenate([[0.0], np.cumsum(np.diff(loss) * left)])
    if family.starting:
        place, rate = rng.uniform(x[0], x[0] + 0.4 * (x[end] - x[0])), rng.uniform(1.5, 4.0)
        begun = 1 / (1 + np.exp(-rate * ((x[1:] + x[:-1]) / 2 - place)))
        loss = loss[0] + np.concatenate([[0.0], np.cumsum(np.diff(loss) * begun)])
    if phase.any():
        delay, gain, late = rng.uniform(0.01, 0.1) * math.exp(x[end]), rng.uniform(0.03, 0.25), np.zeros_like(x)
        for i, step in enumerate(steps, 1):
            late[i] = phase[i] + (late[i - 1] - phase[i]) * math.exp(-step / delay)
        loss = loss - gain * late
    if family.rising:
        place = rng.uniform(x[0] + 0.3 * (x[end] - x[0]), x[end])
        loss = loss + rng.uniform(0.02, 0.3) * np.maximum(x - place, 0.0) ** rng.uniform(1.3, 3.0)
    return loss


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


def _falling(x: np.ndarray, useful: np.ndarray, rng: np.random.Generator, drift: float) -> np.ndarray:
    """E + B·D^−beta whose fall wanders; with data repeated, or a lower learning rate, D counts for less."""
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
