"""Do 90 % intervals of δ hold its mean over all draws of the calibration windows, as `--calib-repeats` promises?

GPTQ and AWQ are measured with many draws of the calibration windows, each on every window of a text.  One trial is
what a run sees: k of the draws, and a sample of the windows, combined by the functions that a run uses.  The truth is
the mean of δ over all draws and over the whole text.

All checkpoints, methods and bit-widths of a trial have the same draws and windows, as in a run.  The many draws stand
for infinitely many.  The mean of k of m draws is nearer to that of all m than to that of infinitely many, by √(1 − k/m)
in standard deviation, so the part of the error that is due to the draws is divided by that factor: its variance is then
that of k draws of the population that the m were drawn from.

What was measured is kept in `folder`, and measured once.
"""

from __future__ import annotations

import copy
import math
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from benchmarks.harness import SEED, Claim, Setup
from ptq_eval.checkpoints import discover, verify_all
from ptq_eval.config.run import RunConfig
from ptq_eval.measure.sweep import sweep
from ptq_eval.measure.trials import Workload, make_plan
from ptq_eval.records import Checkpoint, Measurement, Sample
from ptq_eval.results.draws import add_calibration, combined
from ptq_eval.results.store import Store
from ptq_eval.sampling import design_of, spread

METHODS = ("gptq", "awq")
DRAWS, WINDOWS, AT_ONCE = 16, 640, 32
REPEATS, TRIALS = (2, 3, 4), 300
LEVEL, LIMITS = 0.9, (0.85, 0.95)
COLUMNS = [
    *("draws", "checkpoint", "method", "bits", "inside", "r.m.s. z", "mean width"),
    *("inside, own variance", "mean width, own variance", "calibration sd", "over √KL", "sampling se", "δ"),
]


def folder() -> Path:
    """Where measurements are kept from one call to the next."""
    return Path(tempfile.gettempdir()) / "ptq-eval-benchmarks" / "calibration"


def chosen(setup: Setup) -> list[Checkpoint]:
    """Every fourth checkpoint of the run with the fewest parameters, to its last; a rehearsal takes the last alone."""
    found = sorted(discover([setup.trajectory]), key=lambda c: (c.params or 0, c.run, c.tokens or 0))
    own = [checkpoint for checkpoint in found if checkpoint.run == found[0].run]
    return verify_all(own[-1:] if setup.quick else own[::-4][::-1])


def measured(checkpoint: Checkpoint, text: str, quick: bool) -> list[Measurement]:
    """Every draw, method and bit-width on windows spread over the text, full precision first."""
    options: dict[str, Any] = {"bits": (3, 4)} if quick else {}
    config = RunConfig(
        quantizers=METHODS,
        eval_text=text,
        eval_windows=64 if quick else WINDOWS,
        eval_seed=SEED,
        calib_windows=(4,) if quick else (48,),
        calib_repeats=6 if quick else DRAWS,
        **options,
    )
    return kept(make_plan([checkpoint], config).workloads[0], config.resolve_device())


def kept(work: Workload, device: str) -> list[Measurement]:
    """The measurements of all trials of `work`, full precision first; an earlier call's are read back."""
    store = Store(folder())
    done = store.keys()
    missing = [trial for trial in work.trials if trial.key() not in done]
    ordered = sorted(missing, key=lambda trial: (trial.scheme is not None, trial.calibration_corpus))
    with store.writer() as writer:
        for start in range(0, len(ordered), AT_ONCE):
            part = ordered[start : start + AT_ONCE]
            for measurement in sweep(work, part, device=device, tick=lambda amount: None):
                writer.append(measurement)
    keys = {trial.key() for trial in work.trials}
    found = [m for m in store.measurements() if m.trial.key() in keys]
    return sorted(found, key=lambda m: m.trial.scheme is not None)


@dataclass(frozen=True)
class Cell:
    """One checkpoint, method and bit-width: losses per token after minus before, and KL divergences per token, both
    [draws, windows]."""

    checkpoint: str
    method: str
    bits: int
    difference: np.ndarray
    divergence: np.ndarray


def by_method(found: Sequence[Measurement]) -> tuple[Measurement, dict[tuple[str, int], list[Measurement]]]:
    """The full-precision measurement of one checkpoint, and its others by method and bits, draws in one order."""
    (full,) = [m for m in found if m.trial.scheme is None]
    groups: dict[tuple[str, int], list[Measurement]] = {}
    for m in sorted(found, key=lambda m: m.trial.calibration_corpus):
        if m.trial.scheme is not None:
            groups.setdefault((m.trial.quantizer, m.trial.bits or 0), []).append(m)
    return full, groups


def cells_of(found: Sequence[Measurement]) -> list[Cell]:
    """The cells of one checkpoint, all with the same draws in the same order."""
    full, groups = by_method(found)
    return [
        Cell(
            full.trial.checkpoint.name,
            method,
            bits,
            np.array([np.subtract(m.nll, full.nll) / np.array(m.n_tokens) for m in own]),
            np.array([np.array(m.kl) / np.array(m.n_tokens) for m in own]),
        )
        for (method, bits), own in groups.items()
    ]


