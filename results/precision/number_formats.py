"""Integers against floating point after training, at equal bits per weight: RTN of the study's checkpoints.

    python -m results.precision.number_formats measure WORK     number_formats.csv.gz, from what precision.py trained
    python -m results.precision.number_formats                  figures/number_formats, and the effects, printed

Measured are the full-precision runs on books with the usual recipe: trunks and annealed branches, every D/N.  A float
format and `intB_narrow` (−n … n, scale max|w|/n) differ in their levels alone where a group has one 16-bit scale each:
groups of 16 and rows.  Formats with blocks and scales of their own (MX, NVFP4) are compared with integers in groups of
32, at the same bits per weight on the line through the logarithms of two integers.

A comparison is log KL of the float format minus that of the integer at one checkpoint, KL being the divergence after
quantization from before, which is positive where δ at 8 bits is noise; and the difference of δ where no line is needed.
A run is a size and a seed, an effect is a mean over runs with its standard error.
"""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd

from ptq_eval.report.common import figures
from results.precision import findings, precision, training

HERE = Path(__file__).resolve().parent
TABLE = HERE / "number_formats.csv.gz"
FREE = ("fp8_e4m3", "fp8_e5m2", "fp6_e2m3", "fp6_e3m2", "fp4_e2m1")
BLOCKS = ("mxfp8_e4m3", "mxfp8_e5m2", "mxfp6_e2m3", "mxfp6_e3m2", "mxfp4", "nvfp4")
INTEGERS = tuple(f"int{bits}_narrow" for bits in range(3, 9))
OTHERS = tuple(f"int{bits}_half" for bits in (4, 6, 8))
"""Integers of the same bits on the half-step grid, for comparison."""
GROUPS = {"groups": 16, "rows": None, "blocks": 32}
FIRST = 20
"""The least D/N of statements over all D/N: before, hardly anything is learned."""
KEPT = (
    "params", "tokens_per_param", "format", "bits", "bits_per_weight", "loss_fp", "delta", "delta_se", "kl", "windows",
    "weights_sha", "quantizer_version",
)  # fmt: skip
CHECKPOINT = ["params", "seed", "part", "tokens_per_param"]


def measure(work: Path) -> None:
    """Measure the runs that are complete and not measured yet, and write the table."""
    os.chdir(work)
    rows = []
    for run in precision.complete():
        if not _usual(run):
            continue
        for name, size in GROUPS.items():
            formats = (*INTEGERS, *(BLOCKS if name == "blocks" else (*FREE, *OTHERS)))
            out = Path("number-formats") / name / run.name
            options = {**precision.OPTIONS, "quantizers": ("rtn",), "bits": (), "formats": formats}
            frame, _ = precision.measured(run, out, **options, group_size=size)
            own = frame[frame["quantizer"] == "rtn"]
            half = "int" + own["bits"].astype(int).astype(str) + "_half"  # its name in records is that of all integers
            own = own.assign(format=own["format"].where(own["format"] != "int", half))
            about = {"run": run.name, "seed": run.options.seed, "part": own["place"].str.split("/").str[0]}
            rows.append(own[list(KEPT)].assign(**about, grouping=name))
            print(run.name, name, len(own), "rows", flush=True)
    table = pd.concat(rows).sort_values(["run", "part", "tokens_per_param", "grouping", "bits_per_weight", "format"])
    table.to_csv(TABLE, index=False, float_format="%.6g", compression={"method": "gzip", "mtime": 0})


def _usual(run: Any) -> bool:
    own = {name: getattr(run.options, name.replace("peak_", "")) for name in [*training.RECIPE, *training.PARTS]}
    full = dict.fromkeys(training.PARTS, training.FULL)
    return own == {**training.RECIPE, **full} and run.text.startswith("books")


def read() -> pd.DataFrame:
    """The table, with D/N as planned."""
    table = pd.read_csv(TABLE)
    return table.assign(tokens_per_param=findings.planned(table))


def compared(table: pd.DataFrame) -> pd.DataFrame:
    """A row for each float format at each checkpoint and grouping: `ratio`, log KL minus that of the integer at equal
    bits per weight, and `difference` of δ, NaN where no integer has just these bits."""
    return pd.DataFrame(_compared(table))


def _compared(table: pd.DataFrame) -> Iterator[dict[str, Any]]:
    for key, own in table.groupby([*CHECKPOINT, "grouping"]):
        integers = own[own["format"].isin(INTEGERS)].sort_values("bits_per_weight")
        bits, kl, delta = (integers[name].to_numpy() for name in ("bits_per_weight", "kl", "delta"))
        for row in own[~own["format"].str.startswith("int")].to_dict("records"):
            equal = delta[np.abs(bits - row["bits_per_weight"]) < 1e-6]
            line = np.interp(row["bits_per_weight"], bits, np.log(kl), left=math.nan, right=math.nan)
            yield {
                **dict(zip([*CHECKPOINT, "grouping"], key)), "format": row["format"], "bits": row["bits"],
                "bits_per_weight": row["bits_per_weight"], "ratio": math.log(row["kl"]) - line,
                "difference": row["delta"] - equal[0] if len(equal) else math.nan,
            }  # fmt: skip


