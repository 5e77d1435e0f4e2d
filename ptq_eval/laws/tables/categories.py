"""Names in a table that mean numbers: `bits={BF16:16,NVFP4:4}`, `P=format{"FP 8":8}`, `P=format{@formats.csv}`.

In braces is the number of each name; before them the column, where it is not the one of the variable's own name.  A
file after @ holds the same, as a JSON object or as CSV of two columns.  A name in the table without a number is an
error, since to skip its rows silently would change the fit.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ptq_eval.errors import DataFileError, ExpressionError, TextColumnError
from ptq_eval.laws.tables.labels import label_of

_FORM = re.compile(r"\s*(?P<column>[^{}]*?)\s*\{(?P<inside>.*)\}\s*", re.DOTALL)
_ENTRY = re.compile(r"""\s*(?:"([^"]*)"|'([^']*)'|([^,:"'{}]+?))\s*:\s*([^,:"'{}\s]+)\s*(?:,|$)""")
_REMEDY = "--columns 'bits={BF16:16,NVFP4:4}'"


@dataclass(frozen=True)
class Categories:
    """The column ("" for the variable's own) and the number of each name in it."""

    column: str
    numbers: Mapping[str, float]

    def of(self, labels: list[object], rows: np.ndarray, name: str) -> np.ndarray:
        """The numbers [n] of `labels`; NaN for a blank one.  `rows` are their places in the table.

        Raises TextColumnError for a name without a number.
        """
        texts = [label_of(value) for value in labels]
        lacking = [i for i, text in enumerate(texts) if text and text not in self.numbers]
        if lacking:
            text = texts[lacking[0]]
            more = f" and {len(lacking) - 1} more" if len(lacking) > 1 else ""
            raise TextColumnError(
                f"{name}: a name has no number",
                got=f"{text!r} in row {rows[lacking[0]] + 1}{more}",
                allowed=", ".join(self.numbers),
                remedy=f"add {text}:NUMBER to the braces, or exclude such rows with --where",
            )
        return np.array([self.numbers[text] if text else np.nan for text in texts])


def is_mapping(text: str) -> bool:
    """Whether a right side of the column mapping ends in braces."""
    return text.rstrip().endswith("}") and "{" in text


def parse(text: str) -> Categories:
    """`format{BF16:16}` as the column and its numbers.  Raises ExpressionError and DataFileError."""
    form = _FORM.fullmatch(text)
    if form is None:
        raise ExpressionError("a mapping of names to numbers cannot be read", got=repr(text), remedy=_REMEDY)
    column, inside = form["column"].strip("`"), form["inside"].strip()
    if inside.startswith("@"):
        return Categories(column, _of_file(Path(inside[1:].strip().strip("\"'"))))
    found: dict[str, float] = {}
    place = 0
    while place < len(inside):
        entry = _ENTRY.match(inside, place)
        name = next((part for part in entry.groups()[:3] if part is not None), "") if entry else ""
        if entry is None or not name or name in found:
            what = f"{name!r} has two numbers" if entry and name in found else "a part is not NAME:NUMBER"
            raise ExpressionError(f"names and numbers: {what}", got=repr(inside[place:]), remedy=_REMEDY)
        found[name], place = _number(entry[4], name), entry.end()
    if not found:
        raise ExpressionError("the braces hold no name with a number", got=repr(text), remedy=_REMEDY)
    return Categories(column, found)


def written(numbers: Mapping[object, object]) -> str:
    """A mapping from Python as text: {BF16: 16} as `{"BF16":16}`."""
    pairs = []
    for name, value in numbers.items():
        label, mark = label_of(name), '"' if '"' not in label_of(name) else "'"
        pairs.append(f"{mark}{label}{mark}:{value}")
    return f"{{{','.join(pairs)}}}"


def _of_file(path: Path) -> dict[str, float]:
    try:
        text = path.read_text("utf-8-sig")
        pairs = list(json.loads(text).items()) if path.suffix.lower() == ".json" else _pairs(text)
    except FileNotFoundError as error:
        raise DataFileError("there is no such file of names and numbers", got=path) from error
    except (OSError, ValueError, AttributeError) as error:
        allowed = 'a JSON object {"BF16": 16}, or CSV of two columns'
        raise DataFileError("a file of names and numbers cannot be read", got=path, allowed=allowed) from error
    found = {}
    for name, value in pairs:
        if label_of(name) in found:
            raise DataFileError("a file of names and numbers has a name twice", got=f"{name!r} in {path}")
        found[label_of(name)] = _number(str(value), str(name))
    return found


def _pairs(text: str) -> list[tuple[str, str]]:
    """The rows of a CSV of two columns; a first row without a number is its header."""
    rows = [tuple(cell.strip() for cell in row) for row in csv.reader(text.splitlines()) if row]
    if any(len(row) != 2 for row in rows):
        raise ValueError
    pairs = [(row[0], row[1]) for row in rows]
    return pairs[1:] if pairs and not _is_number(pairs[0][1]) else pairs


def _number(text: str, name: str) -> float:
    if not _is_number(text):
        raise ExpressionError(f"{name!r} is not mapped to a number", got=repr(text), remedy=_REMEDY)
    return float(text)


def _is_number(text: str) -> bool:
    try:
        return bool(np.isfinite(float(text)))
    except ValueError:
        return False
