"""What `ptq-eval sensitivity --by part` writes: its record, a table of every part, a figure, and a page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ptq_eval.report.common import figures, files, tables
from ptq_eval.report.common.numbers import MISSING, count, number, percent, short, with_error
from ptq_eval.report.parts import figure
from ptq_eval.theory import ALL, REMAINDER

if TYPE_CHECKING:
    from rich.console import RenderableType

NAME = "parts.json"
FILES = "parts.json, parts.csv, parts.md, figures/parts.{png,pdf,csv}"
HEADER = (
    "checkpoint", "quantizer", "part", "weights", "bits per weight", "MB saved", "δ alone", "KL alone", "share of KL",
    "δ per MB saved", "KL per MB saved",
)  # fmt: skip

_WORDS = {ALL: "all together", "mlp": "MLP"}
WORDS = f"""\
Each part was quantized alone, with the weights that it has when all are quantized, then all together; δ and KL(full
precision ‖ quantized) are in nats per token, errors come from paired differences. *{REMAINDER}* is what all together
cost beyond the sum of the parts. Bytes saved are those against 16 bits per weight. Damage per MB saved is the price of
a part: where it is high, bits are needed most. Norms, biases, routers and learned positions stay in full precision.
"""


def read(out: Path) -> dict[str, Any] | None:
    """The record below `out`, or None.  Raises OutputMismatchError for a file that is damaged."""
    return files.read_json(out / NAME, ("settings", "checkpoints"), "ptq-eval sensitivity FOLDER -o OUT --by part")


def write_record(out: Path, record: Mapping[str, Any]) -> Path:
    """Write only the record."""
    return files.write_json(out / NAME, record)


def write(out: Path, record: Mapping[str, Any]) -> list[Path]:
    """Write `parts.json`, `.csv`, `.md` and the figure below `out`; the paths.  Raises OutputFullError."""
    text = f"# What each part of the model costs\n\n{WORDS}\n![Damage and bytes of each part](figures/parts.png)\n\n"
    return [
        write_record(out, record),
        files.write_csv(out / "parts.csv", tables.rows_of(record)),
        *figures.write(out / "figures", record, {"parts": figure}),
        files.write_text(out / "parts.md", text + tables.markdown(HEADER, body(record), left=3) + skipped(record)),
    ]


def render(record: Mapping[str, Any]) -> RenderableType:
    """The table for a rich console."""
    return tables.console(HEADER, body(record), unbroken=3)


def body(record: Mapping[str, Any]) -> list[list[str]]:
    """One row of the table for each part of each variant."""
    found = []
    for entry in record["checkpoints"]:
        name = tables.checkpoint(entry)
        for rows in variants(entry):
            single = [row for row in rows if row["part"] not in (ALL, REMAINDER)]
            total = sum(number(row["kl"]) for row in single)
            for row in rows:
                saved, part = row["bytes_saved"] / 1e6, row["part"]
                sizes = (
                    [count(row["weights"]), f"{row['bits_per_weight']:.2f}", short(saved)] if saved else [MISSING] * 3
                )
                found.append(
                    [
                        name, f"{row['quantizer']}, {row['bits']} bits", _WORDS.get(part, part), *sizes,
                        with_error(row["delta"], row["delta_se"]), with_error(row["kl"], row["kl_se"]),
                        percent(number(row["kl"]) / total) if row in single and total > 0 else MISSING,
                        with_error(row["delta"] / saved, number(row["delta_se"]) / saved) if saved else MISSING,
                        with_error(number(row["kl"]) / saved, number(row["kl_se"]) / saved) if saved else MISSING,
                    ]
                )  # fmt: skip
    return found


def variants(entry: Mapping[str, Any]) -> Iterator[list[Mapping[str, Any]]]:
    """The rows of a checkpoint, one list for each quantizer and width."""
    groups: dict[tuple[str, int], list[Mapping[str, Any]]] = {}
    for row in entry["rows"]:
        groups.setdefault((row["quantizer"], row["bits"]), []).append(row)
    yield from groups.values()


def skipped(record: Mapping[str, Any]) -> str:
    """Layers that stayed in full precision, and methods that rounded a layer to nearest, as Markdown."""
    lines = []
    for entry in record["checkpoints"]:
        lines += [
            f"- {one['quantizer']}, {one['bits']} bits: `{one['layer']}` {one['reason']}" for one in entry["skipped"]
        ]
    return "".join(f"\n{line}" for line in dict.fromkeys(lines)) + "\n" if lines else ""