def effects(found: pd.DataFrame) -> pd.DataFrame:
    """Per format, grouping and ending: means over the D/N of a run from `FIRST` on, and the slope per doubling of D.

    Columns `ratio`, `difference` and `slope` (of `ratio`), each with its `_error` and `_scatter` over runs and whether
    it is `_decided`.
    """
    late = found[found["tokens_per_param"] >= FIRST]
    rows = []
    for key, own in late.groupby(["grouping", "format", "part"]):
        runs = own.groupby(["params", "seed"])
        values = runs[["ratio", "difference"]].mean()
        values["slope"] = [np.polyfit(np.log2(run["tokens_per_param"]), run["ratio"], 1)[0] for _, run in runs]
        row: dict[str, Any] = dict(zip(("grouping", "format", "part"), key), bits=own["bits"].iloc[0])
        row |= {"bits_per_weight": own["bits_per_weight"].mean(), "runs": len(values)}
        for name in values:
            row[name], row[f"{name}_error"], row[f"{name}_decided"] = findings.of_independent(values[name])
            row[f"{name}_scatter"] = values[name].std()
        rows.append(row)
    return pd.DataFrame(rows).sort_values(["bits", "format", "grouping", "part"], ascending=[False, True, True, True])


def shown(table: pd.DataFrame) -> pd.DataFrame:
    """The factor of KL by D/N: geometric means over runs and endings, with half of their t interval at 95 %."""
    found = compared(table)
    values = found.groupby(["grouping", "format", "bits", "params", "tokens_per_param", "seed"])["ratio"].mean()
    cells = values.groupby(level=[0, 1, 2, 4])
    half = [findings.stats.t.ppf(0.975, len(own) - 1) * own.sem() for _, own in cells]
    return cells.mean().to_frame("ratio").assign(half=half, runs=cells.size()).reset_index()


def draw(found: pd.DataFrame) -> Any:
    """A panel for each number of bits, the factor of KL against D/N: a line for each format and grouping."""
    from matplotlib.lines import Line2D
    from matplotlib.ticker import LogFormatter

    widths = sorted(found["bits"].unique(), reverse=True)
    figure, axes = figures.panels(1, len(widths), sharex=True)
    lines = dict(zip(GROUPS, figures.LINES))
    for width, panel in zip(widths, axes[0]):
        own = found[found["bits"] == width]
        panel.axhline(1, color="0.6", linewidth=0.6)
        names = sorted(own["format"].unique(), key=(*FREE, *BLOCKS).index)
        for place, (name, colour) in enumerate(zip(names, figures.MORE_COLOURS)):
            for grouping, line in own[own["format"] == name].groupby("grouping"):
                at = line["tokens_per_param"] * 1.04 ** (place - len(names) / 2)
                low, high = np.exp(line["ratio"] - line["half"]), np.exp(line["ratio"] + line["half"])
                panel.errorbar(
                    at, np.exp(line["ratio"]), [np.exp(line["ratio"]) - low, high - np.exp(line["ratio"])],
                    color=colour, linestyle=lines[grouping], marker=figures.MARKS[place], markersize=3, linewidth=0.9,
                    elinewidth=0.7,
                )  # fmt: skip
        panel.set_yscale("log")
        panel.yaxis.set_major_formatter(LogFormatter())
        panel.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(1, 0.5)))
        figures.log_x(panel, *figures.span(found["tokens_per_param"]), tokens=False)
        panel.set_title(f"{width:g} bits")
        panel.set_xlabel("D/N")
        marks = zip(names, figures.MORE_COLOURS, figures.MARKS)
        handles = [Line2D([], [], color=colour, marker=mark, markersize=3, label=name) for name, colour, mark in marks]
        panel.legend(handles=handles, fontsize=5.5, loc="best")
    axes[0, 0].set_ylabel("KL of float / of integer at equal bits")
    labels = {"groups": "groups of 16", "rows": "one scale per row", "blocks": "blocks of their own"}
    handles = [Line2D([], [], color="0.2", linestyle=lines[name], label=label) for name, label in labels.items()]
    figures.legend(figure, handles, len(handles))
    return figure


def main() -> None:
    """Measure, or draw the figure and print the effects."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", nargs="?", choices=["measure"])
    parser.add_argument("work", nargs="?", type=Path)
    arguments = parser.parse_args()
    if arguments.command:
        measure(arguments.work.resolve())
    table = read()
    figures.write(HERE / "figures", table, {"number_formats": SimpleNamespace(data=shown, draw=draw)})
    print(effects(compared(table)).to_string(index=False, float_format="{:.3g}".format))


if __name__ == "__main__":
    main()
