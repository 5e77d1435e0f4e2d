"""Ways to end a run side by side: how much the losses of two models at equal D differ, window by window.

An ending is a model at the end of a run's training: the trunk itself, an average, a branch.  It is compared with its
reference, which has seen as many tokens.  Both are measured on the same windows, so the error of a difference is that
of the paired differences (`sampling`); for quantized losses, what other roundings as good as those made, other
arithmetic and other draws of calibration windows would do is added (`chance`).

All differences of a table are tested together: two-sided p-values by Student's t, adjusted by Holm's procedure, which
holds whatever their dependence.  One is decided if its adjusted p is at most `LEVEL` and it is at least `SIGNIFICANT`
errors large; anything else is undecided.  The errors are about evaluation text and rounding: another seed of the run
is not in them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np

from ptq_eval.errors import DataFileError
from ptq_eval.records import FULL_PRECISION
from ptq_eval.results.gate.decision import Evidence, Rule, p_values
from ptq_eval.results.load import Results
from ptq_eval.results.manifest import git_state
from ptq_eval.results.over_rounding import holm
from ptq_eval.results.points import Losses, Row, number, rows_of
from ptq_eval.runtime import COLUMNS as RUNTIME
from ptq_eval.sampling import SIGNIFICANT, independent, mean_and_error

LEVEL = 0.05
"""The probability that any difference of equal models is called decided, at most."""
CONFIGURATION = (
    *("quantizer", "options", "bits", "group_size", "symmetric", "format", "calibration", *RUNTIME),
    *("calib_text", "calib_windows", "calib_length"),
)
"""The columns that two rows which are compared share."""


class Decision(StrEnum):
    """What is known of a difference; the reference itself has none."""

    BETTER = "better"
    WORSE = "worse"
    UNDECIDED = "undecided"
    SAME = "same"
    """The same loss in every window."""


@dataclass(frozen=True)
class Ending:
    """A measured model: `name` says how the run ends, `run` and `step` where its rows are.

    `reference` is the name of the ending of the same `group` with which it is compared, None for that one itself.
    `facts` are what else a reader must know of it.
    """

    group: str
    name: str
    run: str
    step: int | None
    reference: str | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)


KINDS = ("probe", "average")
"""The kinds of records, after which their files are called."""
_AGAIN = "repeat the `ptq-eval probe` or `ptq-eval average` that wrote it"
_FIRST = "ptq-eval probe CHECKPOINT -o OUT --branch decay:10%"
FORMAT = 1
"""Raised whenever the rows of a record change their meaning."""


def record_of(kind: str, results: Results, endings: Sequence[Ending], **facts: Any) -> dict[str, Any]:
    """The record of a comparison of `kind`: its settings, `facts`, and `rows`."""
    settings = {"format": FORMAT, "kind": kind, "settings": dict(results.run.get("fixed", {})), "git": git_state()}
    return {**settings, "level": LEVEL, **facts, "rows": rows(results, endings)}


def rows(results: Results, endings: Sequence[Ending]) -> list[dict[str, Any]]:
    """One row for each ending and configuration that was measured, in full precision first; losses in nats per token.

    `difference` is the loss minus that of the reference, `error` its standard error over windows, `chance` the standard
    deviation of what chance adds, `p` adjusted over all rows, `detectable` the least change that would be decided with
    probability 0.8.  `delta_difference` and `delta_error` are the same of δ.
    """
    own: dict[tuple[str, int | None], list[Row]] = {}
    for row in _rows(results):
        own.setdefault((row["run"], row["step"]), []).append(row)
    found: list[dict[str, Any]] = []
    evidence: list[tuple[dict[str, Any], Evidence]] = []
    by_name = {(ending.group, ending.name): ending for ending in endings}
    for ending in endings:
        reference = by_name.get((ending.group, ending.reference or ""))
        others = {configuration(row): row for row in own.get((reference.run, reference.step), ())} if reference else {}
        for row in own.get((ending.run, ending.step), ()):
            entry = _entry(ending, row, results.windows[row["key"]])
            other = others.get(configuration(row))
            if other is not None:
                evidence.append((entry, _compare(entry, row, other, results.windows)))
            found.append(entry)
    _decide(evidence)
    return found


def _rows(results: Results) -> list[Row]:
    frame: Any = results.frame
    return [row for row in rows_of(frame.astype(object).where(frame.notna(), None)) if row["key"] in results.windows]


def configuration(row: Mapping[str, Any]) -> str:
    """What a row has in common with those that it is compared with."""
    return json.dumps([row.get(name) for name in CONFIGURATION], default=str)


def _entry(ending: Ending, row: Row, losses: Losses) -> dict[str, Any]:
    whole = row["quantizer"] == FULL_PRECISION
    after, error = _mean(losses.after, losses)
    about = {"group": ending.group, "ending": ending.name, "reference": ending.reference, **ending.facts}
    about |= {name: row.get(name) for name in ("run", "step", "tokens", "params", "weights_sha", *CONFIGURATION)}
    about |= {"loss_before": float(losses.before.mean()), "loss": after, "loss_se": error}
    about |= {"delta": None if whole else row["delta"], "delta_se": None if whole else row["delta_se"]}
    return about | {"windows": len(losses.after), "key": row["key"]}


def _compare(entry: dict[str, Any], row: Row, other: Row, windows: Mapping[Any, Losses]) -> Evidence:
    """The evidence of a row and that of its reference, whose numbers are added to `entry`."""
    if row["tokens"] != other["tokens"]:
        raise ValueError(f"{row['run']} has seen {row['tokens']} tokens, its reference {other['tokens']}")
    mine, its = windows[row["key"]], windows[other["key"]]
    difference, error = _mean(mine.after - its.after, mine)
    delta, delta_error = _mean((mine.after - mine.before) - (its.after - its.before), mine)
    chance = 0.0
    if row["quantizer"] != FULL_PRECISION:
        parts = [number(one.get(name)) for one in (row, other) for name in ("rounding_sd", "numerics_sd")]
        chance = math.hypot(*(part for part in parts if math.isfinite(part)), mine.calibration_se, its.calibration_se)
        entry |= {"delta_difference": delta, "delta_error": delta_error}
    entry |= {"difference": difference, "error": error, "chance": chance}
    design = mine.design or independent(len(mine.after))
    return Evidence(difference, error, float(design.freedom), len(mine.after), chance, share=design.share)


def _mean(values: np.ndarray, losses: Losses) -> tuple[float, float]:
    return mean_and_error(values, np.ones(len(values)), losses.design)


def _decide(compared: Sequence[tuple[dict[str, Any], Evidence]]) -> None:
    """Add p and the decision to every row that was compared."""
    evidence = [one for _, one in compared]
    if not evidence:
        return
    both = np.minimum(1.0, 2 * np.minimum(p_values(evidence, 1), p_values(evidence, -1)))
    for (entry, one), p in zip(compared, holm(both)):
        entry |= {"p": None if np.isnan(p) else float(p), "decision": _decision(one, float(p))}
        entry |= {"detectable": size if math.isfinite(size := smallest(one, len(evidence))) else None}


def smallest(evidence: Evidence, compared: int = 1) -> float:
    """The least difference, in either direction, that is decided with probability 0.8 among so many; infinite where
    its error is not known."""
    return Rule(SIGNIFICANT * evidence.total, LEVEL / 2, compared).smallest(evidence)


def _decision(evidence: Evidence, p: float) -> Decision:
    if evidence.worsening == 0 and evidence.error == 0:
        return Decision.SAME
    if not p <= LEVEL or abs(evidence.worsening) < SIGNIFICANT * evidence.total:
        return Decision.UNDECIDED
    return Decision.WORSE if evidence.worsening > 0 else Decision.BETTER


def least(found: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Of each group and configuration the row with the least loss; of equal ones the first."""
    best: dict[tuple[Any, str], Mapping[str, Any]] = {}
    for row in found:
        cell = row["group"], configuration(row)
        if cell not in best or row["loss"] < best[cell]["loss"]:
            best[cell] = row
    return list(best.values())


