"""Any law fitted to anybody's table: `fit_data("runs.csv", "chinchilla", "N=params,D=flop/(6*N),loss=final")`.

The table is a file, a data frame or plain columns.  What comes back holds `fit`, of the shape of `fit.json`, so that
whatever reads an output folder of this project reads this too.  Each law is fitted to the rows that its own columns
call for; a law of the loss and a law of delta fitted together also give the critical number of tokens.

Unlike the main job, which reports what cannot be fitted, this one refuses it: see `laws.fit.requirements`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ptq_eval.config.fit import FitConfig
from ptq_eval.errors import (
    ColumnError,
    NegativeDeltaError,
    NotDeterminedError,
    NotFiniteError,
    NotVaryingError,
    OptionError,
    TooFewPointsError,
    UnknownPluginError,
)
from ptq_eval.laws.base import FitResult, Law
from ptq_eval.laws.catalogue import law_for
from ptq_eval.laws.compare.candidate import undetermined
from ptq_eval.laws.findings import Finding
from ptq_eval.laws.fit.folder import VERSION
from ptq_eval.laws.fit.hold import determines, explains, fit_held, holding
from ptq_eval.laws.fit.rank import require_determined
from ptq_eval.laws.fit.requirements import COLUMN_ALIASES, require
from ptq_eval.laws.fit.restrict import restrict, started
from ptq_eval.laws.formulas.per_category import PerCategory
from ptq_eval.laws.formulas.written import Formula, names_in
from ptq_eval.laws.tables.delimited import Dialect
from ptq_eval.laws.tables.external import FORMAT, Mapped, as_mapping, map_columns, select, unread
from ptq_eval.laws.tables.files import as_columns, read_table
from ptq_eval.laws.tables.reader import Table, as_text
from ptq_eval.laws.turning.predicted import critical_tokens
from ptq_eval.records import Progress
from ptq_eval.report.common.words import reason_text
from ptq_eval.report.table_fit.page import with_texts
from ptq_eval.results.points import Config
from ptq_eval.version import __version__

Data = str | Path | pd.DataFrame | Mapping[str, Any]
Refusal = TooFewPointsError | NotVaryingError | NegativeDeltaError
REFUSALS = (TooFewPointsError, NotVaryingError, NegativeDeltaError)
"""What keeps one group from being fitted and says nothing of the others."""
Restrictions = tuple[Mapping[str, float], Iterable[tuple[str, str]], Mapping[str, tuple[float, float]]]
"""Constants that are fixed, tied and bounded."""
MOST_GROUPS = 200
"""A column with more values than this is no grouping."""


@dataclass(frozen=True)
class Part:
    """One law fitted to one group of rows."""

    law: Law
    result: FitResult
    mapped: Mapped
    group: Mapping[str, str]
    held: Mapping[str, Finding | None] = field(default_factory=dict)
    """The constants that were fixed by the caller, or that these rows cannot determine, with the reason."""

    @property
    def label(self) -> str:
        """What was fitted, in a few words."""
        return ", ".join([self.law.name, *(f"{name} {value}" for name, value in self.group.items())])

    def entry(self) -> dict[str, Any]:
        """The entry of `fits` in `fit.json`."""
        config = {**Config(self.group.get("quantizer", "")).to_dict(), "group": dict(self.group)}
        data, names = self.mapped.data, (*self.law.columns, self.law.response)
        ranges = {name: [float(data[name].min()), float(data[name].max())] for name in names}
        found = {**self.result.to_dict(), "law": self.law.name, "ranges": ranges, "held": list(self.held)}
        found["held_because"] = {name: reason.to_dict() for name, reason in self.held.items() if reason}
        return {**config, "runs": [], **found}


@dataclass(frozen=True)
class DataFit:
    """What `fit_data` found: `fit` is JSON-ready, of the shape of `fit.json`; `parts` hold the fits themselves."""

    fit: dict[str, Any]
    parts: list[Part] = field(repr=False)

    @property
    def results(self) -> list[FitResult]:
        """The fits, in the order of the laws and, within one, of the groups."""
        return [part.result for part in self.parts]

    def write(self, out: str | Path) -> list[Path]:
        """Write fit.json, replicates.npz, report.md and the figures below `out`; the paths written.

        Raises OutputFullError.
        """
        from ptq_eval.report.table_fit.page import write

        return write(Path(out), self)


def columns_of(data: Data, config: FitConfig) -> tuple[Table, str]:
    """The columns of a table, and what to call it.  Raises DataFileError and OptionError."""
    dialect = Dialect(config.separator, config.decimal, config.comment)
    if isinstance(data, (str, Path)):
        return read_table(data, dialect), Path(data).name
    if not dialect.plain:
        raise OptionError("separator, decimal and comment are for a file of text", got=type(data).__name__)
    frame = data if isinstance(data, pd.DataFrame) else pd.DataFrame({name: np.asarray(v) for name, v in data.items()})
    return as_columns(frame), "a table in memory"


def fit_data(
    data: Data,
    law: str | None = None,
    columns: str | Mapping[str, str | Mapping[Any, float]] = "",
    *,
    progress: Progress | None = None,
    **options: Any,
) -> DataFit:
    """Fit one law, or several joined by commas, to a table: Chinchilla's, unless a `law` or a `formula` is named.

    data: a .csv, .tsv, .parquet, .json or .jsonl file, a data frame, or columns by name.  columns: what each variable
    is, as "N=params,D=flop/(6*N)" or a mapping; the usual names need no mapping.  `options` are the fields of
    `fit_config.FitConfig`, as on the command line; among them where: a condition on rows, and by: a column, for one fit
    per value; where that is the bits, what they do to delta is held, and a group that cannot be fitted is named in a
    warning, as long as another one can.

    Raises DataFileError, ColumnError, ExpressionError, TextColumnError, NotFiniteError, NotPositiveError, UnitsError,
    BitsError, TooFewPointsError, NotVaryingError, NegativeDeltaError, NotDeterminedError, UnknownPluginError and
    OptionError.
    """
    named = law if law is not None else "" if options.get("formula") else "chinchilla"
    config = FitConfig.of({"law": named, "columns": columns, **options}, also=("data", "progress"))
    table, name = columns_of(data, config)
    mapping = {**config.axis_column, **as_mapping(config.columns)}
    made = _laws(config, mapping, table)
    unused = unread(made, mapping, table)
    groups = groups_of(table, config.by, config.where)
    by = config.by
    per_bits = by in ("P", *COLUMN_ALIASES["P"]) or (by != "" and by == mapping.get("P", mapping.get("bits")))
    parts, refused = list[Part](), list[Refusal]()
    for one in made:
        own = _own(one, config, len(made) > 1)
        for group, rows in groups:
            if progress:
                progress("fitting", float(len(parts)), float(len(made) * len(groups)))
            searched, mapped = _categories(one, map_columns(one, table, mapping, rows), table, config.per_category)
            given = {**(undetermined(one, mapped.data, ("P",)) if per_bits else {}), **own[0]}
            found = _part(searched, mapped, group, (given, *own[1:]), config)
            if isinstance(found, Part):
                parts.append(found)
            else:
                refused.append(found)
    if not parts or (refused and not by):
        raise refused[0]
    unused += [f"{error.what}, got {error.got}: not fitted" for error in refused]
    about = {"source": name, "columns": mapping, "where": config.where, "rows": len(next(iter(table.values()), ()))}
    return _found(_determined(parts), about, unused, config.seed)


def _laws(config: FitConfig, mapping: Mapping[str, str], table: Table) -> list[Law]:
    """The laws that are asked for.  Raises UnknownPluginError and OptionError."""
    names = [text.strip() for text in config.law.split(",") if text.strip()]
    if config.formula:
        if names or config.law_options:
            what = "--formula cannot be combined with --law or its options"
            raise OptionError(what, got=", ".join(names), remedy="give one")
        return [_formula(config, {*mapping, *table})]
    if not names:
        raise UnknownPluginError("no law is named", remedy="--law chinchilla, or --formula")
    made = [law_for(text, [*mapping, *table], config.law_options) for text in names]
    return [started(law, config.start, len(made) > 1) for law in made]


def _formula(config: FitConfig, columns: Iterable[str]) -> Formula:
    """The user's formula.  Raises ColumnError for a constant that looks like a misspelled column."""
    known = set(columns)
    restricted = {*config.fixed, *config.bounds, *config.start, *(name for pair in config.tied for name in pair)}

    def is_column(name: str) -> bool:
        return bool({name, *COLUMN_ALIASES.get(name, ())} & known)

    for name in names_in(config.formula):
        near = [other for other in known if other.lower() == name.lower()]
        if not is_column(name) and near and len(name) > 1 and name not in restricted:
            remedy = f"did you mean {near[0]!r}?  A constant of this name: --start {name}=X"
            raise ColumnError("the formula names a column in another spelling", got=name, remedy=remedy)
    return Formula(config.formula, is_column, start=config.start, bounds=config.bounds)


