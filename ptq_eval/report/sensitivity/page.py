"""What `ptq-eval sensitivity` writes: its record, a table of every layer, figures, and a section for the report.

The section is `sensitivity.md` and, in an output folder of `ptq-eval run`, part of `report.md` too.  Nothing is
computed here: the numbers are in the record.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from ptq_eval.report.common import figures, files, tables
from ptq_eval.report.common.numbers import MISSING, number, plus_minus, short, with_error
from ptq_eval.report.sensitivity import figure as sensitivity_figure
from ptq_eval.theory import ALL

if TYPE_CHECKING:
    from rich.console import RenderableType

NAME = "sensitivity.json"
TOP = 5
"""Layers named in the section; the CSV has all of them."""

AGREEMENT_HEADER = (
    "checkpoint", "quantizer", "δ", "predicted", "± roundings", "KL", "± roundings", "KL / predicted", "Σ KL / KL",
    "r δ", "ρ δ", "r KL", "ρ KL", "r KL of H",
)  # fmt: skip
BOUND_HEADER = ("checkpoint", "quantizer", "of", "C", "C predicted", "holds at", "measured / bound elsewhere")
LAYER_HEADER = ("checkpoint", "quantizer", "layer", "weights", "δ alone", "KL alone", "predicted", "share of KL")

WORDS = """\
Every layer was quantized alone, then all layers together; δ and KL(full precision ‖ quantized) are in nats per token.
*Predicted* is ½·Σ F·Δ²/12: independent, uniform rounding errors, weighted by the Fisher information F of the
calibration text, which says what an error costs. It is an expectation over roundings; *± roundings* is the standard
deviation of δ and of KL that the same model expects from one rounding to another. For δ it is wider, because δ also
moves along the slope of the loss. KL has no slope, so KL shows how good the curvature is, and δ how much of it is
visible in the loss. r is Pearson's correlation between the logarithms of prediction and measurement, over the layers
whose damage is two standard errors above zero; ρ is Spearman's over all layers; *r KL of H* uses ½·tr(H·E[εᵀε])
instead, the error of a layer's output regardless of what it costs. Σ KL adds up the layers quantized alone. Ratios and
correlations describe these layers: they have no interval, and nothing is tested with them.

