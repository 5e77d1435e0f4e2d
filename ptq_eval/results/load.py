"""Load an output folder: everything that fitting, comparing, planning and reporting start from.

Each record is parsed once and each row becomes a point once; whoever needs either is handed what was loaded here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from ptq_eval.errors import NothingToFitError
from ptq_eval.records import BitsAxis, Checkpoint, Measurement
from ptq_eval.results import points, tasks
from ptq_eval.results.calibrations import completed, first_of
from ptq_eval.results.selection import select, versions
from ptq_eval.results.store import Store
from ptq_eval.results.table import Windows, table_of


@dataclass(frozen=True, eq=False)
class Results:
    """What an output folder holds.

    run: the content of `run.json`.  frame: the degradation table.  windows: the losses per window behind its rows.
    points: the rows that laws can be fitted to.  excluded: the number of other rows by reason.  superseded: the number
    of records that a newer version of their quantizer replaces, by (quantizer, version).  versions: the versions that
    the table holds of each quantizer, the oldest first.  conflicts: pairs of records of one trial that differ, of which
    the first is used.  damaged: (file, line) of the records that cannot be read.  bits_axis: what P is in the points.
    tasks: answers to tasks before and after quantization (`results.tasks`).
    """

    folder: Path
    run: Mapping[str, Any]
    checkpoints: tuple[Checkpoint, ...]
    frame: pd.DataFrame
    windows: Windows
    points: list[points.Point]
    excluded: Mapping[points.Skipped, int]
    superseded: Mapping[tuple[str, str], int]
    versions: Mapping[str, list[str]]
    conflicts: tuple[tuple[Measurement, Measurement], ...]
    damaged: tuple[tuple[Path, int], ...] = ()
    bits_axis: BitsAxis = "bits"
    tasks: Sequence[Mapping[str, Any]] = ()

    @cached_property
    def digest(self) -> str:
        """The digest of what laws are fitted to, as `fit.json` and `comparison.json` record it."""
        return points.digest(self.points)

    @property
    def n_sound(self) -> int:
        """How many checkpoints can be measured."""
        return sum(not checkpoint.fatal for checkpoint in self.checkpoints)

    @property
    def n_measured(self) -> int:
        """How many of them have a row."""
        rows = self.frame.loc[self.frame["status"] != "excluded", ["run", "step", "weights_sha"]]
        return len(rows.drop_duplicates())


def load(folder: str | Path, bits_axis: BitsAxis | None = None) -> Results:
    """The results in an output folder; laws take as bits what `bits_axis` says, by default what its run was asked for.

    Raises NothingToFitError if it is not the output of a run or holds no measurement, OutputMismatchError if
    `run.json` is damaged.
    """
    store = Store(folder)
    return collect(store, store.require(), bits_axis)


def collect(store: Store, run: Mapping[str, Any], bits_axis: BitsAxis | None = None) -> Results:
    """The results in a store, for a `run.json` that is known.

    Raises NothingToFitError if there are none, OptionError if some do not say what they are on the axis of bits.
    """
    axis = bits_axis or run.get("options", {}).get("bits_axis", "bits")
    checkpoints = tuple(Checkpoint.from_dict(entry) for entry in run["checkpoints"])
    every = completed(store.measurements(), run)
    kept, older = select(every, checkpoints)
    frame, windows = table_of(kept, checkpoints, first_of(run))
    if frame.empty:
        raise NothingToFitError("no measurements of these checkpoints", got=store.folder)
    found, excluded = points.read(frame.to_dict("records"), axis)  # type: ignore[arg-type]
    return Results(
        folder=store.folder,
        run=run,
        checkpoints=checkpoints,
        frame=frame,
        windows=windows,
        points=found,
        excluded=excluded,
        superseded=Counter((m.trial.quantizer, m.trial.quantizer_version) for m in older),
        versions=versions(kept),
        conflicts=tuple(store.conflicts),
        damaged=tuple(store.damaged),
        tasks=tasks.entries(tasks.answered(every, checkpoints)),
        bits_axis=axis,
    )
