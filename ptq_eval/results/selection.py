"""Which records make the table, and which of them belong together.

The records of the listed checkpoints make the table, one for each cell of the grid: everything that a trial asks for
except the version of its quantizer and the draw of calibration windows (see `draws`; windows of another text, number or
length are another cell, see `calibrations`).  A newer version gives other
codes for the same request, so of two versions of one cell the newer one is used; the older one stays in the store and
is reported.  Two rows of one cell would count twice in every fit.  A cell that only an older version measured keeps its
number.  A difference is only as good as its pair: the full-precision record of a measurement is the one of the same
checkpoint on the same windows, in the same type, on the same kind of device, under the same rule for stopping.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from ptq_eval.records import Checkpoint, Measurement, Trial

Place = tuple[str, "int | None", str, str]


def place(checkpoint: Checkpoint) -> Place:
    """What identifies a checkpoint and its weights."""
    return checkpoint.run, checkpoint.step, checkpoint.revision, checkpoint.weights_sha


def conditions(trial: Trial) -> dict[str, Any]:
    """How a loss is measured, whatever the quantizer: what both losses of a difference must share."""
    names = ("protocol", "corpus", "dtype", "device", "include_head", "include_embedding")
    return {**{name: getattr(trial, name) for name in names}, "stop": dict(trial.stop)}


def pairing(trial: Trial) -> str:
    """A key that a measurement and its full-precision record have in common, and no other record."""
    return json.dumps([place(trial.checkpoint), conditions(trial)], sort_keys=True, default=str)


def cell_of(trial: Trial) -> tuple[Any, ...]:
    """What draws of one condition of calibration share, and no other trial."""
    draw = trial.calibration_draw
    return replace(trial, calibration_corpus="").key(), draw and draw.condition


def select(
    measurements: Iterable[Measurement], checkpoints: Sequence[Checkpoint]
) -> tuple[list[Measurement], list[Measurement]]:
    """(records that make the table, records that a newer version of their quantizer supersedes).

    Records of checkpoints that are not listed are in neither, nor are answers to tasks (`results.tasks`).
    """
    return newest((m for m in measurements if not m.trial.task), checkpoints)


def newest(
    measurements: Iterable[Measurement], checkpoints: Sequence[Checkpoint]
) -> tuple[list[Measurement], list[Measurement]]:
    """(records of the newest version of their quantizer, the others), of listed checkpoints."""
    listed = {place(checkpoint) for checkpoint in checkpoints}
    cells: dict[Any, list[Measurement]] = {}
    for measurement in measurements:
        if place(measurement.trial.checkpoint) in listed:
            cells.setdefault(cell_of(replace(measurement.trial, quantizer_version="")), []).append(measurement)
    kept, older = [], []
    for cell in cells.values():
        last = max((m.trial.quantizer_version for m in cell), key=order_of)
        kept += [m for m in cell if m.trial.quantizer_version == last]
        older += [m for m in cell if m.trial.quantizer_version != last]
    return kept, older


def order_of(version: str) -> list[tuple[int, str]]:
    """Versions by their numbers: "2" before "10", "1.9" before "1.10"."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.findall(r"\d+|[^\d.]+", version)]


def versions(kept: Iterable[Measurement]) -> dict[str, list[str]]:
    """The versions of each quantizer among records, the oldest first."""
    found: dict[str, set[str]] = {}
    for measurement in kept:
        found.setdefault(measurement.trial.quantizer, set()).add(measurement.trial.quantizer_version)
    return {name: sorted(several, key=order_of) for name, several in found.items()}