Not captured: orders beyond the second, correlated errors (GPTQ's compensation, AWQ's scales), and, for δ but not for
KL, the part of the Hessian that vanishes only for a model whose confidence matches its accuracy.
"""


def read(out: Path) -> dict[str, Any] | None:
    """The record below `out`, or None.  Raises OutputMismatchError for a file that is damaged."""
    return files.read_json(out / NAME, ("settings", "checkpoints"), "ptq-eval sensitivity FOLDER -o OUT")


def write_record(out: Path, record: Mapping[str, Any]) -> Path:
    """Write only the record."""
    return files.write_json(out / NAME, record)


def write(out: Path, record: Mapping[str, Any]) -> list[Path]:
    """Write `sensitivity.json`, `.csv`, `.md` and the figures below `out`; the paths.  Raises OutputFullError."""
    title = "# Which layers carry the damage, predicted and measured\n\n"
    return [
        write_record(out, record),
        files.write_csv(out / "sensitivity.csv", tables.rows_of(record)),
        *figures.write(out / "figures", record, figures_of(record)),
        files.write_text(out / "sensitivity.md", title + section(record)),
    ]


def section(record: Mapping[str, Any]) -> str:
    """The findings as Markdown, with headings of the third level."""
    text = WORDS
    for name in figures_of(record):
        text += f"\n![Damage of layers, predicted and measured](figures/{name}.png)\n"
    text += "\n### Predicted against measured\n\n" + tables.markdown(AGREEMENT_HEADER, agreement_rows(record), left=2)
    if limits := bound_rows(record):
        text += "\n### The bound δ ≤ C·4^−bits\n\n"
        text += "C in nats per token, from the widths where it holds; *predicted* is the noise model's.\n\n"
        text += tables.markdown(BOUND_HEADER, limits, left=3)
    text += "\n### Layers that carry the damage\n\n"
    text += f"The {TOP} largest by KL, each quantized alone, at the lowest width where the second order holds for KL; "
    text += "the largest of many measured values are too large on average, and layers within their errors have no "
    text += "order. `sensitivity.csv` has every layer at every width.\n\n"
    text += tables.markdown(LAYER_HEADER, layer_rows(record), left=3)
    return text + _settings(record)


def render(record: Mapping[str, Any]) -> RenderableType:
    """Agreement and bounds as tables for a rich console."""
    from rich.console import Group

    shown = ((AGREEMENT_HEADER, agreement_rows(record)), (BOUND_HEADER, bound_rows(record)))
    return Group(*(tables.console(header, rows, unbroken=2) for header, rows in shown))


def figures_of(record: Mapping[str, Any]) -> dict[str, Any]:
    """One figure per quantizer of integers, as `figures.write` expects them; its panels are about their widths."""

    def of(quantizer: str) -> Any:
        return SimpleNamespace(
            data=lambda record: sensitivity_figure.data(record, quantizer), draw=sensitivity_figure.draw
        )

    rows = (row for entry in record["checkpoints"] for row in entry["rows"] if "format" not in row)
    names = dict.fromkeys(row["quantizer"] for row in rows)
    return {f"sensitivity_{name}": of(name) for name in names}


def agreement_rows(record: Mapping[str, Any]) -> list[list[str]]:
    """One row for each checkpoint, quantizer and bit-width."""
    found = []
    for entry in record["checkpoints"]:
        by_kind = {(a["quantizer"], a["bits"], a["prediction"], a["measured"]): a for a in entry["agreement"]}
        for row in entry["rows"]:
            if row["layer"] != ALL:
                continue
            of = (row["quantizer"], row["bits"])
            delta, kl = by_kind[(*of, "predicted", "delta")], by_kind[(*of, "predicted", "kl")]
            found.append(
                [
                    tables.checkpoint(entry), f"{of[0]}, {of[1]} bits",
                    with_error(row["delta"], row["delta_se"]),
                    with_error(row["predicted"], row["predicted_se"]),
                    short(math.hypot(number(row["spread"]), number(row["scatter"]))),
                    with_error(row["kl"], row["kl_se"]),
                    short(row["scatter"]),
                    _two(number(row["kl"]) / row["predicted"] if row["predicted"] else None),
                    _two(number(kl["sum"]) / kl["joint"] if kl["joint"] else None),
                    *(_two(a[key]) for a in (delta, kl) for key in ("pearson_log", "spearman")),
                    _two(by_kind[(*of, "output_error", "kl")]["pearson_log"]),
                ]
            )  # fmt: skip
    return found


def bound_rows(record: Mapping[str, Any]) -> list[list[str]]:
    """One row for each checkpoint, quantizer and kind of damage."""
    found = []
    for entry in record["checkpoints"]:
        for b in entry["bounds"]:
            head = [tables.checkpoint(entry), b["quantizer"], {"delta": "δ", "kl": "KL"}[b["measured"]]]
            if b["lowest"] is None:
                found.append([*head, "not identified", MISSING, MISSING, MISSING])
                continue
            outside = {bits: value for bits, value in b["excess"].items() if int(bits) not in b["widths"]}
            found.append(
                [
                    *head,
                    plus_minus(b["constant"], b["error"]),
                    short(b["predicted"]),
                    ", ".join(map(str, b["widths"])) + " bits",
                    ", ".join(f"{bits} bits: {_two(value)}" for bits, value in outside.items()) or MISSING,
                ]
            )
    return found


def layer_rows(record: Mapping[str, Any]) -> list[list[str]]:
    """The layers with the largest KL of each checkpoint and quantizer, at the width that the figure shows."""
    found = []
    for entry in record["checkpoints"]:
        for quantizer in dict.fromkeys(row["quantizer"] for row in entry["rows"]):
            bits = sensitivity_figure.telling_width(entry, quantizer)
            own = [row for row in entry["rows"] if (row["quantizer"], row["bits"]) == (quantizer, bits)]
            own = [row for row in own if row["layer"] != ALL]
            total = sum(number(row["kl"]) for row in own)
            for row in sorted(own, key=lambda row: -number(row["kl"]))[:TOP]:
                found.append(
                    [
                        tables.checkpoint(entry), f"{quantizer}, {bits} bits", f"`{row['layer']}`", f"{row['weights']}",
                        with_error(row["delta"], row["delta_se"]), with_error(row["kl"], row["kl_se"]),
                        with_error(row["predicted"], row["predicted_se"]),
                        f"{100 * number(row['kl']) / total:.0f} %" if total > 0 else MISSING,
                    ]
                )  # fmt: skip
    return found


def _settings(record: Mapping[str, Any]) -> str:
    settings = record["settings"]
    texts = next((entry["texts"] for entry in record["checkpoints"]), {})
    facts = [f"{role} text `{text['protocol']}`" for role, text in texts.items()]
    facts += [f"{settings['draws']} labels drawn per calibration window", f"seed {settings['seed']}"]
    return f"\nMeasured on: {', '.join(facts)}. Versions, digests and seconds are in `{NAME}`.\n"


def _two(value: Any) -> str:
    value = number(value)
    return f"{value:.2f}" if value == value else MISSING
