"""Several conditions of calibration in one folder: which one laws are fitted under, and what another one does to delta.

A condition is a text, a number of windows and their length; seeds are draws of it (`draws`).  Rows of different
conditions are never pooled: fits, figures and tables are made of the first condition, and the others are compared with
it.  `calib_difference` is delta minus the first condition's delta in the same cell.  Both are measured on the same
evaluation windows, so the sampling error of the difference comes from its windows; where either is a mean over several
draws, their variance is added, as if draws of different conditions were independent.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ptq_eval.records import CalibrationDraw, Measurement
from ptq_eval.results.draws import calibration_se
from ptq_eval.results.points import Losses, Row, is_other, is_runtime
from ptq_eval.runtime import COLUMNS as RUNTIME
from ptq_eval.sampling import errors_needed, freedom, independent, standard_error

COLUMNS = ("calib_text", "calib_windows", "calib_length")
_CELL = (
    *("run", "step", "weights_sha", "quantizer", "quantizer_version", "options", "bits", "group_size", "symmetric"),
    *("format", "calibration", "protocol", "dtype", "device", *RUNTIME),
)
"""Columns that rows which differ in the condition alone have in common."""
_EFFECT = ("quantizer", "options", "bits", "group_size", "symmetric", "format", "calibration", *COLUMNS)


def first_of(run: Mapping[str, Any]) -> dict[str, CalibrationDraw]:
    """The first draw of the first condition of each run, from `run.json`; runs that do not say are absent."""
    fixed, found = run.get("fixed") or {}, {}
    for name, texts in (run.get("texts") or {}).items():
        text = texts.get("calibration")
        length = text and (text.get("length") or fixed.get("seq_len"))
        if text and length and "spec" in text and "windows" in text:
            seed = None if text.get("selection", "first") == "first" else fixed.get("calib_seed")
            found[name] = CalibrationDraw(text["spec"], text["windows"], length, seed)
    return found


def completed(measurements: Iterable[Measurement], run: Mapping[str, Any]) -> list[Measurement]:
    """Measurements whose calibrated trials say what their windows are: earlier versions had one condition.

    The seed stays unknown for draws that are not the run's first.
    """
    first = first_of(run)
    digests = {name: roles.get("calibration") for name, roles in (run.get("digests") or {}).items()}

    def complete(m: Measurement) -> Measurement:
        trial = m.trial
        draw = first.get(trial.checkpoint.run)
        if not trial.calibration_corpus or trial.calibration_draw is not None or draw is None:
            return m
        if trial.calibration_corpus != digests.get(trial.checkpoint.run):
            draw = replace(draw, seed=None)
        return replace(m, trial=replace(trial, calibration_draw=draw))

    return [complete(m) for m in measurements]


def described(cell: Iterable[Measurement], first: Mapping[str, CalibrationDraw]) -> dict[str, Any]:
    """The columns about the condition of a cell's draws; empty without calibration."""
    trials = [m.trial for m in cell]
    draw = trials[0].calibration_draw
    if not trials[0].calibration_corpus or draw is None:
        return {}
    seeds = sorted(
        {t.calibration_draw.seed for t in trials if t.calibration_draw and t.calibration_draw.seed is not None}
    )
    expected = first.get(trials[0].checkpoint.run, draw)
    return {
        **dict(zip(COLUMNS, draw.condition)),
        "calib_seed": ",".join(map(str, seeds)) or None,
        "calib_first": draw.condition == expected.condition,
    }


def compare(rows: Iterable[dict[str, Any]], windows: Mapping[Any, Losses]) -> None:
    """Add to rows of other conditions how much larger their delta is than under the first, and the error of that."""
    for row, reference in _pairs(rows, windows):
        names = ("calib_difference", "calib_difference_se", "calib_difference_df")
        row |= dict(zip(names, _difference([(row, reference)], windows)))


