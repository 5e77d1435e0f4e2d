"""The files of a report, written and read: every file appears whole or not at all.

A file is written beside its destination, flushed to the disk and renamed, so that a reader, or a report cut
short, never meets half a table.  Numbers keep every digit they have (a float read back is the same float), and
JSON gets null where a number is NaN or infinite, since neither exists in JSON.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ptq_eval.errors import OutputFullError, OutputMismatchError, full_disk

WHOLE_NUMBERS = (
    "step", "tokens", "params", "bits", "group_size", "windows", "damping_retries", "dead_columns", "layers_skipped",
    "activation_bits", "kv_bits",
)  # fmt: skip
"""Columns of whole numbers, some with blank cells."""


def write_bytes(path: Path, content: bytes) -> Path:
    """Write `content` to `path` atomically, making its folder.  Raises OutputFullError where that fails."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        remedy = "free some space or choose another output folder; no measurement is lost"
        raise OutputFullError(f"cannot write {path.name}", got=error.strerror, remedy=remedy) from error
    return path


def write_text(path: Path, content: str) -> Path:
    """Write UTF-8 text with one line end, the newline, on every system."""
    return write_bytes(path, content.encode("utf-8"))


def append_text(path: Path, content: str) -> Path:
    """Add UTF-8 text to the end of a file that others write to as well.  Raises OutputFullError."""
    with full_disk(path), path.open("a", encoding="utf-8", newline="\n") as file:
        file.write(content)
    return path


def write_csv(path: Path, frame: Any) -> Path:
    """Write a table without its index; see `csv_text`."""
    return write_text(path, csv_text(frame))


def csv_text(frame: Any) -> str:
    """A table without its index as CSV; floats get the shortest digits that give the same float back.

    The columns of `WHOLE_NUMBERS` are written without a decimal point, also where a blank cell made pandas hold them as
    floats; one that has a fraction after all keeps it.
    """
    whole = {name: _whole(frame[name]) for name in WHOLE_NUMBERS if name in frame}
    return frame.assign(**whole).to_csv(index=False, lineterminator="\n")


def _whole(column: pd.Series) -> pd.Series:
    """The same numbers as integers that may be missing; the column itself where one of them has a fraction."""
    numbers: Any = pd.to_numeric(column, errors="coerce")
    exact = numbers.isna().equals(column.isna()) and bool((numbers.dropna() % 1 == 0).all())
    return numbers.astype("Int64") if exact else column


def write_json(path: Path, data: Any) -> Path:
    """Write valid JSON; NaN and infinities become null."""
    return write_text(path, json_text(data))


def json_text(data: Any) -> str:
    """Valid JSON, indented; NaN and infinities become null."""
    return json.dumps(plain(data), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def read_json(path: Path, keys: Collection[str], again: str) -> dict[str, Any] | None:
    """The object with `keys` that this package wrote to `path`; None where there is no such file.

    Raises OutputMismatchError for a damaged file, with `again`, the command that makes it anew.
    """
    if not path.exists():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if missing := set(keys) - set(found):
            raise KeyError(*sorted(missing))
    except (OSError, ValueError, RecursionError, KeyError, TypeError) as error:
        raise OutputMismatchError(
            f"{path.name} of the output folder is damaged",
            got=f"{path}: {error!r}",
            remedy=f"delete that file and repeat `{again}`",
        ) from error
    return found


def write_fit(
    out: Path, fit: Mapping[str, Any], replicates: Sequence[np.ndarray] | None = None, name: str = "fit.json"
) -> list[Path]:
    """Write `fit.json` below `out`, or under another name, and `replicates.npz` beside it; the paths written.

    replicates: the constants of every bootstrap refit, [n_boot, p] for each entry of "fits", then for each of the
    "forms" of "precisions", in the order of its "parameters".  They are stored under the entry's place: "0", "1", …
    Fits of one call share their resamples row by row, so quantities that combine two fits keep their correlation.
    Raises OutputFullError.
    """
    written = []
    if replicates is not None:
        forms = [form for entry in fit.get("precisions", ()) for form in entry["forms"]]
        shapes = [(-1, len(entry["parameters"])) for entry in (*fit["fits"], *forms)]
        arrays = {str(i): np.reshape(draws, shape) for i, (draws, shape) in enumerate(zip(replicates, shapes))}
        buffer = BytesIO()
        np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
        written.append(write_bytes(out / "replicates.npz", buffer.getvalue()))
    return [write_json(out / name, fit), *written]


def plain(data: Any) -> Any:
    """`data` made of what JSON knows: numpy numbers and arrays unpacked, what is not finite None, else text."""
    if isinstance(data, Mapping):
        return {str(key): plain(value) for key, value in data.items()}
    if isinstance(data, (list, tuple, np.ndarray)):
        return [plain(value) for value in data]
    if isinstance(data, np.generic):
        return plain(data.item())
    if isinstance(data, float):
        return data if math.isfinite(data) else None
    return data if data is None or isinstance(data, (bool, int, str)) else str(data)
