"""A table out of a file: CSV, Parquet, JSON or JSON lines, recognized by its ending.

JSON is an array of objects, an object of arrays, or one object a line.  Fields of fields become columns with a dotted
name (`args.lr`).  Columns come as arrays: numbers where every cell is one, booleans likewise, else objects, so that
whole numbers of any length are kept.  A blank cell of a column of numbers is NaN.  What the columns mean is decided
elsewhere (`ptq_eval.laws.tables.external`), how CSV is written in `delimited`.
"""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import os
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ptq_eval.errors import DataFileError, OptionError, did_you_mean
from ptq_eval.laws.tables.delimited import Dialect, read_delimited

Columns = dict[str, np.ndarray]
"""Columns by name, each [n]."""
SEPARATORS = {".csv": ",", ".tsv": "\t"}
LINES = (".jsonl", ".ndjson")
KINDS = (*SEPARATORS, ".parquet", ".json", *LINES)
PICKLES = (".pkl", ".pickle", ".joblib", ".dill", ".pt", ".pth")
SHEETS = (".xlsx", ".xls", ".ods")
_OPEN: Mapping[str, Callable[[Path], Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
COMPRESSED = (*_OPEN, ".zip")
DEEPEST = 20
"""Fields of fields: deeper ones stay what they are."""
_LONGEST_INTEGER = 300


def read_table(path: str | Path, dialect: Dialect | None = None) -> Columns:
    """The columns of a file by name, each [n].  `dialect` says how a CSV is written.

    Raises DataFileError for what cannot be read, or holds no row, and OptionError for a dialect of another kind.
    """
    path, dialect = Path(path), dialect or Dialect()
    endings = [ending.lower() for ending in path.suffixes]
    kind = next((ending for ending in reversed(endings) if ending not in COMPRESSED), "")
    if "://" in str(path) or ":/" in str(path).partition("/")[0] + "/":
        raise DataFileError("a table on the web is not fetched", got=path, remedy="download it, and name the file")
    if path.is_dir():
        remedy = f"for an output folder of a run: ptq-eval fit {path}"
        raise DataFileError("a folder, not a data file", got=path, remedy=remedy)
    if not path.exists():
        near = did_you_mean(path.name, os.listdir(path.parent)) if path.parent.is_dir() else ""
        raise DataFileError("there is no such data file", got=path, remedy=near or "check the path")
    if not path.is_file():
        raise DataFileError("a pipe or a device, not a data file", got=path, remedy="write the table into a file")
    _check_kind(kind, path)
    if kind not in SEPARATORS and not dialect.plain:
        raise OptionError("--separator, --decimal and --comment are for CSV and TSV", got=path.name)
    try:
        table = _read(kind, path, dialect)
    except UnicodeDecodeError as error:
        raise DataFileError(f"{path.name} is not UTF-8 text", got=error.reason, remedy="save it as UTF-8") from error
    except (OSError, ValueError, EOFError, RecursionError, lzma.LZMAError, zipfile.BadZipFile) as error:
        said = str(error).splitlines() or [type(error).__name__]  # what parsers raise for a file of another kind
        raise DataFileError(f"{path.name} cannot be read as {kind[1:]}", got=said[0]) from error
    if not len(next(iter(table.values()), ())):
        raise DataFileError("a data file without rows", got=path)
    return {name.strip(): values for name, values in table.items()}


def _check_kind(kind: str, path: Path) -> None:
    """Raises DataFileError for a kind that is not read, with a way to one that is."""
    if kind in PICKLES:
        what = f"{path.name} is a pickle, and opening a pickle runs whatever code it holds"
        remedy = (
            f"where you trust it, in Python: pandas.read_pickle({path.name!r}).to_parquet({path.stem + '.parquet'!r})"
        )
        raise DataFileError(what, got=kind, allowed=", ".join(KINDS), remedy=remedy)
    if kind not in KINDS:
        remedy = "save the sheet as CSV" if kind in SHEETS else ""
        raise DataFileError("no known kind of data file", got=path.name, allowed=", ".join(KINDS), remedy=remedy)


def _read(kind: str, path: Path, dialect: Dialect) -> Columns:
    if kind == ".parquet":
        return as_columns(pd.read_parquet(path))
    text = _text(path)
    if kind in SEPARATORS:
        return as_columns(read_delimited(text, path, SEPARATORS[kind], dialect))
    if kind in LINES:
        lines = [(i, line) for i, line in enumerate(text.split("\n"), start=1) if line.strip()]
        return _of_rows([_object(_json(line), f"line {i}", path) for i, line in lines])
    return _of_json(_json(text), path)


def _text(path: Path) -> str:
    """The text of a file, unpacked, without a byte order mark."""
    ending = path.suffix.lower()
    if ending == ".zip":
        with zipfile.ZipFile(path) as archive:
            names = [name for name in archive.namelist() if not name.endswith("/")]
            if len(names) != 1:
                raise ValueError(f"{len(names)} files in an archive, where one is needed")
            return archive.read(names[0]).decode("utf-8-sig")
    opened: Callable[..., Any] = _OPEN.get(ending, open)
    with opened(path, "rb") as file:
        content: bytes = file.read()
    return content.decode("utf-8-sig")


def _json(text: str) -> Any:
    return json.loads(text, parse_int=_whole)


def _whole(digits: str) -> int | float:
    """A whole number of any length; one that no float could hold is infinite."""
    return int(digits) if len(digits) <= _LONGEST_INTEGER else float(digits)


def _of_json(value: Any, path: Path) -> Columns:
    """An array of objects, or an object of arrays of one length."""
    if isinstance(value, list):
        return _of_rows([_object(row, f"entry {i}", path) for i, row in enumerate(value, start=1)])
    if isinstance(value, dict) and value and all(isinstance(cells, list) for cells in value.values()):
        lengths = {name: len(cells) for name, cells in value.items()}
        if len(set(lengths.values())) > 1:
            got = ", ".join(f"{name} {n}" for name, n in list(lengths.items())[:5])
            raise DataFileError(f"the arrays of {path.name} have different lengths", got=got)
        return _of_rows([dict(zip(value, cells)) for cells in zip(*value.values())])
    inside = [name for name, cells in value.items() if isinstance(cells, list)] if isinstance(value, dict) else []
    raise DataFileError(
        f"the JSON of {path.name} is not a table",
        got=f"an object of {', '.join(list(value)[:5])}" if isinstance(value, dict) else type(value).__name__,
        allowed="an array of objects, an object of arrays, or (.jsonl) one object a line",
        remedy=f"save what is under {inside[0]!r} alone" if inside else "",
    )


def _object(row: Any, where: str, path: Path) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise DataFileError(f"{where} of {path.name} is no object", got=repr(row)[:60], allowed="{name: value, …}")
    return row


def _of_rows(rows: list[dict[str, Any]]) -> Columns:
    """Objects as columns, with the names of all of them in the order in which they are met."""
    flat = [flattened(row) for row in rows]
    names = dict.fromkeys(name for row in flat for name in row)
    return {name: _column([row.get(name) for row in flat]) for name in names}


def _column(cells: list[Any]) -> np.ndarray:
    """Floats where every filled cell is a number, booleans where every cell is one, else the cells as they are."""
    filled = [cell for cell in cells if cell is not None]
    if filled and all(isinstance(cell, (int, float)) and not isinstance(cell, bool) for cell in filled):
        return np.array([np.nan if cell is None else float(cell) for cell in cells])
    if filled == cells and all(isinstance(cell, bool) for cell in cells):
        return np.array(cells, bool)
    return np.array([*cells, None], object)[:-1]  # the None keeps lists of one length from becoming a matrix


def flattened(row: Mapping[str, Any], prefix: str = "", depth: int = 0) -> dict[str, Any]:
    """Fields of fields under dotted names: {"args": {"lr": 1}} as {"args.lr": 1}."""
    found: dict[str, Any] = {}
    for name, value in row.items():
        if isinstance(value, Mapping) and value and depth < DEEPEST:
            found |= flattened(value, f"{prefix}{name}.", depth + 1)
        else:
            found[f"{prefix}{name}"] = value
    return found


def _cell(value: Any) -> Any:
    """A cell without what compares with nothing: arrays as lists, blanks as None."""
    if isinstance(value, np.ndarray):
        return value.tolist()
    return None if value is pd.NA or value is pd.NaT else value


def as_columns(frame: pd.DataFrame) -> Columns:
    """A data frame's columns by name: floats where every cell is a number or blank, booleans, else objects.

    Columns of mappings (a struct in Parquet) become one column for each field.
    """
    columns: Columns = {}
    for name in frame.columns:
        column = frame[name]
        if pd.api.types.is_bool_dtype(column.dtype):
            columns[str(name)] = column.to_numpy(object if column.hasnans else bool)
        elif pd.api.types.is_numeric_dtype(column.dtype):
            columns[str(name)] = column.to_numpy(float, na_value=np.nan)
        else:
            values = np.array([*map(_cell, column), None], object)[:-1]
            if any(isinstance(value, Mapping) for value in values):
                rows = [{str(name): value} for value in values]
                columns |= _of_rows(rows)
            else:
                columns[str(name)] = values
    return columns
