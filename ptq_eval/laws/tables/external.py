"""From anybody's table to the columns that a law reads.

A mapping says what each variable of a law is in the table: `N=params,D=flop/(6*N),loss=final_loss,bits=b`.  The
right side is a column's name, exactly as the table spells it, an expression over columns and over the names that the
mapping has defined before, or a column of names with the number of each (`bits={BF16:16,NVFP4:4}`).  A variable that
the mapping omits is taken from the column of its own name or of a usual one (`params` for N, `tokens` for D,
`bits` for P), so tables of this project need no mapping.

What is wrong with the data is said before any fit, in terms of the table: which column, which row, which value.
Nothing is dropped: exclude a row with a blank cell by a condition (`where`).

Which points belong to one training run is found in `runs`.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ptq_eval.errors import ColumnError, ExpressionError
from ptq_eval.laws.base import Law
from ptq_eval.laws.fit.requirements import COLUMN_ALIASES, check_sizes, check_units
from ptq_eval.laws.tables import categories
from ptq_eval.laws.tables.expressions import evaluate, names_in
from ptq_eval.laws.tables.reader import Reader, Table, column, speaking_of
from ptq_eval.laws.tables.runs import LABELS, belonging, check_phases, share_of_decay

FORMAT = "format"
"""A column of names of number formats, for laws of bits after training."""
_NEXT = re.compile(r",(?=\s*[A-Za-z_]\w*\s*=(?!=))")
_WHOLE = re.compile(r"""\{(?:"[^"]*"|'[^']*'|[^{}"'])*\}|`[^`]*`""")
"""What holds no border between two parts: braces and names in backticks."""
_PAIR = re.compile(r"\s*([A-Za-z_]\w*)\s*=(?!=)\s*(.*\S)\s*", re.DOTALL)


def parse_columns(text: str) -> dict[str, str]:
    """`N=params,D=flop/(6*N)` as {"N": "params", "D": "flop/(6*N)"}, in order.  Raises ExpressionError."""
    found: dict[str, str] = {}
    for part in _parts(text) if text.strip() else ():
        pair = _PAIR.fullmatch(part)
        if pair is None or pair[1] in found:
            what = "is defined twice" if pair else "is not NAME=COLUMN"
            remedy = "--columns N=params,D='flop/(6*N)',loss=final_loss"
            raise ExpressionError(f"a part of the column mapping {what}", got=repr(part.strip()), remedy=remedy)
        found[pair[1]] = pair[2]
    return found


def _parts(text: str) -> list[str]:
    """The parts of a mapping, which commas separate; a comma in braces or in backticks separates none."""
    whole = [match.span() for match in _WHOLE.finditer(text)]
    cuts = [m.start() for m in _NEXT.finditer(text) if not any(low < m.start() < high for low, high in whole)]
    return [text[low:high] for low, high in zip([0, *(cut + 1 for cut in cuts)], [*cuts, len(text)])]


def as_mapping(columns: str | Mapping[str, str | Mapping[Any, Any]]) -> dict[str, str]:
    """A mapping as text by name, in order, from text or Python's {"N": "params", "bits": {"BF16": 16}}.

    Raises ExpressionError.
    """
    if isinstance(columns, str):
        return parse_columns(columns)
    return {name: categories.written(v) if isinstance(v, Mapping) else str(v) for name, v in columns.items()}


@dataclass
class Mapped:
    """A table as a law's data: `data` columns [n], `rows` [n] their places in the table, and `notes`."""

    data: dict[str, np.ndarray]
    rows: np.ndarray
    notes: list[str] = field(default_factory=list)


def select(table: Table, where: str) -> np.ndarray:
    """The places [n] of the rows that meet a condition, in order; all of them for "".

    Raises ColumnError and ExpressionError; also for a condition that no row meets.
    """
    n = _length(table)
    if not where.strip():
        return np.arange(n)
    with speaking_of("the condition", where, table, ""):
        chosen = evaluate(where, lambda name: column(table, name, why="in the condition"), condition=True)
    chosen = np.broadcast_to(np.asarray(chosen, bool), n)
    if not chosen.any():
        raise ExpressionError("no row meets the condition", got=repr(where), allowed=f"any of {n} rows")
    return np.flatnonzero(chosen)


def map_columns(
    law: Law,
    table: Table,
    columns: Mapping[str, str],
    rows: np.ndarray | None = None,
    needed: Sequence[str] | None = None,
) -> Mapped:
    """The columns of `law` out of a table; `columns` maps names to columns or expressions, in order.

    rows: the places of those to be used, as `select` gives them; all by default.  needed: the variables that must be
    there, all by default; others are omitted where nothing says which column they are.

    Raises ColumnError, ExpressionError, TextColumnError, NotFiniteError, NotPositiveError, UnitsError and BitsError.
    """
    rows = select(table, "") if rows is None else rows
    table = {name: np.asarray(values)[rows] for name, values in table.items()}
    reader = Reader(table, rows, law)
    for name, expression in columns.items():
        reader.define(name, expression)
    phase = "S" in law.columns and not reader.has("S")
    every = [name for name in law.columns if name != "S" or not phase]
    every = dict.fromkeys((*every, law.response, *(("N", "D") if needed is not None else ())))
    wanted = [name for name in every if needed is None or name in needed or reader.has(name)]
    data = {name: reader.required(name) for name in wanted}
    if (errors := reader.standard_errors(law.response)) is not None:
        data["se"] = errors
    notes = belonging(reader, data, "S" in law.columns or needed is not None or "learning_rate" in columns)
    if phase:
        check_phases(reader, data)
        data |= {"S": share_of_decay(reader, data)} if needed is None else {}
    notes += _formats(reader, data) if "P" in law.columns else []
    check_units(law, data, rows, reader.source)
    check_sizes(law, data, rows, reader.source)
    if law.response == "loss" and "P" not in law.columns and reader.has("P") and "P_w" not in law.columns:
        first = _first_of_each(data, (*law.columns, "loss", "run"))
        if len(first) < len(rows):
            notes.append(f"{law.name}: {len(rows)} rows hold {len(first)} losses, each counted once")
            rows, data = rows[first], {name: values[first] for name, values in data.items()}
    return Mapped(data, rows, notes)


def _formats(reader: Reader, data: dict[str, np.ndarray]) -> list[str]:
    """Add the number formats to `data` where the table names them; what to note if bits do not distinguish them."""
    if FORMAT not in reader.table or (names := reader.label(FORMAT)) is None:
        return []
    data[FORMAT] = names
    mixed = [set(names[data["P"] == bits].tolist()) for bits in np.unique(data["P"])]
    if not (most := max(mixed, key=len, default=set())) or len(most) < 2:
        return []
    return [
        f"{reader.law.name}: {', '.join(sorted(most))} have the same bits, and one law is fitted to all of them: "
        "--by format fits each, --bits-axis effective or gaussian distinguishes them"
    ]


def unread(laws: Iterable[Law], columns: Mapping[str, str], table: Table) -> list[str]:
    """Notes on what the mapping gives and no law here reads.

    Raises ColumnError for a name that is no variable of any law and that no other expression uses: a misprint.
    """
    laws = list(laws)
    texts = [text for text in columns.values() if text not in table]
    used = {name for text in texts if not categories.is_mapping(text) for name in names_in(text)}
    used |= {categories.parse(text).column for text in texts if categories.is_mapping(text)}
    usual = {*COLUMN_ALIASES, "delta", "se", "loss_se", "delta_se", *LABELS}
    own = {name for law in laws for name in (*law.columns, law.response, f"{law.response}_se")}
    every = {other for name in {*usual, *own} for other in (name, *COLUMN_ALIASES.get(name, ()))}
    read = {
        *own,
        "P",
        "se",
        *LABELS,
        "learning_rate",
    }  # with "P", a loss that is repeated in the row of every bit-width counts once
    read |= {other for name in read for other in COLUMN_ALIASES.get(name, ())}
    wanted = dict.fromkeys(name for law in laws for name in (*law.columns, law.response))
    notes = []
    for name in [name for name in columns if name not in used]:
        if name not in every:
            near = difflib.get_close_matches(name, sorted(every), n=1, cutoff=0.5)
            remedy = f"did you mean {near[0]!r}?" if near else "omit it"
            what = "the mapping gives a name that no law reads and no expression uses"
            raise ColumnError(what, got=repr(name), allowed=", ".join(wanted), remedy=remedy)
        if name not in read:
            notes.append(
                f"{name} = {columns[name]} is given, but not read by any of: {', '.join(x.name for x in laws)}"
            )
    return notes


def _first_of_each(data: Mapping[str, np.ndarray], names: Sequence[str]) -> np.ndarray:
    """The first of all points that agree in these columns: each bit-width repeats the loss before quantization."""
    keys = zip(*(data[name].tolist() for name in names if name in data))
    found: dict[Any, int] = {}
    for place, key in enumerate(keys):
        found.setdefault(key, place)
    return np.array(list(found.values()))


def _length(table: Table) -> int:
    return max((len(values) for values in table.values()), default=0)