def _categories(law: Law, mapped: Mapped, table: Table, columns: Mapping[str, str]) -> tuple[Law, Mapped]:
    """`law` with one efficiency for each category, and the categories among its data.

    Raises ColumnError, NotFiniteError and OptionError.
    """
    for variable, name in columns.items():
        labels = as_text(table, name)[mapped.rows].tolist()
        if "" in labels:
            row = mapped.rows[labels.index("")] + 1
            remedy = "exclude such rows with --where"
            raise NotFiniteError(f"--per-category: {name} is blank", got=f"row {row}", remedy=remedy)
        law = added = PerCategory(law, variable, labels)
        mapped = Mapped({**mapped.data, added.key: added.column(labels)}, mapped.rows, mapped.notes)
    return law, mapped


def _part(law: Law, mapped: Mapped, group: Mapping[str, str], own: Restrictions, config: FitConfig) -> Part | Refusal:
    """One law fitted to one group, with what its points do not determine held; or why it cannot be fitted."""
    fixed, tied, bounds = own
    first = {name: value for name, (value, _) in holding(law, mapped.data, fixed, tied, bounds).items()}
    refusal = _refusal(restrict(law, {**fixed, **first}, tied, bounds), mapped.data, group, bool(law.needs))
    if refusal is not None:
        return refusal
    names = ("loss", "huber_delta", "seed", "level", "intervals")
    options = {name: getattr(config, name) for name in names}
    found = fit_held(law, mapped.data, fixed, tied, bounds, n_boot=config.bootstrap, **options)
    return Part(law, found.result, mapped, group, {**dict.fromkeys(fixed), **found.reasons})


