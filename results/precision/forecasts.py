"""What forecasts from the first part of every run of this folder said, against what was measured later.

    python -m results.precision.forecasts

A run counts if it has a trunk of five checkpoints or more, one more than a forecast needs.  It is asked at the last
checkpoint up to a third of its D that has three before it, or at its fourth checkpoint where none has.  Every later
checkpoint is held against the 90 % intervals of the loss after quantization and of δ, and the turn observed over the
whole run against what was stated of D_crit.
"""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd

from ptq_eval.laws.forecast.backtest import Ahead, What, backtest
from ptq_eval.laws.forecast.baselines import FORECAST, METHODS
from ptq_eval.laws.forecast.series import MIN_CHECKPOINTS, Series
from ptq_eval.laws.tables.schedule import phase_of
from ptq_eval.report.common import figures

HERE = Path(__file__).resolve().parent
FEWEST = MIN_CHECKPOINTS + 1
LINE = ["run", "grouping", "quantizer", "bits"]
TRAINED = ["weights", "activations", "kv"]
OF_A_RUN = ["text", "params", *TRAINED, "seed"]
THIRD, HALF = "a third of the run", "half of the run"
EDGE = 3.0
"""Half-widths of an interval from its median beyond which a measurement is drawn at the edge."""


def read() -> pd.DataFrame:
    """The measurements of every trunk with enough checkpoints, after quantization."""
    table = pd.read_csv(HERE / "table.csv.gz", dtype={"weights": str, "activations": str, "kv": str})
    table = table[(table["part"] == "trunk") & (table["quantizer"] != "none") & table["status"].isin(["ok", "partial"])]
    return table[table.groupby("run")["tokens"].transform("nunique") >= FEWEST]


def series_of(table: pd.DataFrame) -> list[Series]:
    """One series per run, grouping, quantizer and bit-width."""
    found = []
    for (run, grouping, quantizer, bits), own in table.groupby(LINE):
        own = own.sort_values("tokens")
        columns = [own[name].to_numpy(float) for name in ("tokens", "loss_fp", "delta", "delta_se")]
        rates = own["learning_rate"].to_numpy(float)
        phase = phase_of(rates, own["schedule_phase"].tolist(), own["run"].tolist(), columns[0])[0] - 1
        name, params = f"{quantizer} {grouping}", float(own["params"].iloc[0])
        found.append(Series(str(run), name, float(bits), params, *columns, phase=phase))
    return found


def asked(tokens: np.ndarray) -> tuple[str, float]:
    """Where a run with checkpoints at D = `tokens` [n] is asked: how far that is, and D."""
    known = np.unique(tokens)[MIN_CHECKPOINTS - 1 :]
    early = known[known <= tokens.max() / 3]
    return (THIRD, float(early[-1])) if len(early) else (HALF, float(known[0]))


def statements(table: pd.DataFrame) -> pd.DataFrame:
    """What was stated of each run where it is asked, and what happened: one row per statement, in nats and tokens."""
    series = series_of(table)
    places = {run: asked(own.to_numpy(float)) for run, own in table.groupby("run")["tokens"]}
    found = backtest(series, min_checkpoints=FEWEST, methods={FORECAST: METHODS[FORECAST]})
    rows = [s.to_dict() for s in found if s.origin_tokens == places[s.run][1] and s.ahead is not Ahead.NEXT]
    stated = pd.DataFrame(rows).drop(columns=["method", "made", "as_assumed"])  # the next checkpoint is at twice D
    stated["asked_at"] = stated["run"].map(lambda run: places[run][0])
    return stated.merge(table[["run", *OF_A_RUN]].drop_duplicates("run"), on="run")


