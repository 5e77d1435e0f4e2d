"""One table read column by column: names that a mapping defines, numbers out of cells, and what is wrong with them.

Errors speak of the table: the variable, the column or expression behind it, the row, the value.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np

from ptq_eval import units
from ptq_eval.errors import (
    ColumnError,
    ExpressionError,
    NotFiniteError,
    NotPositiveError,
    OptionError,
    TextColumnError,
)
from ptq_eval.laws.base import Law
from ptq_eval.laws.fit.requirements import COLUMN_ALIASES
from ptq_eval.laws.tables import categories
from ptq_eval.laws.tables.delimited import Words
from ptq_eval.laws.tables.expressions import evaluate, in_backticks
from ptq_eval.laws.tables.labels import label_of

Table = Mapping[str, np.ndarray]
"""Columns by name, each [n]: numbers, or objects where some cell is text."""


def column(table: Table, name: str, *, why: str = "") -> np.ndarray:
    """A column as it is; `why` says what it is wanted for.  Raises ColumnError with the nearest name."""
    if name not in table:
        raise ColumnError.of(name, table, why=why)
    return np.asarray(table[name])


def as_text(table: Table, name: str) -> np.ndarray:
    """A column as labels, whole numbers without a decimal point.  Raises ColumnError."""
    return np.array([label_of(value) for value in column(table, name).tolist()])


@contextmanager
def speaking_of(subject: str, expression: str, table: Table, before: str) -> Iterator[None]:
    """Errors in an expression are raised again with its `subject`, and with backticks as the remedy if they lack."""
    try:
        yield
    except (ExpressionError, ColumnError) as error:
        better = in_backticks(expression, table)
        what = f"{subject}: {error.what}" if isinstance(error, ExpressionError) else error.what
        remedy = error.remedy
        if better != expression:
            remedy = f"a name with blanks needs backticks: {before}{better}"
        raise type(error)(what, got=error.got, allowed=error.allowed, remedy=remedy) from error


class Reader:
    """A table read column by column, with the names that a mapping has defined so far."""

    def __init__(self, table: Table, rows: np.ndarray, law: Law) -> None:
        self.table, self.rows, self.law, self.n = table, rows, law, len(rows)
        self.defined: dict[str, np.ndarray] = {}
        self.expressions: dict[str, str] = {}

    def names(self, name: str) -> tuple[str, ...]:
        """The names that a variable goes by; bits mean the weights' where the law reads no others."""
        only_weights = name == "P_w" and "P" not in self.law.columns
        return (name, *COLUMN_ALIASES.get(name, ()), *(("P", *COLUMN_ALIASES["P"]) if only_weights else ()))

    def source(self, name: str) -> str:
        """The column or expression that a variable is taken from, as the user wrote it."""
        mapped = next((other for other in self.names(name) if other in self.expressions), None)
        if mapped is not None:
            return self.expressions[mapped]
        return next((other for other in self.names(name) if other in self.table), name)

    def define(self, name: str, expression: str) -> None:
        """Add a name: a column as the table spells it, numbers for the names in a column, or an expression."""
        self.expressions[name] = expression
        if expression in self.table and expression not in self.defined:
            self.defined[name] = np.asarray(self.table[expression])
        elif categories.is_mapping(expression):
            found = categories.parse(expression)
            labels = column({**self.table, **self.defined}, found.column or name, why=f"wanted for {name}")
            self.defined[name] = found.of(labels.tolist(), self.rows, name)
        else:
            with speaking_of(name, expression, self.table, f"{name}="):
                values = evaluate(expression, lambda other: self._number(other, name))
            self.defined[name] = np.broadcast_to(np.asarray(values), self.n)

    def optional(self, names: Sequence[str]) -> tuple[str, np.ndarray] | None:
        """The first of `names` that the mapping defines, else that the table has, with its numbers.

        None if there is none, or if every cell is blank.  Raises TextColumnError.
        """
        for place in (self.defined, self.table):
            for name in [name for name in names if name in place]:
                values = self.numbers(place[name], name)
                return None if np.isnan(values).all() else (name, values)
        return None

    def standard_errors(self, response: str) -> np.ndarray | None:
        """The standard errors of the response: positive, and known of every row or of none."""
        if (found := self.optional((f"{response}_se", "se"))) is None:
            return None
        name, values = found
        remedy = "every row needs its error, since errors are weights"
        self._refuse(~np.isfinite(values), values, name, NotFiniteError, "is blank, NaN or infinite", remedy)
        self._refuse(values <= 0, values, name, NotPositiveError, "is zero or negative", remedy)
        return values

    def learning_rates(self) -> np.ndarray | None:
        """Learning rates, NaN where blank; zero is the end of a schedule."""
        if (found := self.optional(self.names("learning_rate"))) is None:
            return None
        name, values = found
        self._refuse(np.isinf(values), values, name, NotFiniteError, "is infinite")
        self._refuse(values < 0, values, name, NotPositiveError, "is negative", at_least="= 0")
        return values

    def has(self, name: str) -> bool:
        """Whether the mapping or the table says what `name` is."""
        return any(other in self.defined or other in self.table for other in self.names(name))

    def required(self, name: str) -> np.ndarray:
        """A variable of the law: finite and, but for the response, positive (or zero, where the law allows it)."""
        for other in self.names(name):
            if other in self.defined or other in self.table:
                values = self.numbers(self.defined.get(other, self.table.get(other)), name)
                break
        else:
            what = f"{self.law.name} needs {name}, and nothing says which column that is"
            remedy = f"--columns {name}=COLUMN"
            raise ColumnError(what, allowed=", ".join(self.table) or "none", remedy=remedy)
        self._refuse(~np.isfinite(values), values, name, NotFiniteError, "is blank, NaN or infinite")
        if name in self.law.signed:
            return values
        if name in self.law.from_zero:
            self._refuse(values < 0, values, name, NotPositiveError, "is negative", at_least="= 0")
        elif name != "delta":
            self._refuse(values <= 0, values, name, NotPositiveError, "is zero or negative")
        return values

    def label(self, name: str) -> np.ndarray | None:
        """A column of names, as text; None if there is none, or if every cell is blank."""
        for other in self.names(name):
            if other in self.defined or other in self.table:
                labels = as_text({**self.table, **self.defined}, other)
                return labels if (labels != "").any() else None
        return None

    def complete_label(self, name: str) -> np.ndarray | None:
        """`label` where a blank cell among others is refused: it would make one run of all that lack a name."""
        labels = self.label(name)
        blank = [] if labels is None else np.flatnonzero(labels == "").tolist()
        if blank:
            raise NotFiniteError(
                f"{self._said(name)} is blank in some rows",
                got=f"row {self.rows[blank[0]] + 1}" + (f" and {len(blank) - 1} more" if len(blank) > 1 else ""),
                allowed="a name in every row, or in none",
                remedy="name the run of every row, or give the column another name",
            )
        return labels

    def numbers(self, values: Any, name: str, counts: bool = False) -> np.ndarray:
        """Values as floats; blank cells become NaN.  Raises TextColumnError.

        Parameters, tokens and, with `counts`, anything else may be written as 10M or 1.5B (`units`).
        """
        counts = counts or any(name in (count, *COLUMN_ALIASES[count]) for count in ("N", "D"))
        values = np.asarray(values)
        if values.dtype.kind in "iuf":
            return values.astype(float)
        found = [
            (i, v) for i, v in enumerate(values.tolist()) if v is not None and v == v and not _is_number(v, counts)
        ]
        if found:
            place, value = found[0]
            got = f"{value!r} in row {self.rows[place] + 1}"
            more = f" and {len(found) - 1} more" if len(found) > 1 else ""
            what = f"{self._said(name)} holds {'true and false' if isinstance(value, bool) else 'text'}"
            raise TextColumnError(what, got=got + more, allowed="numbers", remedy=_remedy(value, name, counts))
        return np.array([_number(value, counts) for value in values.tolist()], float)

    def _number(self, name: str, wanted: str) -> np.ndarray:
        """A name inside an expression: one defined before, or a column of numbers."""
        values = column({**self.table, **self.defined}, name, why=f"wanted for {wanted}")
        return values.astype(float) if values.dtype.kind == "b" else self.numbers(values, name, counts=True)

    def _refuse(
        self,
        bad: np.ndarray,
        values: np.ndarray,
        name: str,
        error: Any,
        what: str,
        remedy: str = "",
        at_least: str = "",
    ) -> None:
        if not bad.any():
            return
        first = int(np.flatnonzero(bad)[0])
        count = int(bad.sum())
        got = f"{values[first]:g} in row {self.rows[first] + 1}" + (f" and {count - 1} more" if count > 1 else "")
        source = self.source(name)
        source = source if source.isidentifier() or source not in self.table else f"`{source}`"
        condition = f"isfinite({source})" if error is NotFiniteError else f"{source} >{at_least or ' 0'}"
        leave_out = f"leave such rows out with --where '{condition}'"
        raise error(f"{self._said(name)} {what}", got=got, remedy=f"{remedy}, or {leave_out}" if remedy else leave_out)

    def _said(self, name: str) -> str:
        """A variable with the column or expression that it is taken from."""
        source = self.source(name)
        return name if source == name else f"{name} = {source}"