def _determined(parts: list[Part]) -> list[Part]:
    """The fits.  Raises NotDeterminedError where none determines a constant."""
    if not any(_determines(part) for part in parts):
        part = parts[0]
        reason = part.result.status.reason
        got = reason_text(reason.to_dict()) if reason else "every constant is at a bound of its search, or held"
        if determines(part.result, part.held):
            got = "their mean describes them as well"
        raise NotDeterminedError(
            f"{part.label}: these rows determine no constant",
            got=f"{part.result.n_points} points: {got}",
            remedy="add rows with other values of the variables, or fix constants: --fixed NAME=VALUE",
        )
    return parts


def _determines(part: Part) -> bool:
    """Whether a fit says anything; of a formula that anybody wrote, also whether it says more than a mean."""
    written = isinstance(part.law, Formula)
    return determines(part.result, part.held) and (not written or explains(part.result, part.held))


def _refusal(law: Law, data: Mapping[str, np.ndarray], group: Mapping[str, str], known: bool) -> Refusal | None:
    """Why `law` cannot be fitted to a group, with the group's name; `known`: whether it is no user's own formula."""
    try:
        (require_determined if known else require)(law, data)
    except REFUSALS as error:
        what = ": ".join(filter(None, (", ".join(f"{name} {value}" for name, value in group.items()), error.what)))
        return type(error)(what, got=error.got, allowed=error.allowed, remedy=error.remedy)
    return None


