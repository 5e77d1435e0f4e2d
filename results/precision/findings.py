"""What table.csv.gz of this folder says: three figures, and contrasts between runs that differ in one thing.

    python -m results.precision.findings

A contrast is the mean over seeds of a paired difference of δ, both at one D of one model size, text, quantizer and
bit-width.  Its error is the standard error over seeds.  It is decided where a t interval at 95 % excludes zero, which
takes 4.3 errors with three seeds; anything else is called undecided.  `against_constant` is the same over all runs of
one ending and D/N.
"""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from ptq_eval.report.common import figures
from ptq_eval.sampling import SIGNIFICANT

HERE = Path(__file__).resolve().parent
OF_A_RUN = ["text", "width", "layers", "params"]
AT = [*OF_A_RUN, "tokens_per_param", "grouping", "quantizer", "bits"]
USUAL = {
    "optimizer": "adamw", "weight_decay": 0.1, "peak_learning_rate": 3e-3, "weights": "full", "activations": "full",
    "kv": "full",
}  # fmt: skip
ENDINGS = ("constant", "annealed", "cosine", "linear", "inverse-sqrt")
SHOWN_BITS = (2, 3, 4)
COMPARED = {
    "loss_fp": ("loss before quantization", "0.2", "o"),
    "loss_q": ("loss after it", figures.MORE_COLOURS[1], "s"),
    "delta": ("δ", figures.MORE_COLOURS[0], "^"),
}
"""What is compared with a constant rate at the same D: its label, colour and mark."""
SHOWN = ("gptq", "groups")


def planned(table: pd.DataFrame) -> pd.Series:
    """D/N as planned, 5 · 2ᵏ: targets are rounded to whole steps."""
    return 5.0 * 2 ** np.log2(table["tokens_per_param"] / 5).round()


def read() -> pd.DataFrame:
    """The measurements after quantization, with how the rate ended, and what is unusual about the run."""
    table = pd.read_csv(HERE / "table.csv.gz", dtype={"weights": str, "activations": str, "kv": str})
    table = table[table["status"].isin(["ok", "partial"]) & (table["quantizer"] != "none")]
    # runs of schedule "constant" are there for their averages (training.py): what is constant here are trunks of wsd
    trunk = table["schedule"].replace({"wsd": "constant", "constant": "averaged"})
    ending = trunk.where(table["part"] != "annealed", "annealed").where(table["part"].isin(["trunk", "annealed"]))
    ending = ending.fillna("averaged " + table["part"])
    unusual = pd.Series("", index=table.index)
    for name, value in USUAL.items():
        unusual += (f"{name} " + table[name].astype(str) + " ").where(table[name] != value, "")
    late = table["low_precision_share"] < 1
    unusual += late.map({True: "in the branch alone", False: ""})
    return table.assign(ending=ending, unusual=unusual.str.strip(), tokens_per_param=planned(table))


def contrasts(table: pd.DataFrame) -> pd.DataFrame:
    """Differences from the trunk at a constant rate by ending, and from full precision by what is unusual."""
    usual = table[(table["unusual"] == "") & table["ending"].isin(ENDINGS)]
    found = [_against(usual, "ending", "constant", [*AT, "seed"])]
    common = table[table["ending"].isin(ENDINGS)]
    found.append(_against(common, "unusual", "", [*AT, "ending", "seed"]))
    return pd.concat(found, ignore_index=True)


def _against(table: pd.DataFrame, name: str, reference: str, paired: list[str]) -> pd.DataFrame:
    base = table[table[name] == reference].groupby(paired)["delta"].mean().rename("of_reference").reset_index()
    others = table[table[name] != reference].groupby([*paired, name])["delta"].mean().reset_index()
    pairs = others.merge(base, on=paired)
    pairs["difference"] = pairs["delta"] - pairs["of_reference"]
    cells = [column for column in [*paired, name] if column != "seed"]
    rows = []
    for key, cell in pairs.groupby(cells):
        mean, error, decided = of_independent(cell["difference"])
        rows.append({
            **dict(zip(cells, key)), "compared": name, "with": cell[name].iloc[0], "seeds": len(cell),
            "delta_of_reference": cell["of_reference"].mean(), "difference": mean, "error": error, "decided": decided,
        })  # fmt: skip
    return pd.DataFrame(rows)


def of_independent(values: pd.Series) -> tuple[float, float, bool]:
    """The mean of independent values, its standard error, and whether a t interval at 95 % excludes zero."""
    n, mean = len(values), float(values.mean())
    if n < 2:
        return mean, math.nan, False
    error = float(values.std()) / math.sqrt(n)
    return mean, error, abs(mean) > max(SIGNIFICANT, stats.t.ppf(0.975, n - 1)) * error


