"""The card of a folder of results on the Hugging Face hub: README.md with its front matter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from ptq_eval.records import FULL_PRECISION
from ptq_eval.report.common.files import write_text
from ptq_eval.report.common.numbers import count, short
from ptq_eval.report.common.tables import cell, markdown
from ptq_eval.report.dataset.tables import COLUMNS, DEGRADATION, WINDOWS
from ptq_eval.results.columns import COLUMNS as DEGRADATION_COLUMNS

_HEAD = f"""---
pretty_name: {{title}}
tags:
- quantization
- scaling-laws
- evaluation
configs:
- config_name: {DEGRADATION}
  data_files: {DEGRADATION}.parquet
  default: true
- config_name: {WINDOWS}
  data_files: {WINDOWS}.parquet
---
"""
_READ = f"""```python no-run
import pandas as pd
table = pd.read_parquet("{DEGRADATION}.parquet")

import polars as pl
kl = pl.read_parquet("{WINDOWS}.parquet").group_by("quantizer", "bits").agg(pl.col("kl").sum() / pl.col("tokens").sum())

import duckdb
duckdb.sql("SELECT quantizer, bits, SUM(nll) / SUM(tokens) AS loss FROM '{WINDOWS}.parquet' GROUP BY ALL")
```
"""


def write(folder: Path, frame: pd.DataFrame, run: Mapping[str, Any], n_windows: int, models: Sequence[str]) -> Path:
    """Write the page as README.md of `folder`; its path.  Raises OutputFullError."""
    return write_text(folder / "README.md", card(frame, run, n_windows, models))


def card(frame: pd.DataFrame, run: Mapping[str, Any], n_windows: int, models: Sequence[str]) -> str:
    """The page, in Markdown: what was measured and how, the columns, one line each to read it."""
    runs = ", ".join(dict.fromkeys(map(str, frame["run"])))
    title = f"Post-training quantization of {runs}"
    methods = sorted(set(frame["quantizer"].dropna()) - {"", FULL_PRECISION})
    bits = ", ".join(f"{b:g}" for b in sorted(set(frame["bits"].dropna())))
    checkpoints = frame[["run", "step"]].drop_duplicates()
    facts = [
        ("checkpoints", f"{len(checkpoints)} of {runs}"),
        ("tokens D", _range(frame["tokens"])),
        ("parameters N", _range(frame["params"])),
        ("quantizers", ", ".join(methods)),
        ("bits", bits),
        ("evaluation", ", ".join(sorted(set(frame["protocol"].dropna())))),
        ("program", f"ptq-eval {(run.get('versions') or {}).get('ptq-eval', 'of an unknown version')}"),
    ]
    parts = [
        _HEAD.format(title=title),
        f"# {title}\n",
        "Losses of language-model checkpoints before and after quantization, measured with ptq-eval. δ is the loss "
        "after minus the loss before, in nats per token. Quantization is simulated.\n",
        markdown(["", ""], facts, left=2),
        f"`{DEGRADATION}` has {len(frame)} rows, one per checkpoint, quantizer and bit-width; `{WINDOWS}` "
        f"{n_windows:,}, one per window of every measurement. Both are also in `results.sqlite`, and `lm-eval/` has "
        f"{len(models)} models in the format of lm-eval's results.\n",
        _READ,
        f"## Columns of `{WINDOWS}`\n",
        markdown(["column", "meaning"], [(f"`{name}`", cell(text)) for name, text in COLUMNS.items()], left=2),
        f"## Columns of `{DEGRADATION}`\n",
        ", ".join(f"`{name}`" for name in DEGRADATION_COLUMNS) + "\n",
    ]
    return "\n".join(parts)


def _range(column: Any) -> str:
    known = column.dropna()
    if not len(known):
        return short(None)
    low, high = count(known.min()), count(known.max())
    return low if low == high else f"{low} to {high}"
