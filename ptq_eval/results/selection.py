"""Which of the records in a store make the table: those of the listed checkpoints, one for each cell of the grid.

A cell is all that a trial asks for but the version of its quantizer.  A newer version gives other codes for the same
request, so of two versions of one cell the newer one stands and the older is set aside, told and kept in the store;
two rows of one cell would count twice in every fit.  A cell that only an older version measured keeps its number.

A difference is only as good as its pair: the full-precision record of a measurement is the one of the same checkpoint
on the same windows, in the same type, on the same kind of device, under the same rule for stopping.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from ptq_eval.records import Checkpoint, Measurement, Trial

Place = tuple[str, "int | None", str, str]


def place(checkpoint: Checkpoint) -> Place:
    """What tells a checkpoint and its weights from all others."""
    return checkpoint.run, checkpoint.step, checkpoint.revision, checkpoint.weights_sha


def conditions(trial: Trial) -> dict[str, Any]:
    """How a loss is measured, whatever the quantizer: what both losses of a difference must share."""
    names = ("protocol", "corpus", "dtype", "device", "include_head")
    return {**{name: getattr(trial, name) for name in names}, "stop": dict(trial.stop)}


def pairing(trial: Trial) -> str:
    """A key that a measurement and its full-precision record have in common, and no other record."""
    return json.dumps([place(trial.checkpoint), conditions(trial)], sort_keys=True, default=str)


def select(
    measurements: Iterable[Measurement], checkpoints: Sequence[Checkpoint]
) -> tuple[list[Measurement], list[Measurement]]:
    """(records that make the table, records that a newer version of their quantizer supersedes).

    Records of checkpoints that are not listed are in neither.
    """
    listed = {place(checkpoint) for checkpoint in checkpoints}
    cells: dict[str, list[Measurement]] = {}
    for measurement in measurements:
        if place(measurement.trial.checkpoint) in listed:
            cells.setdefault(replace(measurement.trial, quantizer_version="").key(), []).append(measurement)
    kept, older = [], []
    for cell in cells.values():
        newest = max(cell, key=lambda m: _order(m.trial.quantizer_version))
        kept.append(newest)
        older += [measurement for measurement in cell if measurement is not newest]
    return kept, older


def _order(version: str) -> list[tuple[int, str]]:
    """Versions by their numbers: "2" before "10", "1.9" before "1.10"."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.findall(r"\d+|[^\d.]+", version)]


def version_notes(measurements: Iterable[Measurement], checkpoints: Sequence[Checkpoint]) -> list[str]:
    """What a reader must know of records made by several versions of one quantizer."""
    kept, older = select(measurements, checkpoints)
    notes = []
    if older:
        counts = Counter((m.trial.quantizer, m.trial.quantizer_version) for m in older)
        which = ", ".join(f"{count} of {name} version {version}" for (name, version), count in sorted(counts.items()))
        notes.append(
            f"{len(older)} record{'s' * (len(older) != 1)} of older quantizer versions set aside, as newer ones of "
            f"the same cells exist: {which}"
        )
    versions: dict[str, set[str]] = {}
    for measurement in kept:
        versions.setdefault(measurement.trial.quantizer, set()).add(measurement.trial.quantizer_version)
    for name, found in sorted(versions.items()):
        if len(found) > 1:
            named = " and ".join(sorted(found, key=_order))
            notes.append(
                f"{name}: rows of versions {named} stand in one table (column quantizer_version); repeating the whole "
                "command measures the older ones anew"
            )
    return notes
