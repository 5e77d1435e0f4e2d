"""Figures: drawn from a tidy table, and saved as PNG, PDF and that very table as CSV.

Each figure has two functions in its own file: one that makes the table of everything shown (points, curves,
marks), and one that draws it and looks at nothing else.  So the CSV is what the figure shows, to the last point.
Files are the same for the same numbers: no date, no version, matplotlib's own fonts, and the user's settings
untouched, since a `Figure` is made without pyplot.
"""

from __future__ import annotations

from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

from ptq_eval.report.common import files
from ptq_eval.report.run import delta_figure, loss_figure

FIGURES = {"delta_vs_ratio": delta_figure, "loss_vs_tokens": loss_figure}
PIXELS_PER_INCH = 200

_METADATA = {"png": {"Software": None}, "pdf": {"CreationDate": None, "Producer": None, "Creator": None}}
_STYLE: dict[Any, Any] = {
    "font.size": 8.0,
    "axes.titlesize": 8.5,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.labelsize": 7.0,
    "ytick.labelsize": 7.0,
    "legend.fontsize": 7.0,
    "legend.frameon": False,
    "lines.markersize": 3.6,
    "errorbar.capsize": 0.0,
    "pdf.fonttype": 42,
    "figure.constrained_layout.use": True,
}


def write(folder: Path, study: Any, figures: Mapping[str, Any] = FIGURES) -> list[Path]:
    """Draw `figures` (by name, modules with `data` and `draw`) into `folder`; the paths, three for each figure."""
    import matplotlib

    paths = []
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        for name, figure in figures.items():
            table = figure.data(study)
            drawn = figure.draw(table)
            for kind, metadata in _METADATA.items():
                buffer = BytesIO()
                drawn.savefig(buffer, format=kind, dpi=PIXELS_PER_INCH, metadata=metadata)
                drawn.set_layout_engine("none")  # the layout of the first format holds for all
                paths.append(files.write_bytes(folder / f"{name}.{kind}", buffer.getvalue()))
            paths.append(files.write_csv(folder / f"{name}.csv", table))
    return paths
