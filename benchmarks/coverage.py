"""Do 90 % intervals of δ hold δ of the whole text?  The default sample of windows, drawn again and again.

Some checkpoints of the trajectory, three methods at four bit-widths, are measured once on every window of a text; a
draw of windows is then a choice among these losses, made and judged by the functions that a run uses.  The truth is δ
of the whole text.  Beside the default, for comparison and without a limit:

stretch       as many neighbouring windows from a random place on, with the error of independent windows, as was done
              before, and with the error that such windows get now;
documents     a random half of the documents, measured whole, with the error clustered by document.

The quantized weights are the same throughout; intervals that include the draw of calibration windows are the subject
of `calibration_draws`, whose claims and tables are added.  Texts are those of `--text`, or the embedded one and what
`shared/data` beside the repository holds of books.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from benchmarks import calibration_draws
from benchmarks.harness import ROOT, SEED, Claim, Outcome, Setup
from ptq_eval.checkpoints import discover, verify_all
from ptq_eval.config.run import RunConfig
from ptq_eval.measure.trials import make_plan
from ptq_eval.records import Checkpoint, Sample
from ptq_eval.sampling import Design, design_of, effective, independent, mean_and_error, spread

EMBEDDED = "stdlib:evaluation"
BOOKS = ROOT.parent / "shared" / "data" / "gutenberg" / "valid.txt.bz2"
LEVEL, LIMITS = 0.9, (0.87, 0.93)
DRAWS = 400
COLUMNS = ["sample", "checkpoint", "method", "bits", "inside", "r.m.s. z", "median width", "effective windows", "δ"]

Draw = Callable[[np.random.Generator], tuple[np.ndarray, Design]]
"""A draw of windows: their places and how they were drawn."""


@dataclass(frozen=True)
class Cell:
    """One checkpoint, method and bit-width: the losses after minus before of every window of a text, nats."""

    checkpoint: str
    method: str
    bits: int
    difference: np.ndarray
    tokens: np.ndarray
    sample: Sample


def measure(setup: Setup) -> Outcome:
    """Coverage of each text, with a claim for each end of the goal."""
    outcome = Outcome()
    texts = setup.texts or (EMBEDDED, *([str(BOOKS)] if BOOKS.is_file() else []))
    for text in texts:
        cells = [cell for checkpoint in chosen(setup) for cell in measured(checkpoint, text, setup.quick)]
        total, size = len(cells[0].difference), sample_size(len(cells[0].difference))
        rows = [row for name, draw in draws(cells[0].sample, total, size) for row in judged(name, draw, cells)]
        name = f"{text.rsplit('/', 1)[-1]}, {total} windows"
        outcome.details[name] = {"columns": COLUMNS, "rows": [row for row in rows if row[0] == "default"]}
        outcome.claims += list(claims(name, size, rows))
        rows, found = calibration_draws.rows_and_claims(text, text.rsplit("/", 1)[-1], setup)
        outcome.details[f"{name}, draws of calibration windows"] = {"columns": calibration_draws.COLUMNS, "rows": rows}
        outcome.claims += found
    return outcome


def chosen(setup: Setup) -> list[Checkpoint]:
    """The last checkpoint of each run, and one from the middle of the last run."""
    found = sorted(discover([setup.trajectory]), key=lambda c: (c.params or 0, c.run, c.tokens or 0))
    runs: dict[str, list[Checkpoint]] = {}
    for checkpoint in found:
        runs.setdefault(checkpoint.run, []).append(checkpoint)
    last = [own[-1] for own in runs.values()]
    *_, longest = runs.values()
    middle = [longest[len(longest) // 2]] if len(longest) > 1 and not setup.quick else []
    return verify_all([*middle, *(last[-1:] if setup.quick else last)])


def measured(checkpoint: Checkpoint, text: str, quick: bool) -> list[Cell]:
    """Every method and bit-width on all windows of the text; a rehearsal takes its first ones for the whole."""
    options: dict[str, Any] = {"bits": (3, 4)} if quick else {}
    config = RunConfig(
        eval_text=text,
        eval_windows=400 if quick else None,
        eval_sample="first",
        calib_windows=(4,) if quick else (48,),
        **options,
    )
    work = make_plan([checkpoint], config).workloads[0]
    full, *others = calibration_draws.kept(work, config.resolve_device())
    return [
        Cell(
            checkpoint.name,
            m.trial.quantizer,
            m.trial.bits or 0,
            np.subtract(m.nll, full.nll),
            np.asarray(m.n_tokens, float),
            work.evaluation.sample,
        )
        for m in others
        if m.nll
    ]


def sample_size(total: int) -> int:
    """The default number of windows, or a quarter of a text that holds few."""
    return min(RunConfig().eval_windows or total, total // 4)


def draws(sample: Sample, total: int, size: int) -> Iterator[tuple[str, Draw]]:
    """The ways of choosing windows, by name."""
    documents = np.array(sample.documents)

    def default(rng: np.random.Generator) -> tuple[np.ndarray, Design]:
        places = spread(total, size, int(rng.integers(2**31)))
        return places, design_of(Sample("spread", total, _of(documents, places)), size)

    def stretch(rng: np.random.Generator) -> tuple[np.ndarray, Design]:
        places = np.arange(size) + rng.integers(total - size + 1)
        return places, design_of(Sample("first", total, _of(documents, places)), size)

    def half(rng: np.random.Generator) -> tuple[np.ndarray, Design]:
        kinds = np.unique(documents)
        places = np.flatnonzero(np.isin(documents, rng.permutation(kinds)[: len(kinds) // 2]))
        units = np.unique(documents[places], return_inverse=True)[1]
        return places, Design(np.zeros(len(places), int), units, (len(kinds) // 2) / len(kinds))

    yield "default", default
    yield "stretch, taken as independent", lambda rng: (stretch(rng)[0], independent(size))
    yield "stretch", stretch
    if len(documents) and len(np.unique(documents)) >= 10:
        yield "documents", half


def _of(documents: np.ndarray, places: np.ndarray) -> tuple[int, ...]:
    return tuple(documents[places].tolist()) if len(documents) else ()


def judged(name: str, draw: Draw, cells: list[Cell]) -> Iterator[list[Any]]:
    """A row of `COLUMNS` for each cell."""
    for index, cell in enumerate(cells):
        rng, rows = np.random.default_rng([SEED, index]), []
        truth = cell.difference.sum() / cell.tokens.sum()
        for _ in range(DRAWS):
            places, design = draw(rng)
            values, tokens = cell.difference[places], cell.tokens[places]
            delta, error = mean_and_error(values, tokens, design)
            quantile = float(stats.t.ppf((1 + LEVEL) / 2, design.freedom)) if design.freedom > 0 else math.nan
            rows.append((delta - truth, error, quantile * error, effective(values, tokens, design)))
        gap, error, reach, worth = np.array(rows).T
        inside = float(np.mean(np.abs(gap) <= reach))
        z = float(np.sqrt(np.nanmean((gap / error) ** 2)))
        width, windows = float(np.nanmedian(2 * reach)), float(np.nanmedian(worth))
        yield [name, cell.checkpoint, cell.method, cell.bits, inside, z, width, windows, truth]


def claims(text: str, size: int, rows: list[list[Any]]) -> Iterator[Claim]:
    """The mean share inside over all cells, with the range of its means over bit-widths."""
    for name in dict.fromkeys(row[0] for row in rows):
        own = [row for row in rows if row[0] == name]
        by_bits = [float(np.mean([r[4] for r in own if r[3] == bits])) for bits in {r[3] for r in own}]
        share, ends = float(np.mean([row[4] for row in own])), (min(by_bits), max(by_bits))
        z, windows = (float(np.median([row[place] for row in own])) for place in (5, 7))
        what = f"{text}: 90 % intervals of δ, {name}, {len(own)} cells × {DRAWS} draws"
        about = f"{what} of {size}" if name != "documents" else what
        if name == "default":
            yield Claim(f"{about}, share inside", share, *ends, LIMITS[0], "at least")
            yield Claim(f"{about}, share inside (no wider than promised)", share, *ends, LIMITS[1])
            yield from calibration_draws.by_width(f"{about}, share inside", own, 3, 4)
        else:
            yield Claim(f"{about}, share inside", share, *ends)
        yield Claim(f"{about}, r.m.s. z", z, z, z)
        yield Claim(f"{about}, effective windows", windows, windows, windows)
