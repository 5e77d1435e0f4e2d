"""Every law on every table: `arena(["results/embedded", "runs=runs.csv"])` scores what laws say of held-out points.

A table is an output folder or anything that `fit_data` reads.  Laws of delta are scored for each quantizer
configuration of a folder, or each combination of values of the columns `by` of a table (its quantizers, unless it is
said); laws of the loss on the losses, once where several groups have the same.  What a law cannot read is a reason for
its exclusion, not an error; a table that no law can read is an error.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ptq_eval import plugins
from ptq_eval.config.arena import ArenaConfig, Source, sources
from ptq_eval.config.fit import TABLE, FitConfig
from ptq_eval.errors import (
    BitsError,
    ColumnError,
    NotFiniteError,
    NothingToFitError,
    NotPositiveError,
    OptionError,
    PtqEvalError,
    TextColumnError,
)
from ptq_eval.jobs.compare_laws import Group, columns_for, recorded, table_group
from ptq_eval.jobs.fit_table import columns_of, groups_of
from ptq_eval.laws.base import Law
from ptq_eval.laws.catalogue import law_for
from ptq_eval.laws.compare.arena import MAX_FACTOR, contest
from ptq_eval.laws.compare.ranking import Exclusion
from ptq_eval.laws.fit.requirements import COLUMN_ALIASES
from ptq_eval.laws.tables.external import as_mapping
from ptq_eval.laws.tables.reader import Table, as_text
from ptq_eval.records import Progress
from ptq_eval.version import __version__

VERSION = 1
"""Of the shape of `arena.json`."""
RESPONSES = ("delta", "loss")
DEFAULT_GROUPING = "quantizer"
ALL_GROUPS = "all groups"
"""The label of what several groups have in common."""
UNREADABLE = (ColumnError, TextColumnError, NotFiniteError, NotPositiveError, BitsError)
"""What keeps one law from a table and says nothing of the others."""


def arena(data: Sequence[str], *, progress: Progress | None = None, **options: Any) -> dict[str, Any]:
    """What `arena.json` holds: for each table its rankings, for each ranking the scores of all laws.

    data: output folders or files, as PATH or NAME=PATH.  `options` are the fields of `config.arena.ArenaConfig`, and
    of `config.fit.FitConfig` those that say how a table is read (columns, where, separator, decimal, comment), which
    hold wherever a description of the table does not say otherwise.

    Raises NothingToFitError where a table has no response of any law, and what `fit_data` and `load` raise.
    """
    reading = FitConfig.of({name: options.pop(name) for name in TABLE if name in options})
    config = ArenaConfig.of(options, also=("data", *TABLE))
    usual: dict[str, Any] = {"columns": reading.columns, "where": reading.where, "by": config.by}
    given = sources(data, config.tables, **usual)
    names = [name.strip() for name in config.laws.split(",") if name.strip()] or plugins.names("laws")
    found = []
    for place, source in enumerate(given):
        if progress:
            progress("scoring laws", float(place), float(len(given)))
        found.append(_of_table(source, names, config, reading))
    about = {"laws": names, "seed": config.seed, "most_points": config.most_points, "worst": MAX_FACTOR}
    described = Path(config.tables).as_posix() if config.tables else ""
    return {"tables": found, **about, "described": described, "version": VERSION, "ptq_eval": __version__}


def _of_table(source: Source, names: Sequence[str], config: ArenaConfig, reading: FitConfig) -> dict[str, Any]:
    if Path(source.path).is_dir():
        if given := [f"{name} {value}" for name in ("columns", "where", "by") if (value := getattr(source, name))]:
            what = "columns, where and by are for tables, and this is an output folder"
            remedy = f"its table: {source.name}={Path(source.path) / 'degradation.csv'}"
            raise OptionError(what, got=f"{source.name}, {', '.join(given)}", remedy=remedy)
        laws, groups, _ = recorded(source.path, FitConfig(), list(names))
        present = {response: groups for response in RESPONSES}
    else:
        laws, present = _read(source, names, reading)
    rankings, problems = [], list[PtqEvalError]()
    for response, groups in present.items():
        same = {name: law for name, law in laws.items() if law.response == response}
        if same:
            rankings += list(_rankings(groups, same, config, problems))
    if not rankings:
        if problems:
            raise problems[0]
        got = f"{source.name}, for {', '.join(names)}"
        raise NothingToFitError("no law has its response in this table", got=got, allowed="rows with delta or loss")
    described = ("name", "title", "source", "licence", "where", "by", "columns", "file")
    about = {name: getattr(source, name) for name in described}
    return {
        **about,
        "absent": [r for r in RESPONSES if not any(one["response"] == r for one in rankings)],
        "rankings": rankings,
    }


def _read(source: Source, names: Sequence[str], reading: FitConfig) -> tuple[dict[str, Law], dict[str, list[Group]]]:
    """The laws, and the groups of rows that have each response."""
    table, _ = columns_of(source.path, reading)
    mapping = as_mapping(source.columns)
    laws = {text: law_for(text, [*mapping, *table]) for text in names}
    by = source.grouped_by or ((DEFAULT_GROUPING,) if DEFAULT_GROUPING in table else ())
    present = {}
    for response in RESPONSES:
        known = {response, *COLUMN_ALIASES.get(response, ())}
        if not known & {*mapping, *table}:
            continue
        present[response] = [
            table_group(", ".join(about.values()) or source.name, about, table, mapping, filled)
            for about, rows in _groups(table, by, source.where)
            if len(filled := _filled(table, mapping, known, rows))
        ]
    return laws, present


def _groups(table: Table, by: Sequence[str], where: str) -> list[tuple[dict[str, str], np.ndarray]]:
    """The rows of each combination of values of the columns `by`."""
    found = groups_of(table, by[0] if by else "", where)
    for name in by[1:]:
        own = {value: rows for labels, rows in groups_of(table, name, where) for value in labels.values()}
        crossed = [
            ({**about, name: value}, np.intersect1d(rows, some)) for about, rows in found for value, some in own.items()
        ]
        found = [(about, rows) for about, rows in crossed if len(rows)]
    return found


def _filled(table: Table, mapping: Mapping[str, str], names: Iterable[str], rows: np.ndarray) -> np.ndarray:
    """The rows whose response is not blank, as delta is where nothing was quantized."""
    named = [mapping.get(name, name) for name in names if name in mapping or name in table]
    column = next((name for name in named if name in table), None)
    return rows if column is None else rows[as_text(table, column)[rows] != ""]


def _rankings(
    groups: Sequence[Group], laws: Mapping[str, Law], config: ArenaConfig, problems: list[PtqEvalError]
) -> Iterator[dict[str, Any]]:
    """A ranking per group and set of rows; groups with the same points, as losses before quantization, count once."""
    found: dict[tuple[Any, ...], tuple[list[Group], dict[str, Law], dict[str, Any]]] = {}
    for group in groups:
        sets, unread = _readable(group, laws)
        problems += unread.values()
        for same in sets:
            if (data := columns_for(group, same.values())) is not None:
                key = _key(data, next(iter(same.values())).response)
                found.setdefault(key, ([], same, unread))[0].append(group)
    for alike, same, unread in found.values():
        data = columns_for(alike[0], same.values()) or {}
        points, all_points = _thinned(data, config.most_points, config.seed)
        one = contest(same, points, seed=config.seed).to_dict()
        for name, error in unread.items():
            reason = {"kind": Exclusion.UNREADABLE.value, "what": error.what, "got": str(error.got)}
            one["excluded"][name] = reason
        about = {"label": alike[0].label, **alike[0].about}
        if len(alike) > 1:
            about = {"label": ALL_GROUPS, "group": {}}
        yield {**about, **one, "thinned_from": all_points, "repeats": _repeats(points)}


def _readable(group: Group, laws: Mapping[str, Law]) -> tuple[list[dict[str, Law]], dict[str, PtqEvalError]]:
    """The laws that read the same number of rows of a group, and the errors of those that cannot read it."""
    sets: dict[int, dict[str, Law]] = {}
    unread: dict[str, PtqEvalError] = {}
    for name, law in laws.items():
        try:
            length = len(group.columns(law).get(law.response, ()))
        except UNREADABLE as error:
            unread[name] = error
            continue
        if length:
            sets.setdefault(length, {})[name] = law
    return list(sets.values()), unread


def _key(data: Mapping[str, np.ndarray], response: str) -> tuple[Any, ...]:
    """What two groups with the same points share."""
    return tuple(sorted(zip(*(data[name].tolist() for name in ("run", "N", "D", response) if name in data))))


def _repeats(data: Mapping[str, np.ndarray]) -> int:
    """How many points are the same as an earlier one in every column, as rows that a table has twice."""
    plain = {name: values for name, values in data.items() if np.ndim(values) == 1 and values.dtype != object}
    return int(pd.DataFrame(plain).duplicated().sum())  # without windows and their design


def _thinned(data: Mapping[str, np.ndarray], most: int, seed: int) -> tuple[dict[str, np.ndarray], int | None]:
    """At most so many points, of whole checkpoints drawn at random, and how many there were if that is more."""
    labels = data["checkpoint"]
    if len(labels) <= most:
        return dict(data), None
    names, counts = np.unique(labels, return_counts=True)
    order = np.random.default_rng(seed).permutation(len(names))
    kept = names[order[np.cumsum(counts[order]) <= most]]
    rows = np.isin(labels, kept)
    return {name: np.asarray(values)[rows] for name, values in data.items()}, len(labels)
