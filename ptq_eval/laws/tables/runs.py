"""Which points of a table belong to one training run, and where in its learning-rate schedule each of them is.

Points that share a checkpoint or a run are not independent.  A column `run` says which do.  Without one, every
combination of N, D and the precision or format of *training* is taken for a run of its own, which is what most
published tables hold, and the notes say so: whoever trains at 4 and at 8 bits has trained two models, whoever
quantizes one model to 4 and to 8 bits has not.
"""

from __future__ import annotations

import numpy as np

from ptq_eval.errors import ColumnError, NotFiniteError, NotPositiveError, TextColumnError
from ptq_eval.laws.fit.requirements import COLUMN_ALIASES, MAX_BITS
from ptq_eval.laws.tables.labels import label_of
from ptq_eval.laws.tables.reader import Reader
from ptq_eval.laws.tables.schedule import KNOWN, phase_of

LABELS = ("run", "checkpoint", "phase")
"""Columns of names, not of numbers; all of them may be absent."""
TRAINED = ("P_w", "P_a", "P_kv", "E_bits", "M_bits", "B_g")
"""Variables of training beside N and D."""


def belonging(reader: Reader, data: dict[str, np.ndarray], rates_matter: bool) -> list[str]:
    """Add to `data` the columns "run", "checkpoint" and, where known, "phase" and "learning_rate"; what to note of it.

    Raises NotFiniteError, NotPositiveError and TextColumnError; for learning rates only where they matter.
    """
    notes, n = [], len(data[reader.law.response])
    for name in LABELS:
        labels = reader.label(name) if name == "phase" else reader.complete_label(name)
        if labels is not None:
            data[name] = labels
    try:
        rates = reader.learning_rates()
    except (NotFiniteError, NotPositiveError, TextColumnError) as problem:
        if rates_matter:
            raise
        rates = None
        notes.append(f"learning rates are not used: {problem.what}")
    if rates is not None:
        data["learning_rate"] = rates
    if "se" not in data and reader.has("se"):
        notes.append("the column `se` is blank in every row: no standard errors are known")
    training = _training(reader, data)
    places = [" ".join(f"{name}={values[i]}" for name, values in training.items()) for i in range(n)]
    if "run" not in data:
        data["run"] = np.array(places)
        what = "pair" if len(training) == 2 else "combination"
        column = "the column `run` is blank, so nothing" if reader.has("run") else "no column `run`"
        notes.append(
            f"{column} says which points come from one training run: each {what} ({', '.join(training)}) is taken for "
            "a run of its own, and intervals are too narrow where points are checkpoints of one run"
        )
        data.setdefault("checkpoint", data["run"])
    data.setdefault("checkpoint", np.array([f"{run} {place}" for run, place in zip(data["run"], places)]))
    return notes


def share_of_decay(reader: Reader, data: dict[str, np.ndarray]) -> np.ndarray:
    """S [n] of the laws of phase, from learning rates or phases.

    Raises ColumnError where there are neither, and NotFiniteError where they do not tell of some row.
    """
    n = len(data["run"])
    if "learning_rate" not in data and "phase" not in data:
        raise ColumnError(
            f"{reader.law.name} needs S, how far the learning rate has decayed, and nothing says what it follows from",
            allowed=", ".join(reader.table) or "none",
            remedy="--columns learning_rate=COLUMN, phase=COLUMN or S=COLUMN",
        )
    tokens = data["D"] if "D" in data else reader.required("D")
    rates, phases = data.get("learning_rate", np.full(n, np.nan)), data.get("phase", np.full(n, ""))
    s, _ = phase_of(rates, phases, data["run"], tokens)
    unknown = np.flatnonzero(np.isnan(s))
    if len(unknown):
        more = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
        raise NotFiniteError(
            "S, how far the learning rate has decayed, cannot be determined",
            got=f"run {str(data['run'][unknown[0]])!r} in row {reader.rows[unknown[0]] + 1}{more}",
            allowed="rates of two or more checkpoints of a run, or a phase",
            remedy="name the runs (--columns run=COLUMN), or give phases: annealed, constant",
        )
    return s


def check_phases(reader: Reader, data: dict[str, np.ndarray]) -> None:
    """Raises TextColumnError for an unknown phase."""
    phases = data.get("phase", np.full(1, ""))
    odd = np.flatnonzero(~np.isin(phases, ("", *KNOWN)))
    if len(odd):
        more = f" and {len(odd) - 1} more" if len(odd) > 1 else ""
        raise TextColumnError(
            "the column phase has an unknown value",
            got=f"{str(phases[odd[0]])!r} in row {reader.rows[odd[0]] + 1}{more}",
            allowed=f"{', '.join(KNOWN)}, or blank",
            remedy="leave the column out with another name, or write one of these",
        )


def _training(reader: Reader, data: dict[str, np.ndarray]) -> dict[str, list[str]]:
    """What tells one trained model from another, by name, as text for each point."""
    found = {}
    for name in ("N", "D"):
        known = (name, data[name]) if name in data else reader.optional(reader.names(name))
        if known is not None:
            found[name] = [f"{value:g}" for value in known[1]]
    if "D" not in found:
        instead = next(([name] for name in ("learning_rate", "S") if name in data), list(reader.law.columns))
        found |= {name: [f"{value:g}" for value in data[name]] for name in instead if name in data}
    for name in TRAINED:
        if name in data:
            found[name] = [f"{value:g}" for value in data[name]]
        elif (labels := _unread(reader, name)) is not None:
            found[name] = labels
    return found


def _unread(reader: Reader, name: str) -> list[str] | None:
    """A variable of training that the law does not read: under its own name, or a usual one if it looks like bits."""
    every = {**reader.table, **reader.defined}
    if name in every:
        return [label_of(value) for value in every[name].tolist()]
    for values in (np.asarray(every[other]) for other in COLUMN_ALIASES[name] if other in every and name != "B_g"):
        if values.dtype.kind in "iuf" and not np.any((values < 1) | (values > MAX_BITS)):
            return [label_of(value) for value in values.tolist()]
    return None
