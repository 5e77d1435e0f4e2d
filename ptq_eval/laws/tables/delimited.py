"""CSV in its many dialects: which one a file is in is an option, and a file in another one is refused with that option.

`1,5` is one and a half in half of Europe, a thousand and five hundred nowhere, and two cells in plain CSV.  So nothing
is guessed: a separator, a decimal comma or comment lines are read where they are named (`Dialect`), and where they are
not but the text shows them, the error says which option reads it.  With a decimal comma a decimal point is no number.
"""

from __future__ import annotations

import csv
import io
import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ptq_eval.errors import DataFileError, OptionError

OTHERS = {";": "';'", "\t": "'\\t'", "|": "'|'"}
"""Separators beside the comma, as a shell takes them."""
COMMENTS = ("#", "%", "//")
_COMMA = re.compile(r"[+-]?\d+,\d+")
_EUROPEAN = re.compile(r"\s*[+-]?(\d+(,\d*)?|,\d+)([eE][+-]?\d+)?\s*")
_BLANK = ("", "na", "nan", "n/a", "null", "none", "-")
_SAMPLE = 50


class Words(str):
    """Text that looks like a number and must not be read as one, such as 1.5 in a table with decimal commas."""


@dataclass(frozen=True)
class Dialect:
    """How cells are separated ("" for the ending's own: a comma, or a tab in .tsv), which character is the decimal
    point, and what comment lines begin with ("" for none)."""

    separator: str = ""
    decimal: str = "."
    comment: str = ""

    def __post_init__(self) -> None:
        """Raises OptionError."""
        object.__setattr__(self, "separator", {"\\t": "\t", "tab": "\t"}.get(self.separator, self.separator))
        if len(self.separator) > 1 or self.separator in ('"', "\n", "\r"):
            raise OptionError("--separator is not one character", got=repr(self.separator), remedy="--separator ';'")
        if self.decimal not in (".", ","):
            raise OptionError("--decimal is no decimal sign", got=repr(self.decimal), allowed="'.', ','")
        if self.separator == self.decimal:
            raise OptionError(
                "--separator and --decimal are the same", got=repr(self.decimal), remedy="--separator ';'"
            )

    @property
    def plain(self) -> bool:
        """Whether nothing is asked for."""
        return self == Dialect()


def read_delimited(text: str, path: Path, usual: str, dialect: Dialect) -> pd.DataFrame:
    """The table in `text`; `usual` is the separator of its ending.

    Raises DataFileError for a table in another dialect, with the option that reads it, and OptionError.
    """
    separator = dialect.separator or usual
    if separator == dialect.decimal:
        raise OptionError(
            "--decimal , needs another separator of cells than the comma", got=path.name, remedy="--separator ';'"
        )
    lines = _with_header(text.splitlines(keepends=True), separator)
    if dialect.comment:
        lines = [line for line in lines if not line.lstrip().startswith(dialect.comment)]
    filled = [line for line in lines if line.strip()]
    if not filled:
        raise DataFileError("a data file without rows", got=path)
    rows = list(csv.reader(filled[:_SAMPLE], delimiter=separator))
    _check_comments(rows, path)
    _check_separator(rows, filled[:_SAMPLE], separator, path)
    _check_names(rows[0], path)
    if all(_is_number(cell) for cell in rows[0]):
        remedy = "begin the file with a line of names"
        raise DataFileError(
            "the first line holds no column names", got=f"{path.name}: {filled[0].strip()}", remedy=remedy
        )
    comma: dict[str, Any] = {"dtype": str, "keep_default_na": False} if dialect.decimal == "," else {}
    with warnings.catch_warnings():
        warnings.simplefilter("error", pd.errors.ParserWarning)
        try:
            frame = pd.read_csv(io.StringIO("".join(lines)), sep=separator, index_col=False, **comma)
        except pd.errors.ParserWarning as problem:
            what, allowed = "rows have more cells than there are names of columns", f"{len(rows[0])} cells in a row"
            raise DataFileError(what, got=path.name, allowed=allowed, remedy="quote cells with commas") from problem
    return frame.apply(_with_commas) if comma else frame