def coverage(stated: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """The share of later measurements inside 90 % and 50 % intervals; its error is by runs, which share all else."""
    rows = []
    measured = stated[stated["what"] != What.TURN].assign(inside=lambda rows: ~rows["refuted"])
    for key, own in measured.groupby([*by, "what"]):
        shares = own.groupby("run")["inside"].agg(["sum", "size"])
        residual = shares["sum"] - own["inside"].mean() * shares["size"]
        n = len(shares)
        error = math.sqrt(n / (n - 1) * float(np.sum(residual**2))) / len(own) if n > 1 else math.nan
        above = float((own["truth"] > own["high"]).mean())
        rows.append({
            **dict(zip([*by, "what"], key)), "runs": n, "statements": len(own), "inside 90 %": own["inside"].mean(),
            "error": error, "above": above, "inside 50 %": own["half"].mean(), "score": own["score"].mean(),
        })  # fmt: skip
    return pd.DataFrame(rows)


def turns(stated: pd.DataFrame) -> pd.DataFrame:
    """What became of the statements of D_crit, by where they were made and bit-width."""
    own = stated[stated["what"] == What.TURN].copy()
    own["two ends"], own["observed"] = np.isfinite(own["high"]), np.isfinite(own["truth"])
    own["not before a later D"] = ~own["two ends"] & (own["low"] > own["origin_tokens"] * (1 + 1e-9))
    own["says nothing new"] = ~own["two ends"] & ~own["not before a later D"]
    counted = ["two ends", "not before a later D", "says nothing new", "observed", "decisive", "refuted"]
    found = own.groupby(["asked_at", "bits"])[counted].sum().astype(int)
    return found.assign(lines=own.groupby(["asked_at", "bits"]).size()).reset_index()


def places(stated: pd.DataFrame) -> pd.DataFrame:
    """Where each later measurement is in its interval: 0 at the median, ±1 at the ends."""
    own = stated[stated["what"] != What.TURN]
    above = own["truth"] > own["value"]
    reach = np.where(above, own["high"] - own["value"], own["value"] - own["low"])
    panel = "asked at " + own["asked_at"] + ": " + own["ahead"].map({Ahead.TWICE: "2 D", Ahead.FOUR_TIMES: "4 D"})
    own = own.assign(place=(own["truth"] - own["value"]) / reach, panel=panel)
    return own[["panel", "what", "run", "quantizer", "bits", "truth", "low", "value", "high", "place"]]


def draw_places(table: pd.DataFrame) -> Any:
    """A row of panels for losses and one for δ, a column of points per bit-width."""
    shown = {What.LOSS: "loss after quantization", What.DELTA: "δ"}
    names = sorted(table["panel"].unique())
    figure, axes = figures.panels(len(shown), len(names), sharex=True, sharey=True)
    bits, rng = sorted(table["bits"].unique()), np.random.default_rng(0)
    for (what, label), row in zip(shown.items(), axes):
        for name, panel in zip(names, row):
            panel.axhspan(-1, 1, color="0.9", zorder=0)
            panel.axhline(0, color="0.6", linewidth=0.6, zorder=1)
            for column, width in enumerate(bits):
                own = table.loc[(table["panel"] == name) & (table["what"] == what) & (table["bits"] == width), "place"]
                at = column + rng.uniform(-0.3, 0.3, len(own))
                inside = f"{100 * float((own.abs() <= 1).mean()):.0f} %"
                colour = figures.colour(width)
                panel.plot(at, own.clip(-EDGE, EDGE), "o", color=colour, alpha=0.5, markersize=2.2, markeredgewidth=0)
                panel.text(column, EDGE * 1.08, inside, ha="center", fontsize=6.0)
            panel.set_xticks(range(len(bits)), [f"{width:g}" for width in bits])
            panel.set_ylim(-EDGE * 1.05, EDGE * 1.22)
        row[0].set_ylabel(f"{label}\n0: median, ±1: ends of 90 %")
    for name, top, bottom in zip(names, axes[0], axes[-1]):
        top.set_title(name, fontsize=7.5)
        bottom.set_xlabel("bits")
    return figure


def main() -> None:
    """Write forecasts.csv and figures/ beside this file, and print the shares."""
    stated = statements(read())
    stated.to_csv(HERE / "forecasts.csv.gz", index=False, float_format="%.6g")
    figures.write(HERE / "figures", stated, {"forecast_places": SimpleNamespace(data=places, draw=draw_places)})
    for by in (["asked_at", "ahead"], ["asked_at", "bits"], ["asked_at", "text", "params"], ["asked_at", *TRAINED]):
        print(coverage(stated, by).to_string(index=False, float_format="{:.3g}".format), "\n")
    print(turns(stated).to_string(index=False))


if __name__ == "__main__":
    main()
