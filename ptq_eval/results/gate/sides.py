"""What is compared: the results in a folder, cell by cell, with the losses per window where its records are there.

A folder without records (this repository keeps none of its studies' in git) still has a table.  Its
cells can be compared too, but not window by window: see `pairs`.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ptq_eval.errors import DataFileError, EmptyFolderError, NothingToFitError
from ptq_eval.records import FULL_PRECISION, Measurement
from ptq_eval.results.calibrations import completed
from ptq_eval.results.draws import cells as cells_of
from ptq_eval.results.load import collect
from ptq_eval.results.points import USABLE, is_runtime, number
from ptq_eval.results.selection import pairing, select
from ptq_eval.results.store import Store
from ptq_eval.sampling import Design

TABLE = "degradation.csv"
IDENTITY = ("run", "step", "quantizer", "options", "bits", "group_size", "symmetric", "format")
"""Columns that say which cell of the grid a row is; what else differs makes two results incomparable."""
VARIANT = ("calibration", "calib_text", "calib_windows", "calib_length")
"""Columns that distinguish rows of one cell in a folder that was calibrated in several ways."""
_NUMBERS = ("step", "bits", "group_size", "calib_windows", "calib_length")
_TEXTS = ("run", "quantizer", "options", "format", "calibration", "calib_text", "calib_seed", "weights_sha", "protocol")
_TEXTS += ("dtype", "device", "status", "message", "quantizer_version")
Identity = tuple[Any, ...]


@dataclass(frozen=True, eq=False)
class Cell:
    """One row of a table; where there are records, its measurements (one per draw of calibration windows), that in
    full precision, and how all windows were drawn.  `corpus` is the digest of the evaluation windows, where known."""

    row: Mapping[str, Any]
    draws: tuple[Measurement, ...] = ()
    full: Measurement | None = None
    design: Design | None = None
    corpus: str | None = None

    @property
    def identity(self) -> Identity:
        """Which cell of the grid it is."""
        return tuple(self.row[name] for name in IDENTITY)

    @property
    def variant(self) -> Identity:
        """How it was calibrated."""
        return tuple(self.row[name] for name in VARIANT)

    @property
    def measured(self) -> bool:
        """Whether it has a loss."""
        return self.row["status"] in USABLE


@dataclass(frozen=True, eq=False)
class Side:
    """One of the two results: its `name`, its quantized cells and the versions it was made with.

    windows: whether the losses per window are there.
    excluded: why, of checkpoints that were not measured, by (run, step).  damaged: (file, line) of records that cannot
    be read.
    """

    name: str
    cells: tuple[Cell, ...]
    windows: bool
    run: Mapping[str, Any] = field(default_factory=dict)
    excluded: Mapping[tuple[Any, Any], str] = field(default_factory=dict)
    damaged: tuple[tuple[str, int], ...] = ()

    def corpus(self, cell: Cell) -> str | None:
        """The digest of the evaluation windows of a cell, where it is known."""
        digests = (self.run.get("digests") or {}).get(cell.row["run"]) or {}
        return cell.draws[0].trial.corpus if cell.draws else cell.corpus or digests.get("evaluation")

    @property
    def version(self) -> str:
        """The version of this program and the commit, as far as `run.json` has them."""
        git = self.run.get("git") or {}
        words = [str((self.run.get("versions") or {}).get("ptq-eval") or ""), str(git.get("commit") or "")[:12]]
        changed = "changed" if git.get("commit") and not git.get("clean") else ""
        return " ".join(word for word in (*words, changed) if word)


def read(folder: Path, name: str = "") -> Side:
    """The results in a folder: from its records, or from its table where it has none; or all results below it.

    Raises EmptyFolderError if there is no such folder, NothingToFitError if it holds no results, OutputMismatchError
    and DataFileError for damaged files.
    """
    name = name or str(folder)
    if not folder.is_dir():
        raise EmptyFolderError(
            "there is no such folder of results", got=name, remedy="a folder of `ptq-eval run -o`, or REVISION:FOLDER"
        )
    store = Store(folder)
    if store.files and (folder / "run.json").exists():
        return _from_records(store, name)
    if (folder / TABLE).exists():
        return _from_table(folder, store.read_run() or {}, name)
    if below := sorted({path.parent for path in (*folder.rglob("run.json"), *folder.rglob(TABLE))} - {folder}):
        return _joined([(str(one.relative_to(folder)), read(one, str(one))) for one in below], name)
    raise NothingToFitError(
        "this folder holds no results",
        got=name,
        allowed=f"records/ with run.json, {TABLE}, or results_*.json and samples_*.jsonl of lm-eval",
        remedy="measure first: ptq-eval run FOLDER -o OUT",
    )


def _joined(several: Sequence[tuple[str, Side]], name: str) -> Side:
    """Results of several folders as one, their runs named after the folder."""
    cells = [
        replace(cell, row={**cell.row, "run": f"{folder}/{cell.row['run']}"}, corpus=side.corpus(cell))
        for folder, side in several
        for cell in side.cells
    ]
    excluded = {(f"{f}/{run}", step): why for f, side in several for (run, step), why in side.excluded.items()}
    damaged = [(f"{folder}/{file}", line) for folder, side in several for file, line in side.damaged]
    windows = all(side.windows for _, side in several)
    return Side(name, tuple(cells), windows, several[0][1].run, excluded, tuple(damaged))


def _from_records(store: Store, name: str) -> Side:
    run = store.require()
    results = collect(store, run)
    kept, _ = select(completed(store.measurements(), run), results.checkpoints)
    full = {pairing(m.trial): m for m in kept if m.trial.quantizer == FULL_PRECISION and m.nll}
    by_key = {draws[0].trial.key(): tuple(draws) for draws in cells_of(kept)}
    cells = []
    for row in _rows(results.frame):
        draws = by_key.get(row["key"], ())
        reference = full.get(pairing(draws[0].trial)) if draws else None
        losses = results.windows.get(row["key"])
        cells.append(Cell(row, draws, reference, losses.design if losses is not None else None))
    damaged = tuple((path.name, line) for path, line in results.damaged)
    return Side(name, tuple(cells), True, run, _excluded(results.frame), damaged)


def _from_table(folder: Path, run: Mapping[str, Any], name: str) -> Side:
    path = folder / TABLE
    with _readable(path):
        frame = pd.read_csv(path)
    needed = {"run", "step", "quantizer", "bits", "loss_q", "delta", "delta_se", "status", "weights_sha", "protocol"}
    if missing := sorted(needed - set(frame)):
        raise DataFileError(
            "the table of results lacks columns",
            got=f"{path}: {', '.join(missing)}",
            remedy="write it again: ptq-eval report OUT",
        )
    with _readable(path):
        cells, excluded = tuple(Cell(row) for row in _rows(frame)), _excluded(frame)
    return Side(name, cells, False, run, excluded)


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:
        raise DataFileError("the table of results cannot be read", got=f"{path}: {error}") from error


def _excluded(frame: pd.DataFrame) -> dict[tuple[Any, Any], str]:
    rows = map(_plain, frame.to_dict("records"))
    return {(row["run"], row["step"]): row["message"] for row in rows if row["status"] == "excluded"}


def _rows(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """The quantized rows with values that compare equal whether they come from a file or not."""
    rows = [_plain(row) for row in frame.to_dict("records")]
    return [row for row in rows if row["quantizer"] not in ("", FULL_PRECISION) and not is_runtime(row)]


def _plain(row: Mapping[Any, Any]) -> dict[str, Any]:
    found = {str(name): value for name, value in row.items()}
    for name in _NUMBERS:
        value = number(found.get(name))
        found[name] = None if np.isnan(value) else int(value) if value.is_integer() else value
    for name in _TEXTS:
        value = found.get(name)
        found[name] = "" if value is None or value != value else str(value)
    found["calib_seed"] = ",".join(seed.removesuffix(".0") for seed in found["calib_seed"].split(","))
    found["symmetric"] = str(found.get("symmetric")).lower() in ("true", "1", "1.0")
    found["format"] = found["format"] or "int"
    found["options"] = json.dumps(json.loads(found["options"] or "{}"), sort_keys=True)
    return found