def judged(cells: Sequence[Cell], repeats: int) -> list[list[Any]]:
    """A row of `COLUMNS` for each cell."""
    rng, (draws, total) = np.random.default_rng([SEED, repeats]), cells[0].difference.shape
    found, size = np.empty((TRIALS, len(cells), 5)), total // 4
    for trial in range(TRIALS):
        places = spread(total, size, int(rng.integers(2**31)))
        own = rng.choice(draws, repeats, replace=False)
        found[trial] = list(_trial(cells, places, own))
    rows = []
    for cell, (gap, error, reach, alone, sampling) in zip(cells, found.transpose(1, 2, 0)):
        spread_of = float(cell.difference.mean(axis=1).std(ddof=1))
        inside, before = (float(np.mean(np.abs(gap) <= ends)) for ends in (reach, alone))
        z, widths = float(np.sqrt(np.mean((gap / error) ** 2))), [2 * float(np.mean(v)) for v in (reach, alone)]
        over = spread_of / math.sqrt(float(cell.divergence.mean()))
        about = [cell.checkpoint, cell.method, cell.bits, inside, z, widths[0], before, widths[1]]
        rows.append([repeats, *about, spread_of, over, float(np.median(sampling)), float(cell.difference.mean())])
    return rows


def _trial(cells: Sequence[Cell], places: np.ndarray, own: np.ndarray) -> Iterator[tuple[float, ...]]:
    """For each cell: δ minus the truth, its error, half of the interval, half of that without other cells, and the part
    of the error that the windows explain."""
    draws, total = cells[0].difference.shape
    design = design_of(Sample("spread", total), len(places))
    rows = [_row(cell, places, own, design) for cell in cells]
    alone, sampling = copy.deepcopy(rows), [row["delta_se"] for row in rows]
    add_calibration(rows)
    for row in alone:
        row["kl"] = math.nan
    add_calibration(alone)
    for cell, row, single, of_windows in zip(cells, rows, alone, sampling):
        of_draws = float(cell.difference[own].mean() - cell.difference.mean()) / math.sqrt(1 - len(own) / draws)
        gap = float(row["delta"] - cell.difference[own].mean()) + of_draws
        reach = (r["delta_se"] * _quantile(r["delta_df"]) for r in (row, single))
        yield gap, row["delta_se"], *reach, of_windows


def _row(cell: Cell, places: np.ndarray, own: np.ndarray, design: Any) -> dict[str, Any]:
    """The row of a table before the draws are added to its error."""
    after = cell.difference[np.ix_(own, places)]
    divergence = cell.divergence[np.ix_(own, places)].mean(axis=1)
    each = [
        {"quantizer": cell.method, "delta": float(values.mean()), "loss_q": 0.0, "status": "ok", "kl": float(kl)}
        for values, kl in zip(after, divergence)
    ]
    return combined(each, after, np.zeros(len(places)), design)


def _quantile(df: float) -> float:
    return float(stats.t.ppf((1 + LEVEL) / 2, df))


def claims(text: str, cells: Sequence[Cell], rows: Sequence[Sequence[Any]]) -> Iterator[Claim]:
    """The mean share inside over all cells for each number of draws, with the range of its means over bit-widths."""
    draws, total = cells[0].difference.shape
    about = f"{text}, {total} windows of it: δ over all {draws} draws of the calibration windows"
    for repeats in REPEATS:
        own = [row for row in rows if row[0] == repeats]
        what = (
            f"{about}, 90 % intervals from {repeats} draws, {len(own)} cells × {TRIALS} trials of {total // 4} windows"
        )
        for name, place, limits in (("", 4, LIMITS), ("each cell with its own variance, ", 7, (None, None))):
            by_bits = [float(np.mean([r[place] for r in own if r[3] == bits])) for bits in {r[3] for r in own}]
            share, ends = float(np.mean([row[place] for row in own])), (min(by_bits), max(by_bits))
            yield Claim(f"{what}, {name}share inside", share, *ends, limits[0], "at least")
            if limits[1]:
                yield Claim(f"{what}, {name}share inside (no wider than promised)", share, *ends, limits[1])
        yield from by_width(f"{what}, share inside", own, 3, 4)
        shorter = [row[6] / row[8] for row in own]
        yield Claim(
            f"{what}, width over that with its own variance", float(np.median(shorter)), min(shorter), max(shorter)
        )
    over = [row[10] for row in rows if row[0] == REPEATS[0]]
    yield Claim(f"{about}: standard deviation over √KL", float(np.median(over)), min(over), max(over))
    between = correlations(cells)
    yield Claim(f"{about}: correlation of two cells", float(np.mean(between)), float(min(between)), float(max(between)))


def by_width(what: str, rows: Sequence[Sequence[Any]], bits: int, inside: int) -> Iterator[Claim]:
    """The mean share inside of each bit-width with the range of its single cells, from the columns of those indices."""
    for width in sorted({row[bits] for row in rows}):
        own = [row[inside] for row in rows if row[bits] == width]
        yield Claim(f"{what}, {width} bits (range of single cells)", float(np.mean(own)), min(own), max(own))


def correlations(cells: Sequence[Cell]) -> np.ndarray:
    """Those over draws of the deltas of two cells, of every pair."""
    matrix = np.corrcoef([cell.difference.mean(axis=1) for cell in cells])
    return matrix[np.triu_indices(len(cells), 1)]


def rows_and_claims(text: str, name: str, setup: Setup) -> tuple[list[list[Any]], list[Claim]]:
    """The table of a text and what it claims; `name` is how the text is called."""
    cells = [cell for checkpoint in chosen(setup) for cell in cells_of(measured(checkpoint, text, setup.quick))]
    rows = [row for repeats in REPEATS for row in judged(cells, repeats)]
    return rows, list(claims(name, cells, rows))
