"""Figures: drawn from a tidy table, and saved as PNG, PDF and that very table as CSV.

Each figure has two functions in its own file: one that makes the table of everything shown (points, curves,
marks), and one that draws it and looks at nothing else.  So the CSV is what the figure shows, to the last point.
Files are the same for the same numbers: no date, no version, matplotlib's own fonts, and the user's settings
untouched, since a `Figure` is made without pyplot.

All figures share colours for bits, marks for runs, and axes for tokens and ratios.  Colours are from the palette of
Okabe and Ito (2008), which stays distinct under the common colour deficiencies; a bit-width has the same colour in
every study.  Colour alone carries no information: runs differ by mark and line.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ptq_eval.report.common import files
from ptq_eval.report.common.data import Frame
from ptq_eval.report.common.numbers import count, short

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = {2: "#D55E00", 3: "#E69F00", 4: "#009E73", 5: "#56B4E9", 6: "#CC79A7", 7: "#7F7F7F", 8: "#0072B2"}
MORE_COLOURS = ("#882255", "#999933", "#332288", "#AA4499", "#661100", "#6699CC")
"""Of other bit-widths, from the palettes of Tol (2021)."""
MARKS = ("o", "s", "^", "D", "v", "P", "X", "<", ">")
LINES = ("-", "--", ":", "-.")
PANEL = (2.4, 2.3)
"""Width and height of a panel in inches: three beside each other fill a page's text width."""

LABEL_WIDTH = 48
"""Characters after which a legend's entry is broken: fewer than the narrowest figure holds."""

_LEGEND_WIDTH = 0.97
"""Share of the figure's width that a legend may take: text is a little wider at some resolutions."""
_ROWS, _ROW = 2, 0.16
"""Rows of a legend that fit into a figure, and the inches that each further row adds."""
_WIDE = 1.6
"""Powers of ten from which an axis is labelled at powers of ten alone."""
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


def write(
    folder: Path,
    study: Any,
    figures: Mapping[str, Any],
    tables: Mapping[str, Frame] | None = None,
    kinds: Sequence[str] = ("png", "pdf"),
) -> list[Path]:
    """Draw `figures` (by name, modules with `data` and `draw`) into `folder`; the paths, one for each of `kinds` and
    one of the table for each figure.

    tables: what `data` returned, by name, where that was called already.
    """
    import matplotlib

    paths = []
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        for name, figure in figures.items():
            table = tables[name] if tables else figure.data(study)
            drawn = figure.draw(table)
            paths += [files.write_bytes(folder / f"{name}.{kind}", content) for kind, content in saved(drawn, kinds)]
            paths.append(files.write_csv(folder / f"{name}.csv", table))
    return paths


def saved(figure: Figure, kinds: Sequence[str]) -> Iterator[tuple[str, bytes]]:
    """The figure as "png" and "pdf".  `Figure.savefig` draws it twice for each, the first time for the layout alone."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.backends.backend_pdf import FigureCanvasPdf

    before, canvases = figure.get_dpi(), {"png": FigureCanvasAgg, "pdf": FigureCanvasPdf}
    for kind in kinds:
        buffer, own = BytesIO(), canvases[kind](figure)
        figure.set_dpi(PIXELS_PER_INCH)
        getattr(own, f"print_{kind}")(buffer, metadata=_METADATA[kind])
        figure.set_dpi(before)
        figure.set_layout_engine("none")  # the layout of the first format holds for all
        yield kind, buffer.getvalue()


def colour(bits: float) -> str:
    """The colour of a bit-width."""
    return COLOURS.get(int(bits), MORE_COLOURS[int(bits) % len(MORE_COLOURS)])


def panels(rows: int, columns: int, **options: Any) -> tuple[Figure, np.ndarray]:
    """A figure with rows × columns panels, [rows, columns]."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(max(PANEL[0] * columns, 1.5 * PANEL[0]), PANEL[1] * rows + 0.5))
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def legend(figure: Figure, handles: Sequence[Artist], most: int, **options: Any) -> None:
    """A legend below the panels: `most` columns where they fit in the figure's width, else as many as do."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    renderer = FigureCanvasAgg(figure).get_renderer()
    labels = [textwrap.fill(str(handle.get_label()), LABEL_WIDTH) for handle in handles]
    for columns in range(min(most, len(handles)), 0, -1):
        drawn = figure.legend(handles, labels, loc="outside lower center", ncols=columns, **options)
        if columns == 1 or drawn.get_window_extent(renderer).width <= _LEGEND_WIDTH * figure.bbox.width:
            rows = math.ceil(len(handles) / columns)
            figure.set_figheight(figure.get_figheight() + _ROW * max(0, rows - _ROWS))
            return
        drawn.remove()


def nothing(message: str) -> Figure:
    """A figure that says why it is empty."""
    figure, axes = panels(1, 1)
    axes[0, 0].set_axis_off()
    axes[0, 0].text(0.5, 0.5, message, ha="center", va="center", wrap=True)
    return figure


def log_x(axes: Axes, low: float, high: float, *, tokens: bool) -> None:
    """A logarithmic horizontal axis with few labels: 1M, 10M for tokens, 10, 100 for ratios."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    decades = np.log10(high / low)
    axes.set_xscale("log")
    axes.set_xlim(low, high)
    subs = (1.0,) if decades >= _WIDE else (1.0, 3.0) if decades >= 0.8 else (1.0, 1.5, 2.0, 3.0, 5.0, 7.0)
    axes.xaxis.set_major_locator(LogLocator(subs=subs, numticks=6))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: count(value) if tokens else short(value)))
    axes.xaxis.set_minor_formatter(NullFormatter())


def span(values: Any, margin: float = 1.35) -> tuple[float, float]:
    """Ends of a logarithmic axis around positive values."""
    return float(values.min()) / margin, float(values.max()) * margin


def runs_by_size(table: Frame) -> list[str]:
    """Run names, smallest N first."""
    first = table.drop_duplicates("run")
    return list(first.sort_values("params", kind="stable")["run"])
