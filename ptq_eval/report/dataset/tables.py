"""Two tables: a row per cell, which is `degradation.csv`, and a row per window that was measured."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from typing import Any

import pandas as pd

from ptq_eval.errors import full_disk
from ptq_eval.records import Measurement
from ptq_eval.report.common.files import WHOLE_NUMBERS

DEGRADATION, WINDOWS = "degradation", "windows"
COLUMNS = {
    "key": "of the measurement; the same as in `degradation` (its first draw of calibration windows)",
    "run": "training run",
    "step": "optimizer step of the checkpoint",
    "quantizer": "method, `none` for full precision",
    "bits": "bits per code",
    "format": "number format",
    "calibration_seed": "seed of the calibration windows",
    "window": "place of the window among those drawn from the text, from 0",
    "tokens": "scored tokens",
    "bytes": "their UTF-8 bytes",
    "nll": "negative log-likelihood of the window, nats",
    "kl": "divergence from full precision, nats",
    "agree": "tokens whose most likely next token is unchanged",
    "delta_p": "change of the probability of the true next token, summed over the tokens",
}
"""The columns of `windows`, with what they mean."""
_WHOLE = ("step", "bits", "calibration_seed", "window", "tokens", "bytes", "agree")


def windows(measurements: Iterable[Measurement]) -> pd.DataFrame:
    """A row per window of every measurement that has losses."""
    parts = [_windows(m) for m in measurements if m.nll]
    frame = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=list(COLUMNS))
    return frame.astype(dict.fromkeys(_WHOLE, "Int64") | dict.fromkeys(("nll", "kl", "delta_p"), "float64"))


def _windows(m: Measurement) -> pd.DataFrame:
    trial, n = m.trial, len(m.nll)
    values: dict[str, Any] = {
        "key": trial.key(),
        "run": trial.checkpoint.run,
        "step": trial.checkpoint.step,
        "quantizer": trial.quantizer,
        "bits": trial.bits,
        "format": trial.scheme.format if trial.scheme else None,
        "calibration_seed": trial.calibration_draw.seed if trial.calibration_draw else None,
        "window": m.windows or range(n),
        "tokens": m.n_tokens,
        "bytes": m.n_bytes or None,
        "nll": m.nll,
        "kl": m.kl or None,
        "agree": m.agree or None,
        "delta_p": m.tokens.get("delta_p_sums"),
    }
    return pd.DataFrame(values, index=range(n)).astype("object")


def typed(frame: pd.DataFrame) -> pd.DataFrame:
    """The degradation table with one type per column: whole numbers, floats, text."""
    found: Any = frame.copy()
    for name in found:
        column: Any = found[name]
        if name in WHOLE_NUMBERS:
            numbers: Any = pd.to_numeric(column, errors="coerce")
            found[name] = numbers.astype("Int64" if (numbers.dropna() % 1 == 0).all() else "float64")
        elif column.dtype == object:
            some = column.dropna()
            kind = "boolean" if len(some) and some.map(lambda value: isinstance(value, bool)).all() else "string"
            found[name] = column.where(column.notna(), None).astype(kind) if len(some) else column.astype("string")
    return found


def write_parquet(folder: Path, frames: dict[str, pd.DataFrame]) -> list[Path]:
    """`NAME.parquet` for each table.  Raises OutputFullError."""
    paths = []
    for name, frame in frames.items():
        path = folder / f"{name}.parquet"
        with full_disk(folder):
            folder.mkdir(parents=True, exist_ok=True)
            partial = path.with_name(f".{path.name}")
            frame.to_parquet(partial, index=False)
            partial.replace(path)
        paths.append(path)
    return paths


def write_sqlite(path: Path, frames: dict[str, pd.DataFrame]) -> Path:
    """One database with both tables.  Raises OutputFullError."""
    partial = path.with_name(f".{path.name}")
    with full_disk(path.parent):
        partial.unlink(missing_ok=True)
        with closing(sqlite3.connect(partial)) as database:
            for name, frame in frames.items():
                values: Any = frame.astype("object")
                values.where(frame.notna(), None).to_sql(name, database, index=False)
            database.execute("CREATE INDEX windows_key ON windows (key)")
            database.commit()
        partial.replace(path)
    return path
