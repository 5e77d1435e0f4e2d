"""The documents in a file of records: the text under one field of every row."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ptq_eval.errors import TextSourceError

DEFAULT_FIELD = "text"
PATIENCE = 1000
"""Rows without the field after which the rest of the file is not searched for it."""

_KINDS = {
    list: "a list",
    dict: "an object",
    int: "a number",
    float: "a number",
    bool: "true or false",
    bytes: "bytes that are not UTF-8",
}


class Documents:
    """An iterable of the texts under `field` in `rows`, pairs of a place to name in errors and a row.

    `a.b` is field `b` of field `a`, unless there is a field with a dot in its name; a list stands for its elements.
    A row that lacks the field, or has null there, is skipped and counted.  Iterating raises TextSourceError for any
    other value that is not text, and where no row has the field.
    """

    def __init__(self, path: Path, field: str, rows: Iterable[tuple[str, Any]]) -> None:
        self.path, self.field = path, field
        self._rows = rows
        self._seen = self._skipped = 0

    def __iter__(self) -> Iterator[str]:
        first: Any = None
        for place, row in self._rows:
            self._seen += 1
            # A row that is a string is a document by itself.
            values = [row] if isinstance(row, str) and not self.field else find(row, self.field or DEFAULT_FIELD)
            texts = [self._text(value, place, row) for value in values if value is not None]
            yield from texts
            self._skipped += not texts
            first = first if field_names(first) else row
            if self._skipped == self._seen == PATIENCE:
                break
        if self._seen and self._skipped == self._seen:
            raise missing_field(self.path, self.field or DEFAULT_FIELD, first)

    def notes(self) -> tuple[str, ...]:
        """What to say about the rows read so far: how many had no text."""
        if not self._skipped:
            return ()
        field = self.field or DEFAULT_FIELD
        return (
            f"{self._skipped} of the {self._seen} rows read from {self.path.name} have no {field!r} and are skipped",
        )

    def _text(self, value: Any, place: str, row: Any) -> str:
        try:
            text = value.decode() if isinstance(value, bytes) else value  # Parquet's older writers mark no strings
        except UnicodeDecodeError:
            text = None
        if isinstance(text, str):
            return text
        field, kind = self.field or DEFAULT_FIELD, _KINDS.get(type(value), type(value).__name__)
        fine = self._seen - self._skipped - 1
        remedy = (
            f"correct or remove this row: the {fine} before it hold text" if fine > 0 else _name_another(self.path, row)
        )
        raise TextSourceError(
            f"{place} of {self.path} holds no text under {field!r}",
            got=kind,
            allowed=f"text, or null in a row to skip; fields present: {', '.join(field_names(row)[:20]) or 'none'}",
            remedy=remedy,
        )


def find(row: Any, field: str) -> list[Any]:
    """All values under the dotted `field` of `row`; empty where it has none."""
    if isinstance(row, list):
        return [value for element in row for value in find(element, field)]
    if not isinstance(row, dict):
        return []
    parts = field.split(".")
    for length in range(len(parts), 0, -1):
        head, rest = ".".join(parts[:length]), ".".join(parts[length:])
        if head in row:
            return find(row[head], rest) if rest else [row[head]]
    return []


def field_names(row: Any, prefix: str = "", *, texts: bool = False) -> list[str]:
    """The dotted names of the fields of `row`, in its order: all of them, or those that hold strings (`texts`)."""
    if isinstance(row, list):
        return field_names(row[0], prefix, texts=texts) if row else []
    if not isinstance(row, dict):
        return []
    names = []
    for name, value in row.items():
        own = [f"{prefix}{name}"] if isinstance(value, str) or not texts else []
        names += [*own, *field_names(value, f"{prefix}{name}.", texts=texts)]
    return names


def missing_field(path: Path, field: str, row: Any) -> TextSourceError:
    """The error for a file whose `field` is absent or holds no text; `row` is one that shows its other fields."""
    names = field_names(row)
    shown = ", ".join(names[:20]) + (", …" if len(names) > 20 else "")
    return TextSourceError(
        f"there is no text under {field!r}",
        got=path,
        allowed=f"fields present: {shown or 'none'}",
        remedy=_name_another(path, row),
    )


def _name_another(path: Path, row: Any) -> str:
    names = [f"{path}#{name}" for name in field_names(row, texts=True)]
    if not names:
        return "write one object a row, with its text as a string under 'text': no field here holds strings"
    return f"name a field that holds strings: {' or '.join(names[:3])}"