def _found(parts: list[Part], about: dict[str, Any], notes: Iterable[str], seed: int) -> DataFit:
    """The fits with the critical tokens that follow from them, and what is to be said of all of them."""
    lone = list(dict.fromkeys(part.law.name for part in parts if _has_turns(part) and _curve(part, parts) is None))
    notes = [*(note for part in parts for note in part.mapped.notes), *notes]
    for law in lone:
        notes.append(
            f"{law} alone gives no critical number of tokens: fit a law of the loss beside it, as in "
            f"--law chinchilla,{law}"
        )
    turns = [(group, found.to_dict()) for group, found in _turns(parts, seed)]
    critical = [{**Config("").to_dict(), "group": dict(group), **found} for group, found in turns]
    warnings = list(dict.fromkeys(notes))
    found = {"fits": [part.entry() for part in parts], "critical_tokens": critical, "warnings": warnings}
    return DataFit(with_texts({**found, "version": VERSION, "data": about, "ptq_eval": __version__}), parts)


def _has_turns(part: Part) -> bool:
    return hasattr(part.law, "critical_tokens")


def _curve(part: Part, parts: list[Part]) -> Part | None:
    """The fit of the loss before quantization that belongs to a law of delta, or the law itself if it has one."""
    if part.law.response == "loss":
        return part if part.result.values["B"] != 0 else None
    same = (other for other in parts if other.group == part.group and other.law.response == "loss")
    same = (other for other in same if not isinstance(other.law, PerCategory))
    falling = (other for other in same if {"B", "beta"} <= set(other.result.values) and other.result.values["B"] != 0)
    return next(falling, None)


def _own(law: Law, config: FitConfig, several: bool) -> Restrictions:
    """The restrictions that name constants of this law: among several laws each has its own."""
    known = {p.name for p in law.parameters}
    fixed = {name: value for name, value in config.fixed.items() if not several or name in known}
    known |= {name for pair in config.tied for name in pair if name.startswith("eff_")}
    bounds = {name: value for name, value in config.bounds.items() if not several or name in known}
    return fixed, [pair for pair in config.tied if not several or set(pair) <= known], bounds


def groups_of(table: Table, by: str, where: str) -> list[tuple[dict[str, str], np.ndarray]]:
    """({column: value}, places of its rows) for each value of the column `by`; one group of all rows without it.

    Raises ColumnError and, for a column with very many values, OptionError.
    """
    rows = select(table, where)
    if not by:
        return [({}, rows)]
    labels = as_text(table, by)[rows]
    values = list(dict.fromkeys(labels.tolist()))
    if len(values) > MOST_GROUPS:
        allowed = f"at most {MOST_GROUPS}"
        raise OptionError(f"--by {by}: too many values for a grouping", got=len(values), allowed=allowed)
    return [({by: value}, rows[labels == value]) for value in values]


def _turns(parts: list[Part], seed: int) -> Iterable[tuple[Mapping[str, str], Any]]:
    """Critical tokens wherever a group has a law of delta and one of the loss, or one law of both."""
    for part in parts:
        curve = _curve(part, parts) if _has_turns(part) else None
        if curve is None:
            continue
        data = part.mapped.data
        if curve is part:
            after = data["loss"]
        else:
            known = curve.mapped.data
            shared = [name for name in ("run", "N", "D") if name in known and name in data]
            before = dict(zip(_places(known, shared), known["loss"]))
            after = np.array([before.get(key, np.nan) for key in _places(data, shared)]) + data["delta"]
        for group, rows in _of_each_format(part.group, data):
            own = {name: values[rows] for name, values in data.items()}
            for found in critical_tokens(part.law, part.result, own, curve.result, after[rows], seed=seed):
                yield group, found


def _of_each_format(
    group: Mapping[str, str], data: Mapping[str, np.ndarray]
) -> Iterable[tuple[Mapping[str, str], np.ndarray]]:
    """The rows of every number format, where a table has several: each is a curve of its own at one number of bits."""
    names = data.get(FORMAT, np.full(1, ""))
    for name in dict.fromkeys(names.tolist()):
        several = len(set(names.tolist())) > 1
        yield ({**group, FORMAT: name}, names == name) if several else (group, np.ones(len(data["D"]), bool))


def _places(data: Mapping[str, np.ndarray], names: Iterable[str]) -> Iterable[tuple[Any, ...]]:
    """What tells the checkpoints of a table apart."""
    return zip(*(data[name].tolist() for name in names))
