"""Laws ranked on the same records, and hypotheses tested: `compare_laws("out", "kumar,ouyang")`.

The records come from an output folder, or from any table (see `ptq_eval.jobs.fit_table`).  Laws of delta are compared
per quantizer configuration, laws of the loss on the full-precision losses; on request per value of a column (`by`).
If the records have learning rates, tokens and the schedule's phase are always tested as rival explanations of delta,
because a comparison of laws in D means nothing if the phase is the cause.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ptq_eval.config.fit import ONE_LAW, TABLE, FitConfig
from ptq_eval.errors import ColumnError, NothingToFitError, OptionError, UnknownPluginError
from ptq_eval.jobs.fit_table import Data, columns_of, groups_of
from ptq_eval.laws.base import Law
from ptq_eval.laws.catalogue import law_for, make_law
from ptq_eval.laws.compare import ranking
from ptq_eval.laws.compare.hypotheses import equality, phase_against_tokens
from ptq_eval.laws.fit.folder import VERSION as FIT_VERSION
from ptq_eval.laws.fit.folder import fit_points
from ptq_eval.laws.tables.external import as_mapping, map_columns, unread
from ptq_eval.laws.tables.labels import label_of
from ptq_eval.laws.tables.reader import Table
from ptq_eval.laws.tables.schedule import phase_of
from ptq_eval.records import Progress
from ptq_eval.report import with_texts
from ptq_eval.report.comparison.words import with_words
from ptq_eval.results.load import Results, load
from ptq_eval.results.points import (
    FULL_PRECISION,
    Point,
    Windows,
    by,
    delta_data,
    full_precision,
    loss_data,
    with_trajectories,
)
from ptq_eval.version import __version__

VERSION = 1
"""Of the shape of `comparison.json`."""
QUANTIZATION = (
    "quantizer", "bits", "group_size", "symmetric", "calibration", "options",
    "format", "effective_bits", "gaussian_mse",
)  # fmt: skip
"""Columns that say how weights were quantized: full-precision rows belong to every value of them."""
COLUMN_NAMES = {"corpus": "protocol", "text": "protocol"}


@dataclass(frozen=True)
class Group:
    """Points that are fitted together: their label, and their columns for a law's response."""

    label: str
    about: Mapping[str, Any]
    columns: Callable[[Law], dict[str, np.ndarray]]


def compare_laws(
    source: Data,
    laws: str | Sequence[str],
    columns: str | Mapping[str, str | Mapping[Any, float]] = "",
    *,
    progress: Progress | None = None,
    **options: Any,
) -> dict[str, Any]:
    """What `comparison.json` holds: rankings per group and response, the test of phase against tokens, other `tests`.

    source: an output folder, or a table as for `fit_data` with its `columns`.  laws: names joined by commas, or a
    list.  `options` are the fields of `config.fit.FitConfig`; among them by: a column, for one comparison per value,
    and tests: pairs of constants that may be equal.  "records" is the digest of the folder's.  Raises NothingToFitError
    without any, and what `fit_data` raises.
    """
    names = [n.strip() for n in (laws.split(",") if isinstance(laws, str) else laws) if n.strip()]
    config = _config(names, columns, options)
    tests, by, bootstrap = config.tests, config.by, config.bootstrap
    grouped = recorded if isinstance(source, (str, Path)) and Path(source).is_dir() else _given
    made, groups, known = grouped(source, config, names)
    options = {name: getattr(config, name) for name in ("loss", "huber_delta", "seed")}
    asked = made or {"kumar": make_law("kumar")}
    deltas = {name: law for name, law in asked.items() if law.response == "delta"}
    ranked = _with_data(groups, [(same, same.values()) for same in _by_response(made)])
    phased = _with_data(groups, [(deltas, deltas.values())] if deltas else [])
    paired = _with_data(groups, [((law, pair), [law]) for pair in tests for law in [_with(asked, pair)]])
    comparisons, failed = [], ()
    for place, (about, same, data) in enumerate(ranked):
        if progress:
            progress("comparing laws", float(place), float(len(ranked)))
        one = ranking.compare(same, data, rankings=len(ranked), **options, intervals="none")
        failed = failed or (() if one.entries else (same, data, one))
        comparisons.append({**about, **one.to_dict()})
    options["n_boot"] = bootstrap
    phases = [{**about, **phase_against_tokens(data, groups=len(phased), **options)} for about, _, data in phased]
    answers = [
        {**about, **equality(law, data, *pair, questions=len(paired), **options)} for about, (law, pair), data in paired
    ]
    if not comparisons and not answers:
        asked_for, allowed = ", ".join(names), "rows with delta or loss"
        raise NothingToFitError("nothing to compare these laws on", got=asked_for, allowed=allowed)
    ranking.require_one(comparisons, answers, () if known else failed)  # a report of records names the reasons
    found = with_words({"comparisons": comparisons, "phase": phases, "tests": answers})
    about = {"laws": names, "by": by, "loss": config.loss, "records": known}
    return {**found, **about, "version": VERSION, "ptq_eval": __version__}


