"""What `ptq-eval adapt` writes: a metrics file per run, tables over all runs, figures, and a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from ptq_eval.config.adapt import UNQUANTIZED_BITS
from ptq_eval.report.adapt import loss_figure, noise_figure, words
from ptq_eval.report.common import figures, files, tables
from ptq_eval.report.common.numbers import MISSING, plus_minus, short, with_error
from ptq_eval.results import adaptation

if TYPE_CHECKING:
    from rich.console import RenderableType

NAMES = (
    "metrics_*.json, theory.json, summary.csv, predictions.csv, layers.csv, epochs.csv, cost.csv, adapt.md, figures/"
)
HEADER = (
    "base", "bits", "seed", "loss before", "loss", "perplexity before", "perplexity", "δ before", "δ",
    "variance before", "variance", "seconds",
)  # fmt: skip
PREDICTED = (
    "base", "bits", "predicted", "KL", "predicted / KL", "δ", "predicted / δ", "C·4^−bits", "cannot be absorbed",
    "δ after training", "variance predicted", "variance", "predicted / variance",
)  # fmt: skip
TESTED = (
    "base", "bits", "KL / predicted", "curvature", "error", "higher orders", "uniform noise: KL / predicted",
    "its higher orders", "its variance / predicted",
)  # fmt: skip
BASES = ("base", "bits", "seeds", "perplexity", "δ before", "δ", "δ that remains")
FIGURES = {"loss": loss_figure, "noise": noise_figure}
_AGAIN = "ptq-eval adapt CHECKPOINT -o OUT"


def read(path: Path) -> dict[str, Any] | None:
    """The metrics of one run, or None.  Raises OutputMismatchError for a file that is damaged."""
    return files.read_json(path, ("key", "epochs", "cost"), _AGAIN)


def write_metrics(path: Path, metrics: Mapping[str, Any]) -> Path:
    """Write one run's file.  Raises OutputFullError."""
    return files.write_json(path, metrics)


def read_theory(out: Path) -> dict[str, Any] | None:
    """What is predicted, or None.  Raises OutputMismatchError for a file that is damaged."""
    return files.read_json(out / "theory.json", ("key", "bases", "layers", "gradients"), _AGAIN)


def write_theory(out: Path, theory: Mapping[str, Any]) -> Path:
    """Write what is predicted.  Raises OutputFullError."""
    return files.write_json(out / "theory.json", theory)


def write(out: Path, record: Mapping[str, Any]) -> list[Path]:
    """Write the tables over all runs of `record`, figures and page below `out`; the paths.  Raises OutputFullError."""
    theory = record["theory"]
    predicted = (
        []
        if theory is None
        else [
            files.write_csv(out / "predictions.csv", pd.DataFrame(adaptation.comparisons(theory, record["summary"]))),
            files.write_csv(out / "layers.csv", pd.DataFrame(theory["layers"])),
        ]
    )
    return [
        *predicted,
        files.write_csv(out / "summary.csv", pd.DataFrame(record["summary"])),
        files.write_csv(out / "epochs.csv", pd.DataFrame(record["epochs"])),
        files.write_csv(out / "cost.csv", pd.DataFrame(adaptation.costs(record["runs"]))),
        *figures.write(out / "figures", record, FIGURES),
        files.write_text(out / "adapt.md", document(record)),
    ]


def document(study: Mapping[str, Any]) -> str:
    """The page as Markdown."""
    return "\n".join(
        [
            f"# Adapters on quantized bases: {words.checkpoint(study)}\n",
            words.about(study),
            *words.cautions(study),
            tables.markdown(BASES, base_rows(study["summary"]), left=1),
            "![Loss and perplexity against the bits of the base](figures/loss.png)\n",
            "![Norm and variance of gradients against the bits of the base](figures/noise.png)\n",
            *_theory(study),
            "## Every run\n",
            words.COLUMNS,
            tables.markdown(HEADER, rows(study["summary"]), left=1),
            words.settings(study),
        ]
    )


def _theory(study: Mapping[str, Any]) -> list[str]:
    if study["theory"] is None:
        return []
    compared = adaptation.comparisons(study["theory"], study["summary"])
    return [
        "## Predicted and observed\n",
        words.PREDICTED,
        tables.markdown(PREDICTED, theory_rows(compared), left=1),
        words.agreement(compared, adaptation.correlations(compared)),
        "### Why\n",
        words.TESTED,
        tables.markdown(TESTED, tested_rows(compared), left=1),
        words.reasons(compared),
    ]


def theory_rows(compared: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """One row for each base."""
    return [
        [
            row["quantizer"], str(row["bits"]), short(row["predicted"]), with_error(row["kl"], row["kl_se"]),
            short(row["kl_ratio"]), with_error(row["delta"], row["delta_se"]), short(row["delta_ratio"]),
            short(row["bound"]), short(row["residual"]), short(row["delta_after"]), short(row["variance_predicted"]),
            short(row["variance"]), short(row["variance_ratio"]),
        ]
        for row in compared
    ]  # fmt: skip


def tested_rows(compared: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """One row for each base: KL over the prediction, its three factors, and what uniform noise does."""
    return [
        [
            row["quantizer"], str(row["bits"]), short(1 / row["kl_ratio"]),
            *(short(value) for value in adaptation.factors(row).values()), short(1 / row["uniform_ratio"]),
            short(row["uniform"] / row["uniform_quadratic"]), short(1 / row["variance_uniform_ratio"]),
        ]
        for row in compared
    ]  # fmt: skip


def render(record: Mapping[str, Any]) -> RenderableType:
    """Every run as a table for a rich console."""
    return tables.console(HEADER, rows(record["summary"]), unbroken=3)


def rows(summary: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """One row for each run."""
    return [
        [
            words.base(row), words.bits(row), str(row["seed"]), f"{row['loss_before']:.4f}", f"{row['loss']:.4f}",
            short(row["perplexity_before"]), short(row["perplexity"]), *_deltas(row),
            short(row["gradient_variance_before"]), short(row["gradient_variance"]), short(row["seconds"]),
        ]
        for row in summary
    ]  # fmt: skip


def _deltas(row: Mapping[str, Any]) -> tuple[str, str]:
    if row["bits"] == UNQUANTIZED_BITS:
        return MISSING, MISSING
    return with_error(row["delta_before"], row["delta_se_before"]), with_error(row["delta"], row["delta_se"])


def base_rows(summary: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """One row for each base: means over seeds with their standard deviations."""
    columns = {
        name: adaptation.by_base(summary, name) for name in ("perplexity", "delta_before", "delta_se_before", "delta")
    }
    found = []
    for perplexity, before, error, after in zip(*columns.values()):
        cells = [plus_minus(one["mean"], one["deviation"]) for one in (perplexity, before, after)]
        if perplexity["bits"] == UNQUANTIZED_BITS:
            cells[1:] = [MISSING, MISSING]
        share = (
            MISSING
            if perplexity["bits"] == UNQUANTIZED_BITS
            else words.remaining(before["mean"], error["mean"], after["mean"])
        )
        head = [words.base(perplexity), words.bits(perplexity), str(perplexity["seeds"])]
        found.append([*head, *cells, share])
    return found
