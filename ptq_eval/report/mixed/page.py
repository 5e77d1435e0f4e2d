"""What `ptq-eval sensitivity --budget` writes: a plan for each budget, their record, a table, a figure and a page."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from ptq_eval.records import Checkpoint, Trial
from ptq_eval.report.common import figures, files, tables
from ptq_eval.report.common.numbers import MISSING, short, with_error
from ptq_eval.report.mixed import figure

if TYPE_CHECKING:
    from rich.console import RenderableType

NAME = "mixed.json"
TITLE = "Mixed precision under a budget"
PLANS = "mixed"
"""The folder of the plans."""
FILES = f"{NAME}, mixed.csv, mixed.md, figures/mixed.{{png,pdf,csv}}, and plans in {PLANS}/"
HEADER = (
    "checkpoint", "quantizer", "model", "bits per weight", "MB", "δ predicted", "δ", "KL predicted", "KL", "against",
    "δ difference", "KL difference", "layers",
)  # fmt: skip

WORDS = """\
Each layer has the number format that makes the sum of the layers' KL smallest under the budget, exactly solved; layers
that are fed the same tensor share one. *Predicted* adds up the layers quantized alone, with the sum of their errors as
an upper bound; the difference from what was measured is layers acting on each other. δ and KL(full precision ‖
quantized) are in nats per token, errors come from paired differences on the same windows. *Against* names the
model of the nearest size that has one format for all layers, *difference* is how much more damage the mixed one does.
Bits per weight count the quantized layers, scales included; MB count all weights, the others at 16 bits.
"""


def write_plan(
    out: Path, plan: Mapping[str, Any], checkpoint: Checkpoint, trial: Trial, shapes: Mapping[str, Sequence[int]]
) -> str:
    """Write the file that `run --mixed` takes; its path within `out`.  `shapes`: [out, in] of each layer."""
    assert trial.scheme is not None
    step = "" if checkpoint.step is None else f"-{checkpoint.step}"
    stem = re.sub(r"[^\w.-]+", "_", f"{checkpoint.run}{step}-{plan['quantizer']}-{plan['budget']}")
    content = {
        "checkpoint": {"run": checkpoint.run, "step": checkpoint.step, "weights_sha": checkpoint.weights_sha},
        **{name: value for name, value in plan.items() if name != "layers"},
        "group_size": trial.scheme.group_size,
        "layers": plan["layers"],
        "shapes": {name: list(shapes[name]) for name in plan["layers"]},
    }
    return str(files.write_json(out / PLANS / f"{stem}.json", content).relative_to(out))


def write(out: Path, record: Mapping[str, Any]) -> list[Path]:
    """Write `mixed.json`, `.csv`, `.md` and the figure below `out`; the paths.  Raises OutputFullError."""
    return [
        files.write_json(out / NAME, record),
        files.write_csv(out / "mixed.csv", frame(record)),
        *figures.write(out / "figures", record, {"mixed": figure}),
        files.write_text(out / "mixed.md", f"# {TITLE}\n\n{section(record)}"),
    ]


def section(record: Mapping[str, Any]) -> str:
    """The findings as Markdown, without a heading."""
    about = "KL of mixed models and of models with one format against bytes, and the format of each layer"
    table = tables.markdown(HEADER, body(record), left=3)
    return f"{WORDS}\n![{about}](figures/mixed.png)\n\n{table}{_plans(record)}"


def read(out: Path) -> dict[str, Any] | None:
    """The record below `out`, or None.  Raises OutputMismatchError for a file that is damaged."""
    return files.read_json(out / NAME, ("settings", "checkpoints"), "ptq-eval sensitivity FOLDER -o OUT --budget SIZE")


def frame(record: Mapping[str, Any]) -> pd.DataFrame:
    """Every model, uniform and mixed; `layers` is a JSON object."""
    lead = ("run", "step", "tokens", "params")
    rows = [
        {
            **{name: entry[name] for name in lead},
            **row,
            "layers": json.dumps(row["layers"]) if "layers" in row else None,
        }
        for entry in record["checkpoints"]
        for row in (*entry["uniform"], *entry["plans"])
    ]
    columns = [*lead, "quantizer", "scheme", "budget"]
    return pd.DataFrame(rows, columns=list(dict.fromkeys([*columns, *(name for row in rows for name in row)])))


def render(record: Mapping[str, Any]) -> RenderableType:
    """The table for a rich console."""
    return tables.console(HEADER, body(record))


def body(record: Mapping[str, Any]) -> list[list[str]]:
    """One row of the table for each model, by size."""
    found = []
    for entry in record["checkpoints"]:
        name = tables.checkpoint(entry)
        for row in sorted([*entry["uniform"], *entry["plans"]], key=lambda row: (row["quantizer"], row["bytes"])):
            found.append(
                [
                    name, row["quantizer"], row["scheme"] if "scheme" in row else f"mixed, {row['budget']}",
                    f"{row['bits_per_weight']:.3f}", short(row["bytes"] / 1e6),
                    with_error(row["predicted_delta"], row["predicted_delta_se"]),
                    with_error(row["delta"], row["delta_se"]),
                    with_error(row["predicted_kl"], row["predicted_kl_se"]),
                    with_error(row["kl"], row["kl_se"]),
                    *_difference(row), _formats(row),
                ]
            )  # fmt: skip
    return found


def _difference(row: Mapping[str, Any]) -> list[str]:
    if "against" not in row:
        return [MISSING] * 3
    values = [with_error(row[f"{key}_difference"], row[f"{key}_difference_se"]) for key in ("delta", "kl")]
    return [row["against"], *values]


def _formats(row: Mapping[str, Any]) -> str:
    """How many layers have each format."""
    counts = Counter(row.get("layers", {}).values())
    return ", ".join(f"{number} {name}" for name, number in sorted(counts.items())) or MISSING


def _plans(record: Mapping[str, Any]) -> str:
    """Where each plan is, as Markdown."""
    names = [row["file"] for entry in record["checkpoints"] for row in entry["plans"]]
    return "\nPlans for `ptq-eval run --mixed` and `ptq-eval export --mixed`:\n\n" + "".join(
        f"- `{n}`\n" for n in names
    )