def _config(names: Sequence[str], columns: Any, options: Mapping[str, Any]) -> FitConfig:
    """The options of a comparison.  Raises UnknownPluginError without a question, and OptionError."""
    config = FitConfig.of({"laws": ",".join(names), "columns": columns, **options}, also=("source", "progress"))
    if alone := config.changed(*ONE_LAW):
        raise OptionError(f"{', '.join(alone)}: for a fit of one law, not for a comparison", remedy="--law LAW")
    if not names and not config.tests:
        raise UnknownPluginError("no law is named", remedy="--laws kumar,ouyang")
    return config


def fit_by(
    folder: str | Path | Results, column: str, *, seed: int = 0, bootstrap: int = 500, progress: Progress | None = None
) -> dict[str, Any]:
    """The laws of the main job fitted to the records of a folder, once per value of a column; as `fit.json`.

    Entries name their "group".  column: `bits`, `quantizer`, `corpus`, `run` or any other of the degradation table.
    Raises NothingToFitError and ColumnError.
    """
    results = folder if isinstance(folder, Results) else load(folder)
    groups = point_groups(results, column)
    found: dict[str, Any] = {"fits": [], "critical_tokens": [], "warnings": [], "version": FIT_VERSION, "by": column}
    found["bits_axis"] = results.bits_axis
    said_in: dict[str, list[str]] = {}
    for place, (about, own) in enumerate(groups):
        if progress:
            progress("fitting", float(place), float(len(groups)))
        one = with_texts(fit_points(own, results.windows, seed=seed, n_boot=bootstrap, axis=results.bits_axis).content)
        said = ", ".join(f"{key} {value}" for key, value in about.items())
        for entry in one["fits"]:
            named = " ".join(filter(None, (entry["quantizer"], entry.get("format", ""))))
            if entry["quantizer"] != FULL_PRECISION:
                found["fits"].append({**entry, "group": about, "label": f"{named}, {said}"})
            elif entry not in found["fits"]:
                found["fits"].append(entry)
        found["critical_tokens"] += [{**entry, "group": about} for entry in one["critical_tokens"]]
        for warning in one["warnings"]:
            said_in.setdefault(warning, []).append(said)
    for warning, where in said_in.items():
        found["warnings"].append(warning if len(where) == len(groups) else f"{'; '.join(where)}: {warning}")
    return found


def _with(laws: Mapping[str, Law], pair: tuple[str, str]) -> Law:
    """The first law that has both constants; if none has both, the first law, so that the fitter raises the error."""
    fitting = (law for law in laws.values() if set(pair) <= {p.name for p in law.parameters})
    return next(fitting, next(iter(laws.values())))


def _by_response(laws: Mapping[str, Law]) -> Iterator[dict[str, Law]]:
    for response in dict.fromkeys(law.response for law in laws.values()):
        yield {name: law for name, law in laws.items() if law.response == response}


def columns_for(group: Group, laws: Iterable[Law]) -> dict[str, np.ndarray] | None:
    """All columns that these laws read, as far as the group has them; None where it lacks their response."""
    data: dict[str, np.ndarray] = {}
    for law in laws:
        data |= group.columns(law)
        if law.response not in data or not np.isfinite(data[law.response]).any():
            return None
    if "S" not in data and {"learning_rate", "D"} <= {*data}:
        phases = data.get("phase", np.full(len(data["run"]), ""))
        data["S"], _ = phase_of(data["learning_rate"], phases, data["run"], data["D"])
    return data


