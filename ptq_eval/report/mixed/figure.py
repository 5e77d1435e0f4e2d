"""KL of mixed and of uniform models against the bytes of all weights, and the formats of the layers under each budget.

A row for each checkpoint and quantizer.  The first panel has the uniform models, joined by a line, and the mixed ones,
measured (filled) and predicted (open).  The second has a column for each budget and a line for each layer, in the order
of the model; the colour shows the width.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import pandas as pd

from ptq_eval.report.common import figures, tables
from ptq_eval.report.common.data import Frame

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAX_ROWS = 6
COLUMNS = (
    "panel",
    "kind",
    "model",
    "megabytes",
    "bits_per_weight",
    "kl",
    "kl_se",
    "predicted_kl",
    "layer",
    "format",
    "bits",
)


def data(record: Mapping[str, Any]) -> Frame:
    """Everything drawn: a row for each model, and one for each layer of each mixed model."""
    found: list[dict[str, Any]] = []
    for entry in record["checkpoints"]:
        name = tables.checkpoint(entry)
        for row in (*entry["uniform"], *entry["plans"]):
            kind = "uniform" if "scheme" in row else "mixed"
            head = {"panel": f"{name}, {row['quantizer']}", "model": row["scheme" if kind == "uniform" else "budget"]}
            head |= {"megabytes": row["bytes"] / 1e6, "bits_per_weight": row["bits_per_weight"]}
            found.append({**head, "kind": kind, **{key: row[key] for key in ("kl", "kl_se", "predicted_kl")}})
            layers = row.get("layers", {})
            found += [
                {**head, "kind": "layer", "layer": layer, "format": form, "bits": entry["bits"][form]}
                for layer, form in layers.items()
            ]
    return pd.DataFrame(found, columns=list(COLUMNS))


def draw(table: Frame) -> Figure:
    """Draw what `data` returned."""
    names = list(dict.fromkeys(table["panel"]))[:MAX_ROWS]
    if not names or not (table["kl"] > 0).any():
        return figures.nothing("No model was measured.")
    figure, axes = figures.panels(len(names), 2)
    figure.set_figwidth(6.8)
    for row, name in zip(axes, names):
        own: Any = table[table["panel"] == name]
        _sizes(row[0], own)
        _layers(row[1], own[own["kind"] == "layer"])
        row[0].set_title(name)
    axes[-1][0].set_xlabel("MB of all weights")
    _legend(figure, table)
    return figure


def _sizes(ax: Axes, own: Any) -> None:
    ax.set_yscale("log")
    ax.set_ylabel("KL (nats per token)")
    uniform = own[(own["kind"] == "uniform") & (own["kl"] > 0)].sort_values("megabytes")
    mixed = own[(own["kind"] == "mixed") & (own["kl"] > 0)]
    style = {"color": "0.35", "marker": "s", "linewidth": 0.9, "elinewidth": 0.7}
    ax.errorbar(uniform["megabytes"], uniform["kl"], yerr=uniform["kl_se"].clip(upper=0.9 * uniform["kl"]), **style)
    for row in uniform.to_dict("records"):
        place = {"xytext": (4, 3), "textcoords": "offset points", "fontsize": 6.5, "color": "0.35"}
        ax.annotate(str(row["model"]), (row["megabytes"], row["kl"]), **place)
    style = {"color": "#D55E00", "linestyle": "none", "elinewidth": 0.7}
    ax.errorbar(mixed["megabytes"], mixed["kl"], yerr=mixed["kl_se"].clip(upper=0.9 * mixed["kl"]), marker="o", **style)
    ax.plot(mixed["megabytes"], mixed["predicted_kl"], linestyle="none", marker="o", mfc="none", mec="#D55E00", ms=6)
    ax.margins(x=0.12)


def _layers(ax: Axes, own: Any) -> None:
    """A rectangle for each layer of each mixed model, smallest model first."""
    from matplotlib.patches import Rectangle
    from matplotlib.ticker import MaxNLocator

    models = list(dict.fromkeys(own.sort_values("megabytes", kind="stable")["model"]))
    layers = list(dict.fromkeys(own["layer"]))
    for row in own.to_dict("records"):
        place = (models.index(row["model"]) - 0.45, layers.index(row["layer"]))
        ax.add_patch(Rectangle(place, 0.9, 1, facecolor=figures.colour(row["bits"]), linewidth=0))
    ax.set_xlim(-0.6, len(models) - 0.4)
    ax.set_ylim(len(layers), 0)
    ax.set_xticks(range(len(models)), models, rotation=30, ha="right")
    ax.yaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_ylabel("layer, in order of the model")


def _legend(figure: Figure, table: Frame) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    handles: list[Any] = [
        Line2D([], [], color="0.35", marker="s", label="one format"),
        Line2D([], [], color="#D55E00", marker="o", linestyle="none", label="mixed, measured"),
        Line2D([], [], color="#D55E00", marker="o", mfc="none", linestyle="none", ms=6, label="mixed, predicted"),
    ]
    names: dict[int, list[str]] = {}
    formats = table.dropna(subset=["format"]).drop_duplicates("format")
    for name, bits in zip(formats["format"], formats["bits"]):
        names.setdefault(int(bits), []).append(name)
    handles += [Patch(color=figures.colour(bits), label=", ".join(own)) for bits, own in sorted(names.items())]
    figures.legend(figure, handles, most=7)