def effects(
    rows: Iterable[Row], windows: Mapping[Any, Losses], trajectories: Mapping[str, str] | None = None
) -> list[dict[str, Any]]:
    """What each other condition does to delta on average over the checkpoints of a trajectory, by configuration and
    bits: for `fit.json`.

    `difference` is the mean over `checkpoints` of delta minus `delta_first`, that of the first condition (nats per
    token).  Its `error` is that of the mean, whose checkpoints share evaluation windows; draws count as independent
    from checkpoint to checkpoint (`draws`).  `significant` is at how many checkpoints the difference is by itself;
    `draw_sd` is the standard deviation of delta between seeds at one checkpoint (root of the mean variance), None with
    a single one.  `trajectories` are the names of the runs' trajectories, by default their own.
    """
    groups: dict[str, list[tuple[Row, Row]]] = {}
    for row, reference in _pairs((row for row in rows if not is_runtime(row)), windows):
        about = [(trajectories or {}).get(str(row["run"]), row["run"]), *(row.get(name) for name in _EFFECT)]
        key = json.dumps([*about, len(windows[row["key"]].after)], default=str)
        groups.setdefault(key, []).append((row, reference))
    return [_effect(json.loads(key)[0], pairs, windows) for key, pairs in groups.items()]


def _effect(trajectory: str, pairs: Sequence[tuple[Row, Row]], windows: Mapping[Any, Losses]) -> dict[str, Any]:
    head, first = pairs[0]
    difference, error, df = _difference(pairs, windows)
    spreads = [row.get("calibration_sd") for row, _ in pairs]
    known = [float(sd) ** 2 for sd in spreads if sd is not None and sd == sd]
    return {
        "trajectory": trajectory,
        **{name: _plain(head.get(name)) for name in _EFFECT},
        "calib_seed": head.get("calib_seed"),
        "first": {name: _plain(first.get(name)) for name in (*COLUMNS, "calib_seed")},
        "covers_calibration": all(float(r.get("calibration_draws") or 1) > 1 for pair in pairs for r in pair),
        "checkpoints": len(pairs),
        "delta_first": math.fsum(reference["delta"] for _, reference in pairs) / len(pairs),
        "difference": difference,
        "error": error,
        "df": df if math.isfinite(df) else None,
        "significant": sum(_significant(*_difference([pair], windows)) for pair in pairs),
        "draw_sd": math.sqrt(math.fsum(known) / len(known)) if known else None,
    }


def _plain(value: Any) -> Any:
    """A value of a table for JSON: None for a missing one, a whole number as such."""
    if value is None or value != value:
        return None
    return int(value) if not isinstance(value, (str, bool)) and value == int(value) else value


def _pairs(rows: Iterable[Any], windows: Mapping[Any, Losses]) -> list[tuple[Any, Any]]:
    """Measured rows of other conditions, each with the first condition's in the same cell."""
    measured = [row for row in rows if isinstance(row.get("calib_text"), str) and row["key"] in windows]
    first = {_cell(row): row for row in measured if not is_other(row)}
    return [(row, first[_cell(row)]) for row in measured if is_other(row) and _cell(row) in first]


def _difference(pairs: Sequence[tuple[Row, Row]], windows: Mapping[Any, Losses]) -> tuple[float, float, float]:
    """(mean difference of delta, its error, degrees of freedom) of cells that share their evaluation windows."""
    mine, others = ([windows[row["key"]] for row in side] for side in zip(*pairs))
    difference = np.mean([a.after - b.after for a, b in zip(mine, others)], axis=0)
    design = mine[0].design or independent(len(difference))
    drawn = [row for pair in pairs for row in pair]
    variances = [standard_error(difference, design) ** 2]
    variances += [(calibration_se(row) / len(pairs)) ** 2 for row in drawn]
    df = [design.freedom, *(float(row.get("calibration_df") or math.inf) for row in drawn)]
    mean = math.fsum(row["delta"] - reference["delta"] for row, reference in pairs) / len(pairs)
    return mean, math.sqrt(math.fsum(variances)), freedom(variances, df)


def _significant(difference: float, error: float, df: float) -> bool:
    return abs(difference) > float(errors_needed(df)) * error


def _cell(row: Row) -> str:
    return json.dumps([row.get(name) for name in _CELL], default=str)
