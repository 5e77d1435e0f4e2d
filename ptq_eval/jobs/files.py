"""A job in a folder: `NNNN.json` has the checkpoint, its trials and the conditions, `DIGEST.npz` the windows of a text.

Texts that several jobs share are written once.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from ptq_eval import errors
from ptq_eval.corpora.windows import Windows
from ptq_eval.errors import MeasurementFailedError, PtqEvalError
from ptq_eval.jobs.job import Conditions, Job
from ptq_eval.measure.trials import Workload
from ptq_eval.records import CalibrationDraw, Checkpoint, Sample, Trial

_ARRAYS = ("ids", "n_bytes")


def write_job(folder: Path, number: int, job: Job, conditions: Conditions) -> Path:
    """Write a job; the path of its file.  Raises OSError."""
    work = job.work
    content = {
        "checkpoint": work.checkpoint.to_dict(),
        "folder": str(work.folder.resolve()),
        "evaluation": _write_text(folder, work.evaluation),
        "drawn": [[asdict(draw), _write_text(folder, windows)] for draw, windows in work.drawn.items()],
        "trials": [trial.to_dict() for trial in work.trials],
        "missing": [trial.key() for trial in job.missing],
        "conditions": asdict(conditions),
    }
    path = folder / f"{number:04d}.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def read_job(path: Path) -> tuple[Job, Conditions]:
    """The job of a file that `write_job` wrote, and its conditions.  Raises OSError."""
    content = json.loads(path.read_text(encoding="utf-8"))
    trials = tuple(Trial.from_dict(trial) for trial in content["trials"])
    work = Workload(
        Checkpoint.from_dict(content["checkpoint"]),
        Path(content["folder"]),
        _read_text(path.parent, content["evaluation"]),
        {CalibrationDraw(**draw): _read_text(path.parent, text) for draw, text in content["drawn"]},
        trials,
    )
    missing = set(content["missing"])
    job = Job(work, tuple(trial for trial in trials if trial.key() in missing))
    return job, Conditions(**content["conditions"])


def _write_text(folder: Path, windows: Windows) -> dict[str, Any]:
    path = folder / f"{windows.digest}.npz"
    if not path.exists():
        np.savez(path, **{name: value for name in _ARRAYS if (value := getattr(windows, name)) is not None})
    return {name: value for name, value in asdict(windows).items() if name not in _ARRAYS}


def _read_text(folder: Path, text: dict[str, Any]) -> Windows:
    with np.load(folder / f"{text['digest']}.npz", allow_pickle=False) as arrays:
        found = {name: arrays.get(name) for name in _ARRAYS}
    for value in found.values():
        if value is not None:
            value.flags.writeable = False
    sample: dict[str, Any] = {**text["sample"], "documents": tuple(text["sample"]["documents"])}
    parts: dict[str, Any] = {**text, **found, "notes": tuple(text["notes"]), "sample": Sample(**sample)}
    return Windows(**parts)


def error_to_dict(error: PtqEvalError) -> dict[str, Any]:
    """An error as a JSON object."""
    got = None if error.got is None else str(error.got)
    return {
        "kind": type(error).__name__,
        "what": error.what,
        "got": got,
        "allowed": error.allowed,
        "remedy": error.remedy,
    }


def error_from_dict(found: dict[str, Any]) -> PtqEvalError:
    """The inverse of `error_to_dict`."""
    kind = getattr(errors, found.pop("kind"), MeasurementFailedError)
    return kind(found.pop("what"), **found)