def _with_header(lines: list[str], separator: str) -> list[str]:
    """The lines, a header that is written as a comment (`# N,D,loss`) without its mark.

    It is the last comment line before a line of numbers, with as many names as that has cells.
    """
    filled = [i for i, line in enumerate(lines) if line.strip()]
    marked = [_mark(lines[i]) for i in filled]
    if not marked or not marked[0] or all(marked):
        return lines
    first = marked.index("")
    place, mark = filled[first - 1], marked[first - 1]
    header = lines[place].lstrip()[len(mark) :].lstrip()
    names, cells = (next(csv.reader([line], delimiter=separator), []) for line in (header, lines[filled[first]]))
    if len(names) < 2 or len(names) != len(cells) or any(map(_is_number, names)) or not any(map(_is_number, cells)):
        return lines
    return [*lines[:place], header, *lines[place + 1 :]]


def _mark(line: str) -> str:
    return next((mark for mark in COMMENTS if line.lstrip().startswith(mark)), "")


def _check_names(names: list[str], path: Path) -> None:
    """Names that two columns have: which is meant would be a guess."""
    stripped = [name.strip() for name in names]
    twice = next((name for name in stripped if name and stripped.count(name) > 1), None)
    if twice is not None:
        places = ", ".join(str(i) for i, name in enumerate(stripped, 1) if name == twice)
        raise DataFileError(
            "two columns have the same name", got=f"{twice!r} in {path.name}: columns {places}", remedy="rename one"
        )


def _check_comments(rows: list[list[str]], path: Path) -> None:
    """Comment lines that nobody named: at the head, or where a line has other cells than the header."""
    for i, row in enumerate(rows):
        mark = _mark(row[0]) if row else ""
        if mark and (i == 0 or len(row) != len(rows[0])):
            what = f"{path.name} has comment lines"
            raise DataFileError(what, got=repr(",".join(row)[:60]), remedy=f"--comment '{mark}'")


def _check_separator(rows: list[list[str]], lines: list[str], separator: str, path: Path) -> None:
    """Cells that another character separates: it occurs equally often in every line, and `separator` does not."""
    widths = {len(row) for row in rows}
    if len(widths) == 1 and widths != {1}:
        return
    for other, written in OTHERS.items():
        cells = [row for row in csv.reader(lines, delimiter=other) if row]
        if other == separator or len({len(row) for row in cells}) != 1 or len(cells[0]) < 2:
            continue
        found = any(_COMMA.fullmatch(cell.strip()) for row in cells[1:] for cell in row)
        remedy = f"--separator {written}" + (" --decimal ," if found else "")
        got = repr(lines[0].strip()[:60])
        raise DataFileError(f"the cells of {path.name} are separated by {written}", got=got, remedy=remedy)
    if separator != "," and any("," in line for line in lines) and widths == {1}:
        remedy = "--separator ,"
        raise DataFileError(
            f"the cells of {path.name} are not separated by {separator!r}",
            got=repr(lines[0].strip()[:60]),
            remedy=remedy,
        )


def _with_commas(column: pd.Series) -> pd.Series:
    """A column of text as numbers with decimal commas where every filled cell is one; else as the text it is."""
    values = [_european(str(cell)) for cell in column]
    if all(isinstance(value, float) for value in values):
        return pd.Series(np.array(values, float), column.index)
    return pd.Series(values, column.index, object)


def _european(cell: str) -> float | str | None:
    if cell.strip().lower() in _BLANK:
        return float("nan")
    if _EUROPEAN.fullmatch(cell):
        return float(cell.replace(",", "."))
    return Words(cell)


def _is_number(cell: str) -> bool:
    try:
        float(cell.replace(",", "."))
    except ValueError:
        return False
    return True
