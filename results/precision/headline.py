"""The figure of README.md: loss after quantization and δ against D/N by bits, trunks beside their annealed branches.

    python -m results.precision.headline

Writes figures/headline.{png,pdf,csv} from table.csv.gz: books, the size with the largest D/N, GPTQ in groups of 16,
means over seeds with t intervals at 95 %.
"""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
from scipy import stats

from ptq_eval.report.common import figures
from results.precision import findings

HERE = Path(__file__).resolve().parent
SHOWN = {
    "weights": "full", "activations": "full", "kv": "full", "schedule": "wsd", "optimizer": "adamw",
    "weight_decay": 0.1, "peak_learning_rate": 3e-3, "grouping": "groups", "low_precision_share": 1,
}  # fmt: skip
BITS = (2, 3, 4)
MARKS = {0: "D", 2: "o", 3: "s", 4: "^"}
"""Zero bits is before quantization."""
ENDINGS = {"trunk": ("--", "constant learning rate"), "annealed": ("-", "annealed over the last 20 % of D")}
SHIFT = {"trunk": 1 / 1.025, "annealed": 1.025}
"""Points of two endings are drawn a little apart."""
FIRST = 20
"""Below this D/N hardly anything is learned."""
LINE = 0.06
"""The height of a line of text, as a share of a panel."""


def data(table: pd.DataFrame) -> pd.DataFrame:
    """A row for each ending, number of bits and D/N: means over seeds of loss and delta, and half their intervals."""
    own = table[(table[list(SHOWN)] == pd.Series(SHOWN)).all(axis=1) & table["text"].str.startswith("books")]
    own = own[own["part"].isin(ENDINGS)]
    own = own.assign(tokens_per_param=findings.planned(own))
    own = own[own["tokens_per_param"] >= FIRST]
    furthest = own.loc[own["tokens_per_param"].idxmax(), "params"]
    own = own[own["params"] == furthest]
    before = own[own["quantizer"] == "none"].assign(bits=0, delta=0.0, loss=own["loss_fp"])
    after = own[(own["quantizer"] == "gptq") & own["bits"].isin(BITS)]
    rows = pd.concat([before, after.assign(loss=after["loss_q"])])
    cells = rows.groupby(["params", "part", "bits", "tokens_per_param"])[["loss", "delta"]]
    runs = cells.size()
    reach = pd.Series([stats.t.ppf(0.975, n - 1) / math.sqrt(n) if n > 1 else math.nan for n in runs], runs.index)
    halves = cells.std().mul(reach, axis=0).add_suffix("_half")
    return cells.mean().join(halves).assign(runs=runs).reset_index()


def draw(table: pd.DataFrame) -> Any:
    """The loss on the left, delta on the right."""
    from matplotlib.lines import Line2D

    figure, axes = figures.panels(1, 2)
    figure.set_size_inches(6.6, 3.1)
    for panel, value in zip(axes[0], ("loss", "delta")):
        for (part, bits), own in table.groupby(["part", "bits"]):
            if value == "delta" and not bits:
                continue
            colour, filled = _colour(bits), part == "annealed"
            at = own["tokens_per_param"] * SHIFT[part]
            panel.errorbar(
                at, own[value], own[f"{value}_half"], color=colour, linestyle=ENDINGS[part][0], linewidth=1.1,
                marker=MARKS[int(bits)], markersize=4, markerfacecolor=colour if filled else "white", elinewidth=0.8,
            )  # fmt: skip
        low, high = figures.span(table["tokens_per_param"], 1.15)
        figures.log_x(panel, low, high * 1.7, tokens=False)
        panel.set_xlabel("training tokens per parameter, D/N")
    axes[0, 0].set_ylabel("loss after quantization, nats per token")
    axes[0, 1].set_ylabel("δ = loss after − before, nats per token")
    axes[0, 1].set_yscale("log")
    for panel, value in zip(axes[0], ("loss", "delta")):
        _name(panel, table[(table["part"] == "annealed") & (table[value] > 0)], value)
    handles = [
        Line2D([], [], color="0.2", linestyle=line, marker="o", markerfacecolor=face, label=label)
        for (line, label), face in zip(ENDINGS.values(), ("white", "0.2"))
    ]
    figures.legend(figure, handles, len(handles), handlelength=4)
    return figure


def _name(panel: Any, table: pd.DataFrame, value: str) -> None:
    """Write what each line is at its end, no two names on each other."""
    ends = table.sort_values("tokens_per_param").groupby("bits").tail(1).sort_values(value)
    place = -math.inf
    for row in ends.to_dict("records"):
        x, y = panel.transAxes.inverted().transform(panel.transData.transform((row["tokens_per_param"], row[value])))
        place = max(y, place + LINE)
        said = f"{row['bits']:g} bits" if row["bits"] else "before"
        style = {"fontsize": 7, "va": "center", "color": _colour(row["bits"])}
        panel.text(x + 0.03, place, said, transform=panel.transAxes, **style)


def _colour(bits: float) -> str:
    return figures.colour(bits) if bits else "0.15"


def main() -> None:
    """Draw the figure."""
    precisions = dict.fromkeys(("weights", "activations", "kv"), str)
    table = pd.read_csv(HERE / "table.csv.gz", dtype=precisions, low_memory=False)
    figures.write(HERE / "figures", table, {"headline": SimpleNamespace(data=data, draw=draw)})


if __name__ == "__main__":
    main()
