"""How often `ptq-eval compare` is right: false alarms of whole grids, worsenings caught, and its stated power.

Checkpoints are measured with many draws of the calibration windows on many windows of a text (as in
`calibration_draws`).  A simulated pair of results is a sample of the windows, as a run draws it, with one draw of the
calibration windows as the old result and another as the new one: nothing changed but chance.  The functions that the
command uses then make the evidence of every cell and decide.

another draw          the new result as it is.  The method is the same, but each model had its own luck: "model" has to
                      call that worse or better, "method" must not.
equal on the text     moved by a constant, so that both have exactly the same loss on the whole text.
other method          likewise, of another method: models that differ more from window to window.

Worsenings are put into one cell at a time, on top of "equal on the text".  They have the pattern of real damage from
window to window (the KL divergence at the next lower bits), scaled to a size that is known on the whole text.  One of
twice the tolerance counts where the comparison itself says that its windows suffice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from benchmarks import calibration_draws
from benchmarks.coverage import BOOKS, EMBEDDED
from benchmarks.harness import SEED, Claim, Outcome, Setup
from ptq_eval.config.gate import GateConfig
from ptq_eval.records import Measurement, Sample
from ptq_eval.results.gate.chance import Luck, chances
from ptq_eval.results.gate.decision import ASSURED, MULTIPLE, Evidence, Rule, decide
from ptq_eval.results.gate.decision import Outcome as Decision
from ptq_eval.results.gate.evidence import of_losses
from ptq_eval.sampling import Design, design_of, spread

GRIDS, POWER_GRIDS = 1000, 100
TOLERANCES = (0.0, 0.003, 0.01, 0.03)
JUDGES = ("model", "method")
SIZES = (1.0, 1.5, 2.0, 3.0, 5.0, 8.0)
"""True worsenings, in tolerances."""
FALSE_ALARMS, CAUGHT, GAP = 0.02, 0.95, 0.05
COLUMNS = [
    "judge",
    "tolerance",
    "bits",
    "worsening / tolerance",
    "caught",
    "stated",
    "windows suffice",
    "caught of these",
]


@dataclass(frozen=True, eq=False)
class Cell:
    """One checkpoint, method and bit-width on the whole text: δ per token [draws, windows], the standard deviation of
    a rounding [draws], that of the arithmetic, and the pattern of real damage [windows], of mean 1."""

    checkpoint: str
    method: str
    bits: int
    delta: np.ndarray
    rounding: np.ndarray
    numerics: float
    pattern: np.ndarray


def measure(setup: Setup) -> Outcome:
    """False alarms and power on each text."""
    outcome = Outcome()
    for text in setup.texts or (EMBEDDED, *([str(BOOKS)] if BOOKS.is_file() else [])):
        name = text.rsplit("/", 1)[-1]
        chosen = calibration_draws.chosen(setup)
        cells = [
            cell
            for checkpoint in chosen
            for cell in cells_of(calibration_draws.measured(checkpoint, text, setup.quick))
        ]
        total = cells[0].delta.shape[1]
        outcome.details[f"{name}, chance"] = {"columns": CHANCE_COLUMNS, "rows": [*chance_rows(cells)]}
        outcome.claims += false_alarms(name, cells, total // 4, 50 if setup.quick else GRIDS)
        found = [[*power_rows(cells, total // 4, 5 if setup.quick else POWER_GRIDS, judge)] for judge in JUDGES]
        for judge, rows in zip(JUDGES, found):
            outcome.claims += power_claims(name, judge, rows)
        outcome.details[f"{name}, power of {total // 4} windows"] = {"columns": COLUMNS, "rows": [*found[0], *found[1]]}
    return outcome


def cells_of(found: Sequence[Measurement]) -> list[Cell]:
    """The cells of one checkpoint, with their draws in one order."""
    full, groups = calibration_draws.by_method(found)
    deltas = {
        key: np.array([np.subtract(m.nll, full.nll) / np.array(m.n_tokens) for m in own]) for key, own in groups.items()
    }
    numerics, second = (float(full.details.get(name) or 0.0) for name in ("numerics", "second_order"))
    cells = []
    for (method, bits), own in groups.items():
        divergence = [max(sum(m.kl) / sum(m.n_tokens), 0.0) for m in own]
        rounding = [np.hypot(m.details["rounding"], second * kl) for m, kl in zip(own, divergence)]
        lower = max((b for m, b in groups if m == method and b < bits), default=bits)
        pattern = np.mean([np.array(m.kl) / np.array(m.n_tokens) for m in groups[method, lower]], axis=0)
        arrays = deltas[method, bits], np.array(rounding)
        cells.append(Cell(full.trial.checkpoint.name, method, bits, *arrays, numerics, pattern / pattern.mean()))
    return cells


CHANCE_COLUMNS = [
    "checkpoint",
    "method",
    "bits",
    "sd between draws",
    "by the records",
    "least share of windows' variance",
]


def chance_rows(cells: Sequence[Cell]) -> Iterator[list[Any]]:
    """How far draws move δ, how far the records say that chance does, and `chance.SHARED` as it is here."""
    for cell in cells:
        own = cell.delta.var(axis=1)
        pairs = [(i, j) for i in range(len(own)) for j in range(i)]
        shares = [float((cell.delta[i] - cell.delta[j]).var() / (own[i] + own[j])) for i, j in pairs]
        sd = float(cell.delta.mean(axis=1).std(ddof=1))
        yield [cell.checkpoint, cell.method, cell.bits, sd, float(np.sqrt((cell.rounding**2).mean())), min(shares)]


@dataclass(frozen=True, eq=False)
class Grid:
    """A simulated pair of results: old and new δ per token of each cell on the whole text, their roundings, and the
    windows drawn."""

    cells: Sequence[Cell]
    old: list[np.ndarray]
    new: list[np.ndarray]
    roundings: list[tuple[float, float]]
    places: np.ndarray
    design: Design

    def evidence(self, judge: str, worsening: float = 0.0) -> list[Evidence]:
        """What the comparison sees; every cell is worse by so much."""
        tokens, found, lucks = np.ones(len(self.places)), [], []
        for i, cell in enumerate(self.cells):
            new = self.new[i] + worsening * cell.pattern
            old, new = self.old[i][None, self.places], new[None, self.places]
            found.append(of_losses(old, new, tokens, self.design))
            lucks.append(Luck(self.roundings[i], cell.numerics, old, new))
        if judge == "model":
            return found
        return [replace(one, chance=sd, chance_df=df) for one, (sd, df) in zip(found, chances(lucks))]


Change = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


def _as_it_is(old: np.ndarray, new: np.ndarray, other: np.ndarray) -> np.ndarray:
    return new


def _equal(old: np.ndarray, new: np.ndarray, other: np.ndarray) -> np.ndarray:
    return new - new.mean() + old.mean()


def _of_other(old: np.ndarray, new: np.ndarray, other: np.ndarray) -> np.ndarray:
    return other - other.mean() + old.mean()


CHANGES: dict[str, Change] = {"another draw": _as_it_is, "equal on the text": _equal, "other method": _of_other}


def grid(cells: Sequence[Cell], change: Change, size: int, rng: np.random.Generator) -> Grid:
    """One pair of results of all cells without a worsening."""
    draws, total = cells[0].delta.shape
    places = spread(total, size, int(rng.integers(2**31)))
    old, new, roundings = [], [], []
    a, b = rng.choice(draws, 2, replace=False)
    others = {(c.checkpoint, c.bits, c.method): c for c in cells}
    for cell in cells:
        method = next(
            (m for n, w, m in others if (n, w) == (cell.checkpoint, cell.bits) and m != cell.method), cell.method
        )
        other = others[cell.checkpoint, cell.bits, method]
        old.append(cell.delta[a])
        new.append(change(cell.delta[a], cell.delta[b], other.delta[b]))
        roundings.append((float(cell.rounding[a]), float(cell.rounding[b])))
    return Grid(cells, old, new, roundings, places, design_of(Sample("spread", total), size))


def false_alarms(text: str, cells: Sequence[Cell], size: int, grids: int) -> Iterator[Claim]:
    """The share of grids in which any cell is called worse, by what was done, what is judged, and tolerance."""
    level = GateConfig().level
    for place, (name, change) in enumerate(CHANGES.items()):
        rng, alarms = np.random.default_rng([SEED, place]), np.zeros((len(JUDGES), len(TOLERANCES)))
        for _ in range(grids):
            pair = grid(cells, change, size, rng)
            for i, judge in enumerate(JUDGES):
                evidence = pair.evidence(judge)
                for j, tolerance in enumerate(TOLERANCES):
                    alarms[i, j] += any(outcome == Decision.WORSE for outcome, _ in decide(evidence, tolerance, level))
        for i, judge in enumerate(JUDGES):
            limit = None if (judge, name) == ("model", "another draw") else FALSE_ALARMS
            for tolerance, share in zip(TOLERANCES, (alarms[i] / grids).tolist()):
                what = (
                    f"{text}: grids of {len(cells)} cells called worse, {name}, judge {judge}, tolerance {tolerance:g}"
                )
                yield Claim(what, share, share, share, limit)


def power_rows(cells: Sequence[Cell], size: int, grids: int, judge: str) -> Iterator[list[Any]]:
    """Rows of `COLUMNS`: worsenings in every cell in turn, by tolerance, bit-width and size."""
    level, rng = GateConfig().level, np.random.default_rng([SEED, 100])
    seen: dict[tuple[float, int, float], list[tuple[bool, float, bool]]] = {}
    for _ in range(grids):
        pair = grid(cells, CHANGES["equal on the text"], size, rng)
        neutral = pair.evidence(judge)
        for tolerance in TOLERANCES[1:]:
            rule = Rule(tolerance, level, len(cells))
            for times in SIZES:
                worsening = times * tolerance
                worse = pair.evidence(judge, worsening)
                for i, cell in enumerate(cells):
                    both = [*neutral[:i], worse[i], *neutral[i + 1 :]]
                    caught = decide(both, tolerance, level)[i][0] == Decision.WORSE
                    enough = times == MULTIPLE and rule.smallest(worse[i], ASSURED) <= worsening
                    found = (caught, rule.power(neutral[i], worsening), enough)
                    seen.setdefault((tolerance, cell.bits, times), []).append(found)
    for (tolerance, bits, times), found in sorted(seen.items()):
        caught, stated, enough = np.array(found, float).T
        share, of_these = float(enough.mean()), float(caught[enough > 0].mean()) if enough.any() else None
        about = [judge, tolerance, bits, times, float(caught.mean()), float(stated.mean())]
        yield [*about, *((share, of_these) if times == MULTIPLE else (None, None))]


def power_claims(text: str, judge: str, rows: Sequence[Sequence[Any]]) -> Iterator[Claim]:
    """What was caught of worsenings of twice the tolerance, and how far stated power is from the share caught."""
    twice = [row for row in rows if row[7] is not None]
    if twice:
        shares, weights = [row[7] for row in twice], [row[6] for row in twice]
        what = f"{text}: judge {judge}: worsenings of twice the tolerance caught where the windows suffice"
        yield Claim(what, float(np.average(shares, weights=weights)), min(shares), max(shares), CAUGHT, "at least")
    gaps = [abs(row[4] - row[5]) for row in rows]
    what = f"{text}: judge {judge}: stated power minus share caught, largest of {len(rows)} tolerances, bits and sizes"
    yield Claim(what, max(gaps), min(gaps), max(gaps), GAP)
    yield Claim(f"{text}: judge {judge}: the same, mean", float(np.mean(gaps)), min(gaps), max(gaps))
