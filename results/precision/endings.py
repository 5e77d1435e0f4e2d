"""What ways to end a run did in this study, for `ptq-eval plan`.

    python -m results.precision.endings

Writes ptq_eval/laws/plan/study_endings.csv from table.csv.gz: the loss after quantization minus that of the trunk of
the same run at the same D, in nats per token.  A run's difference is the mean over quantizers and groupings; difference
and error are the mean over runs and its standard error.  Runs are those on books, so that all endings share their text.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pandas as pd

from results.precision import findings

HERE = Path(__file__).resolve().parent
OUT = HERE.parents[1] / "ptq_eval" / "laws" / "plan" / "study_endings.csv"
RUN = ["run", "params", "tokens_per_param", "bits"]
PLAIN = {"optimizer": "adamw", "weight_decay": 0.1, "peak_learning_rate": 3e-3, "activations": "full", "kv": "full"}


def endings(table: pd.DataFrame) -> pd.DataFrame:
    """A row for each way to end, N, bit-width and D/N that two runs at least have."""
    rows = table[table["status"].isin(["ok", "partial"]) & (table["quantizer"] != "none")]
    rows = rows[(rows[list(PLAIN)] == pd.Series(PLAIN)).all(axis=1) & rows["schedule"].isin(["wsd", "constant"])]
    rows = rows[rows["text"].str.startswith("books")]
    rows = rows.assign(
        tokens_per_param=findings.planned(rows),
        ending=[_name(row) for row in rows.itertuples()],
    )
    means = rows[rows["ending"] != ""].groupby([*RUN, "ending"])["loss_q"].mean().reset_index()
    trunk = means[means["ending"] == "trunk"].drop(columns="ending")
    pairs = means[means["ending"] != "trunk"].merge(trunk, on=RUN, suffixes=("", "_of_trunk"))
    pairs["difference"] = pairs["loss_q"] - pairs["loss_q_of_trunk"]
    cells = pairs.groupby(["ending", "params", "bits", "tokens_per_param"])["difference"]
    found = pd.DataFrame(
        {"runs": cells.size(), "difference": cells.mean(), "error": cells.std() / cells.size() ** 0.5}
    ).reset_index()
    return found[found["runs"] > 1]


def _name(row: Any) -> str:
    """The ending as `ptq-eval probe` writes it; empty for what is trained in low precision from its start."""
    late = row.low_precision_share < 1
    if row.weights != "full" and not late:
        return ""
    if row.part == "annealed":
        kind = f"decay+qat:{100 * row.decay:g}%@{row.weights}" if late else f"decay:{100 * row.decay:g}%"
        same = not late or math.isclose(row.low_precision_share, row.decay)
        return kind if same else ""
    return row.part.replace("-", ":", 1)


def main() -> None:
    """Write the table, and print it."""
    found = endings(pd.read_csv(HERE / "table.csv.gz", dtype={"weights": str, "activations": str, "kv": str}))
    found.to_csv(OUT, index=False, float_format="%.5g")
    print(found.to_string(index=False, float_format="{:.4g}".format))


if __name__ == "__main__":
    main()