def summary(found: pd.DataFrame) -> pd.DataFrame:
    """How many contrasts of each kind are decided, and in which direction."""
    rows = []
    for key, group in found.groupby(["compared", "with", "bits"]):
        decided = group[group["decided"]]
        rows.append({
            "compared": key[0], "with": key[1], "bits": key[2], "contrasts": len(group),
            "more damage": int((decided["difference"] > 0).sum()),
            "less damage": int((decided["difference"] < 0).sum()),
            "undecided": len(group) - len(decided),
            "median difference": group["difference"].median(),
            "median relative": (group["difference"] / group["delta_of_reference"]).median(),
        })  # fmt: skip
    return pd.DataFrame(rows)


def by_schedule(table: pd.DataFrame) -> pd.DataFrame:
    """δ of every seed of the usual runs, under one quantizer."""
    rows = table[(table["unusual"] == "") & table["ending"].isin(ENDINGS) & table["bits"].isin(SHOWN_BITS)]
    rows = rows[(rows["quantizer"] == SHOWN[0]) & (rows["grouping"] == SHOWN[1])]
    return rows[[*AT, "ending", "seed", "delta"]].sort_values([*AT, "ending", "seed"])


def against_constant(table: pd.DataFrame) -> pd.DataFrame:
    """Losses before and after quantization, and δ, minus those of a constant rate at the same D, by ending and D/N.

    A run is a text, a size and a seed; its differences are means over quantizers and groupings, and errors are
    standard errors over runs.
    """
    usual = table[(table["unusual"] == "") & table["ending"].isin(ENDINGS)]
    run = [*OF_A_RUN, "seed", "tokens_per_param", "bits"]
    means = usual.groupby([*run, "ending"])[list(COMPARED)].mean().reset_index()
    base = means[means["ending"] == "constant"].drop(columns="ending")
    pairs = means[means["ending"] != "constant"].merge(base, on=run, suffixes=("", "_of_constant"))
    for name in COMPARED:
        pairs[name] -= pairs[f"{name}_of_constant"]
    rows = []
    for key, cell in pairs.groupby(["ending", "bits", "tokens_per_param"]):
        found: dict[str, Any] = dict(zip(("ending", "bits", "tokens_per_param"), key), runs=len(cell))
        found["delta_of_constant"] = cell["delta_of_constant"].mean()
        for name in COMPARED:
            mean, error, decided = of_independent(cell[name])
            found |= {name: mean, f"{name}_error": error, f"{name}_decided": decided}
        rows.append(found)
    return pd.DataFrame(rows)


def draw_against_constant(found: pd.DataFrame) -> Any:
    """Differences against D/N: a row of panels for each ending, a panel for each bit-width."""
    from matplotlib.lines import Line2D

    endings = [name for name in ENDINGS if name in set(found["ending"])]
    figure, axes = figures.panels(len(endings), len(SHOWN_BITS), sharex=True)
    for ending, row in zip(endings, axes):
        for bits, panel in zip(SHOWN_BITS, row):
            own = found[(found["ending"] == ending) & (found["bits"] == bits)]
            panel.axhline(0, color="0.6", linewidth=0.6)
            for place, (name, (_, colour, mark)) in enumerate(COMPARED.items()):
                panel.errorbar(
                    own["tokens_per_param"] * 1.05 ** (place - 1), own[name], 2 * own[f"{name}_error"], color=colour,
                    fmt=f"-{mark}", markersize=3, linewidth=0.9, elinewidth=0.9,
                )  # fmt: skip
            figures.log_x(panel, *figures.span(found["tokens_per_param"]), tokens=False)
            panel.set_title(f"{ending}, {bits} bits")
        row[0].set_ylabel("minus constant rate, nats")
    for panel in axes[-1]:
        panel.set_xlabel("D/N")
    handles = [Line2D([], [], color=colour, marker=mark, label=label) for label, colour, mark in COMPARED.values()]
    figures.legend(figure, handles, len(handles))
    return figure


