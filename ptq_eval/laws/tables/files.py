"""A table out of a file: CSV, Parquet or JSON lines, recognized by its ending.

Columns come as arrays: numbers where every cell is one, booleans likewise, else objects.  A blank cell of a column of
numbers is NaN.
What the columns mean is decided elsewhere (`ptq_eval.laws.tables.external`).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from ptq_eval.errors import DataFileError

READERS = {
    ".csv": pd.read_csv,
    ".tsv": lambda path: pd.read_csv(path, sep="\t"),
    ".parquet": pd.read_parquet,
    ".jsonl": lambda path: pd.read_json(path, lines=True, convert_dates=False),
    ".ndjson": lambda path: pd.read_json(path, lines=True, convert_dates=False),
}
COMPRESSED = (".gz", ".bz2", ".xz", ".zip")


def read_table(path: str | Path) -> dict[str, np.ndarray]:
    """The columns of a file by name, each [n].  Raises DataFileError for what cannot be read, or holds no row."""
    path = Path(path)
    endings = [ending.lower() for ending in path.suffixes]
    kind = next((ending for ending in reversed(endings) if ending not in COMPRESSED), "")
    if kind not in READERS:
        raise DataFileError("no known kind of data file", got=path.name, allowed=", ".join(READERS))
    try:
        frame = READERS[kind](path)
    except FileNotFoundError as error:
        raise DataFileError("there is no such data file", got=path) from error
    except (OSError, ValueError, pd.errors.ParserError) as error:  # what the parsers raise for a file of another kind
        said = str(error).splitlines() or [type(error).__name__]
        raise DataFileError(f"{path.name} cannot be read as {kind[1:]}", got=said[0]) from error
    if frame.empty:
        raise DataFileError("a data file without rows", got=path)
    frame.columns = [str(name).strip() for name in frame.columns]
    return as_columns(frame)


def as_columns(frame: pd.DataFrame) -> dict[str, np.ndarray]:
    """A data frame's columns by name: floats where every cell is a number or blank, booleans, else objects."""
    columns = {}
    for name in frame.columns:
        column = frame[name]
        if pd.api.types.is_bool_dtype(column.dtype):
            columns[str(name)] = column.to_numpy(object if column.hasnans else bool)
        elif pd.api.types.is_numeric_dtype(column.dtype):
            columns[str(name)] = column.to_numpy(float, na_value=np.nan)
        else:
            columns[str(name)] = column.to_numpy(object)
    return columns