def _number(value: Any, counts: bool) -> float:
    try:
        return units.read_number(value, units.COUNT) if counts and isinstance(value, str) else float(value)
    except (TypeError, ValueError, OverflowError, OptionError):
        with suppress(TypeError, ValueError, OverflowError):
            return float(value)
        return float("nan")


def _is_number(value: Any, counts: bool = False) -> bool:
    if isinstance(value, (bool, Words)):
        return False
    try:
        float(value)
    except (TypeError, ValueError, OverflowError):
        return counts and not np.isnan(_number(value, counts))
    return True


def _remedy(value: Any, name: str, counts: bool) -> str:
    """How a cell that is no number becomes one: by its look."""
    text = str(value).strip()
    if isinstance(value, Words) and _is_number(text):
        return "write every number with a decimal comma, or none and leave out --decimal"
    if re.fullmatch(r"[+-]?\d{1,3}(,\d{3}){2,}(\.\d+)?", text):
        return "write numbers without commas between their thousands"
    if re.fullmatch(r"[+-]?\d+,\d+([eE][+-]?\d+)?", text):
        return "for decimal commas: --decimal ,  (with --separator ';'); for thousands: numbers without commas"
    if counts and re.match(r"[+-]?[\d.]", text):
        return f"write counts as {units.COUNT.example}"
    if re.fullmatch(r"[+-]?[\d.]+\s*[KMBT]?", text):
        return "write plain numbers (7e9, not 7B)"
    return f"write plain numbers (7e9, not 7B), or give names numbers: --columns '{name}=COLUMN{{{text[:20]}:NUMBER}}'"
