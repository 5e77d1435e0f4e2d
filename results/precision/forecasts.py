"""What forecasts from the first part of every run of this folder said, against what was measured later.

    python results/precision/forecasts.py

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
from ptq_eval.report.common import figures

HERE = Path(__file__).resolve().parent
FEWEST = MIN_CHECKPOINTS + 1
LINE = ["run", "grouping", "quantizer", "bits"]
OF_A_RUN = ["text", "params", "weights", "activations", "kv", "seed"]
THIRD, HALF = "a third", "half"
FARTHEST_DRAWN = 3.0
"""Half-widths of an interval from its middle beyond which a measurement is drawn at the edge."""


def read() -> pd.DataFrame:
    """The measurements of every trunk with enough checkpoints, after quantization."""
    table = pd.read_csv(HERE / "table.csv.gz", dtype={"weights": str, "activations": str, "kv": str})
    table = table[(table["part"] == "trunk") & (table["quantizer"] != "none") & table["status"].isin(["ok", "partial"])]
    return table[table.groupby("run")["tokens"].transform("nunique") >= FEWEST]


def series_of(table: pd.DataFrame) -> list[Series]:
    """One series per run, grouping, quantizer and bit-width; all learning rates are constant."""
    found = []
    for (run, grouping, quantizer, bits), own in table.groupby(LINE):
        own = own.sort_values("tokens")
        assert (own["schedule_phase"] == "constant").all()
        columns = (own[name].to_numpy(float) for name in ("tokens", "loss_fp", "delta", "delta_se"))
        name, params = f"{quantizer} {grouping}", float(own["params"].iloc[0])
        found.append(Series(str(run), name, float(bits), params, *columns, phase=np.zeros(len(own))))
    return found


def asked(tokens: np.ndarray) -> tuple[str, float]:
    """Where a run with checkpoints at D = `tokens` [n] is asked: how far that is, and D."""
    known = np.sort(tokens)[MIN_CHECKPOINTS - 1 :]
    early = known[known <= tokens.max() / 3]
    return (THIRD, float(early[-1])) if len(early) else (HALF, float(known[0]))


def statements(table: pd.DataFrame) -> pd.DataFrame:
    """What was stated of each run where it is asked, and what happened: one row per statement, in nats and tokens."""
    series = series_of(table)
    places = {run: asked(own.to_numpy(float)) for run, own in table.groupby("run")["tokens"]}
    found = backtest(series, min_checkpoints=FEWEST, methods={FORECAST: METHODS[FORECAST]})
    rows = [s.to_dict() for s in found if s.origin_tokens == places[s.run][1]]
    stated = pd.DataFrame(rows).drop(columns=["method", "made", "as_assumed"])
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
    """Where each later loss is in its interval: 0 at the median, ±1 at the ends."""
    own = stated[stated["what"] == What.LOSS]
    above = own["truth"] > own["value"]
    reach = np.where(above, own["high"] - own["value"], own["value"] - own["low"])
    own = own.assign(place=(own["truth"] - own["value"]) / reach)
    far = own["ahead"].map(lambda ahead: "2 D" if ahead in (Ahead.NEXT, Ahead.TWICE) else "4 D")
    own = own.assign(panel="asked at " + own["asked_at"] + " of the run: " + far)
    own = own.drop_duplicates([*LINE[:1], "quantizer", "bits", "target_tokens"])
    return own[["panel", "run", "text", "params", "quantizer", "bits", "truth", "low", "value", "high", "place"]]


def draw_places(table: pd.DataFrame) -> Any:
    """A panel per distance, a column of points per bit-width."""
    panels = sorted(table["panel"].unique())
    figure, axes = figures.panels(1, len(panels), sharey=True)
    bits, rng = sorted(table["bits"].unique()), np.random.default_rng(0)
    for name, panel in zip(panels, axes[0]):
        panel.axhspan(-1, 1, color="0.9", zorder=0)
        panel.axhline(0, color="0.6", linewidth=0.6, zorder=1)
        for place, width in enumerate(bits):
            own = table[(table["panel"] == name) & (table["bits"] == width)]
            at = place + rng.uniform(-0.3, 0.3, len(own))
            shown = own["place"].clip(-FARTHEST_DRAWN, FARTHEST_DRAWN)
            panel.plot(at, shown, "o", color=figures.colour(width), alpha=0.5, markersize=2.2, markeredgewidth=0)
            inside = f"{100 * float((own['place'].abs() <= 1).mean()):.0f} %" if len(own) else ""
            panel.text(place, FARTHEST_DRAWN * 1.08, inside, ha="center", fontsize=6.5)
        panel.set_xticks(range(len(bits)), [f"{width:g}" for width in bits])
        panel.set_xlabel("bits")
        panel.set_ylim(-FARTHEST_DRAWN * 1.05, FARTHEST_DRAWN * 1.22)
        panel.set_title(name, fontsize=7.5)
    axes[0][0].set_ylabel("measured loss; 0: median forecast\n±1: ends of its 90 % interval")
    return figure


def main() -> None:
    """Write forecasts.csv and figures/ beside this file, and print the shares."""
    stated = statements(read())
    stated.to_csv(HERE / "forecasts.csv.gz", index=False, float_format="%.6g")
    figures.write(HERE / "figures", stated, {"forecast_places": SimpleNamespace(data=places, draw=draw_places)})
    for by in (["asked_at"], ["asked_at", "ahead"], ["asked_at", "bits"], ["asked_at", "text", "params"]):
        print(coverage(stated, by).to_string(index=False, float_format="{:.3g}".format), "\n")
    print(turns(stated).to_string(index=False))


if __name__ == "__main__":
    main()