def read_records(folder: str | Path) -> dict[str, dict[str, Any]]:
    """The records of `average` and `probe` in an output folder, by their file.

    Raises DataFileError where there is none, or none of this version.
    """
    found: dict[str, dict[str, Any]] = {}
    for path in (Path(folder) / f"{kind}.json" for kind in KINDS):
        if not path.is_file():
            continue
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise DataFileError("a record of endings cannot be read", got=path, remedy=_AGAIN) from error
        if not _complete(record):
            raise DataFileError("a record of endings is of another version, or damaged", got=path, remedy=_AGAIN)
        found[str(path)] = record
    if not found:
        allowed = "an output folder of `ptq-eval probe` or `ptq-eval average`"
        raise DataFileError("no record of endings", got=folder, allowed=allowed, remedy=_FIRST)
    return found


def _complete(record: Any) -> bool:
    """Whether a record has what a reader needs."""
    if not isinstance(record, dict) or record.get("format") != FORMAT or not isinstance(record.get("rows"), list):
        return False
    needed = ("ending", "bits", "tokens", "params", "quantizer")
    compared = ("difference", "error", "chance", "detectable")
    return all(
        isinstance(row, dict)
        and all(name in row for name in (*needed, *(compared if row.get("decision") is not None else ())))
        for row in record["rows"]
    )