def _with_data(
    groups: Sequence[Group], asked: Sequence[tuple[Any, Iterable[Law]]]
) -> list[tuple[dict[str, Any], Any, dict[str, np.ndarray]]]:
    """(what the group is about, what is asked, the data of its laws) wherever a group has them."""
    found = []
    for group in groups:
        for what, laws in asked:
            if (data := columns_for(group, laws)) is not None:
                found.append(({"label": group.label, **group.about}, what, data))
    return found


def _given(source: Data, config: FitConfig, names: list[str]) -> tuple[dict[str, Law], list[Group], str]:
    """Laws and groups of a user's table, which has no digest."""
    table, name = columns_of(source, config)
    mapping = {**config.axis_column, **as_mapping(config.columns)}
    laws = {text: law_for(text, [*mapping, *table]) for text in names}
    unread(laws.values(), mapping, table)
    groups = []
    for about, rows in groups_of(table, config.by, config.where):
        label = ", ".join(f"{key} {value}" for key, value in about.items()) or name
        groups.append(table_group(label, about, table, mapping, rows))
    return laws, groups, ""


def table_group(
    label: str, about: Mapping[str, str], table: Table, mapping: Mapping[str, str], rows: np.ndarray
) -> Group:
    """The `rows` of a table as points, with any of a law's columns that the table has."""

    def read_columns(law: Law) -> dict[str, np.ndarray]:
        return map_columns(law, table, mapping, rows, needed=(law.response,)).data

    return Group(label, {"group": dict(about)}, read_columns)


def point_groups(results: Results, column: str) -> list[tuple[dict[str, str], list[Point]]]:
    """Points by the value of a column of the table, full precision with each if the column is about quantization.

    Raises ColumnError; one group of all points for "".
    """
    if not column:
        return [({}, results.points)]
    name = COLUMN_NAMES.get(column, column)
    if name not in results.frame:
        raise ColumnError.of(column, map(str, results.frame))
    shared = name in QUANTIZATION
    value_of = dict(zip(results.frame["key"], map(label_of, results.frame[name])))
    quantized = [point for point in results.points if point.config.quantizer != FULL_PRECISION]
    groups = []
    for value in dict.fromkeys(value_of[point.key] for point in quantized):
        own = [
            point
            for point in results.points
            if value_of[point.key] == value or (shared and point.config.quantizer == FULL_PRECISION)
        ]
        groups.append(({column: value}, with_trajectories(own)))
    return groups


def recorded(folder: Any, config: FitConfig, names: list[str]) -> tuple[dict[str, Law], list[Group], str]:
    """Laws and groups (per configuration, and of the full-precision losses) of an output folder, and its digest."""
    if foreign := config.changed(*TABLE):
        raise OptionError(f"{', '.join(foreign)}: for a table", remedy=f"--data {folder}/degradation.csv")
    results, column = load(folder, config.bits_axis), config.by
    groups = []
    for about, points in point_groups(results, column):
        said = ", ".join(f"{key} {value}" for key, value in about.items())
        quantized = [p for p in points if p.config.quantizer != FULL_PRECISION]
        for scheme, some in by(quantized, "curve").items():
            label = ", ".join(filter(None, (scheme.name, said)))
            groups.append(Group(label, {**scheme.to_dict(), "group": about}, _reader(some, results.windows, "delta")))
        if not about or column not in QUANTIZATION:
            full = full_precision(points)
            groups.append(Group("full precision", {"group": about}, _reader(full, results.windows, "loss")))
    if not groups:
        raise OptionError("no row can be compared", got=str(folder))
    return {name: make_law(name) for name in names}, groups, results.digest


def _reader(points: list[Point], windows: Windows, response: str) -> Callable[[Law], dict[str, np.ndarray]]:
    def read_columns(law: Law) -> dict[str, np.ndarray]:
        if law.response != response or not points:
            return {}
        data = delta_data(points, windows) if response == "delta" else loss_data(points, windows)
        sizes = np.array([float(p.config.group_size or np.nan) for p in points])
        rates = np.array([p.learning_rate for p in points])
        return {**data, "G": sizes, "learning_rate": rates, "phase": np.array([p.phase for p in points])}

    return read_columns