def draw_by_schedule(table: pd.DataFrame) -> Any:
    """δ against D/N: a row of panels for books or code and each size, a panel for each bit-width; a point is a run."""
    from matplotlib.lines import Line2D

    if table.empty:
        return figures.nothing("nothing is measured yet")
    corpus = table["text"].str.startswith("stdlib").map({True: "code", False: "books"})
    models = list(table.groupby([corpus, "params"]).groups)
    bits = sorted(table["bits"].unique())
    figure, axes = figures.panels(len(models), len(bits), sharex=True)
    shown = [name for name in ENDINGS if name in set(table["ending"])]
    for (kind, params), row in zip(models, axes):
        for width, panel in zip(bits, row):
            own = table[(corpus == kind) & (table["params"] == params) & (table["bits"] == width)]
            for place, name in enumerate(shown):
                points = own[own["ending"] == name]
                colour, mark = figures.MORE_COLOURS[ENDINGS.index(name)], figures.MARKS[ENDINGS.index(name)]
                at = points["tokens_per_param"] * 1.04 ** (place - len(shown) / 2)
                panel.plot(at, points["delta"], mark, color=colour, alpha=0.5, markersize=2.6)
                means = points.assign(at=at).groupby("at")["delta"].mean()
                means = means.where(means > 0)  # a logarithmic axis has no place for the others
                panel.plot(means.index, means, "-", color=colour, linewidth=0.9)
            panel.set_yscale("log")
            figures.log_x(panel, *figures.span(table["tokens_per_param"]), tokens=False)
            panel.set_title(f"{kind}, N = {figures.count(params)}, {width:g} bits")
        row[0].set_ylabel("δ, nats per token")
    for panel in axes[-1]:
        panel.set_xlabel("D/N")
    handles = [
        Line2D([], [], color=figures.MORE_COLOURS[ENDINGS.index(name)], marker=figures.MARKS[ENDINGS.index(name)],
               label=name)
        for name in shown
    ]  # fmt: skip
    figures.legend(figure, handles, len(handles))
    return figure


def by_size(table: pd.DataFrame) -> pd.DataFrame:
    """Loss after quantization, in nats per token, of the usual runs on books by N and D/N: means over quantizers,
    groupings and runs, with the standard error over runs.  `lowest` marks the D/N of the lowest mean of a size."""
    books = (table["unusual"] == "") & table["text"].str.startswith("books") & table["bits"].isin(SHOWN_BITS)
    own = table[books & table["ending"].isin(["constant", "annealed"])]
    cell = ["ending", "bits", "params", "tokens_per_param"]
    found = own.groupby([*cell, "seed"])["loss_q"].mean().groupby(cell).agg(["mean", "sem", "size"]).reset_index()
    found = found.rename(columns={"mean": "loss", "sem": "error", "size": "runs"})
    return found.assign(lowest=found.groupby(cell[:-1])["loss"].transform("min") == found["loss"])


def draw_by_size(found: pd.DataFrame) -> Any:
    """Loss after quantization against D/N: a panel for each bit-width, a colour for each N."""
    from matplotlib.lines import Line2D

    sizes, lines = sorted(found["params"].unique()), {"constant": "--", "annealed": "-"}
    colours = dict(zip(sizes, [*figures.MORE_COLOURS, *figures.COLOURS.values()]))
    figure, axes = figures.panels(1, len(SHOWN_BITS), sharex=True, sharey=True)
    for bits, panel in zip(SHOWN_BITS, axes[0]):
        for (ending, params), own in found[found["bits"] == bits].groupby(["ending", "params"]):
            at, colour = own["tokens_per_param"], colours[params]
            style = {"linestyle": lines[ending], "linewidth": 1.0, "elinewidth": 0.8}
            panel.errorbar(at, own["loss"], 2 * own["error"], color=colour, **style)
            best = own[own["lowest"]]
            face = colour if ending == "annealed" else "white"
            panel.plot(best["tokens_per_param"], best["loss"], "o", color=colour, markerfacecolor=face, markersize=4)
        figures.log_x(panel, *figures.span(found["tokens_per_param"]), tokens=False)
        panel.set_title(f"{bits} bits")
        panel.set_xlabel("D/N")
    axes[0, 0].set_ylabel("loss after quantization, nats per token")
    handles = [Line2D([], [], color=colours[n], label=f"N = {figures.count(n)}") for n in sizes]
    handles += [Line2D([], [], color="0.2", linestyle=line, label=name) for name, line in lines.items()]
    handles.append(Line2D([], [], color="0.2", linestyle="", marker="o", markersize=4, label="lowest"))
    figures.legend(figure, handles, 4)
    return figure


def main() -> None:
    """Write figures/ and contrasts.csv beside this file, and print how many contrasts are decided."""
    table = read()
    shown = {
        "delta_by_schedule": SimpleNamespace(data=by_schedule, draw=draw_by_schedule),
        "against_constant": SimpleNamespace(data=against_constant, draw=draw_against_constant),
        "loss_by_size": SimpleNamespace(data=by_size, draw=draw_by_size),
    }
    (HERE / "figures").mkdir(exist_ok=True)
    figures.write(HERE / "figures", table, shown)
    found = contrasts(table)
    found.to_csv(HERE / "contrasts.csv", index=False, float_format="%.4g")
    counted = summary(found).replace({np.nan: None})
    print(counted.to_string(index=False, float_format="{:.3g}".format))


if __name__ == "__main__":
    main()
