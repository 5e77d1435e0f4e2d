"""What the tables of results/ say, as values: effects with their errors, no sentence and no LaTeX.

A run is a text, a size and a seed.  Losses of a run are means over quantizers and groupings, and an effect is a mean
over runs with the standard error over them.  It is decided where a t interval at 95 % excludes zero.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd

from results.precision import findings

RESULTS = Path(__file__).resolve().parents[1]
TABLE = RESULTS / "precision" / "table.csv.gz"
LOSSES = ["loss_fp", "loss_q", "delta"]
BITS = (2, 3, 4)
"""Widths that the text speaks of: above them δ is mostly within its noise."""
FIRST = 20
"""The least D/N of statements about ratios of δ, which is within its noise before."""
MODEL = findings.OF_A_RUN
RUN = [*MODEL, "seed"]


@dataclass(frozen=True)
class Effect:
    """A mean over n runs, its standard error (NaN for one run), and whether a t interval at 95 % excludes zero."""

    mean: float
    error: float
    n: int
    decided: bool


def effect(values: Iterable[float]) -> Effect:
    """The effect of independent values, one for each run."""
    series = pd.Series(list(values), dtype=float).dropna()
    if not len(series):
        return NONE
    mean, error, decided = findings.of_independent(series)
    return Effect(mean, error, len(series), bool(decided))


NONE = Effect(float("nan"), float("nan"), 0, False)


def of_runs(table: pd.DataFrame, *more: str) -> pd.DataFrame:
    """Losses of every run at every checkpoint and bit-width; more: further columns that tell rows apart."""
    keys = [*RUN, "corpus", "ending", "tokens_per_param", "bits", *more]
    return table.groupby(keys)[LOSSES].mean().reset_index()


def read() -> pd.DataFrame:
    """The measurements after quantization with their `corpus`, books or code."""
    table = findings.read()
    code = table["text"].str.startswith("stdlib")
    return table.assign(corpus=code.map({True: "code", False: "books"}))


def usual(table: pd.DataFrame) -> pd.DataFrame:
    """Rows of runs in full precision with the usual optimizer."""
    return table[table["unusual"] == ""]


def steps(runs: pd.DataFrame, factor: float) -> pd.DataFrame:
    """Each checkpoint beside that of the same run and ending with `factor` times its D (columns with `_next`)."""
    keys = [*RUN, "corpus", "ending", "bits"]
    place = np.log2(runs["tokens_per_param"])
    later = runs.assign(place=(place - np.log2(factor)).round(1))
    return runs.assign(place=place.round(1)).merge(later, on=[*keys, "place"], suffixes=("", "_next"))


def exponents(runs: pd.DataFrame) -> pd.DataFrame:
    """`value`: the exponent of D in δ between two checkpoints of a run a factor of four apart, both δ positive."""
    pairs = steps(runs[runs["tokens_per_param"] >= FIRST], 4)
    pairs = pairs[(pairs["delta"] > 0) & (pairs["delta_next"] > 0)]
    spans = np.log(pairs["tokens_per_param_next"] / pairs["tokens_per_param"])
    return pairs.assign(value=np.log(pairs["delta_next"] / pairs["delta"]) / spans)


def bit_ratios(runs: pd.DataFrame) -> pd.DataFrame:
    """`value`: log of δ at b bits over δ at b + 1 of the same checkpoint, both positive."""
    finer = runs.assign(bits=runs["bits"] - 1)
    pairs = runs.merge(finer, on=[*RUN, "corpus", "ending", "tokens_per_param", "bits"], suffixes=("", "_finer"))
    pairs = pairs[(pairs["tokens_per_param"] >= FIRST) & (pairs["delta"] > 0) & (pairs["delta_finer"] > 0)]
    return pairs.assign(value=np.log(pairs["delta"] / pairs["delta_finer"]))


def rises(runs: pd.DataFrame) -> pd.DataFrame:
    """`value`: the change of the loss after quantization from one checkpoint to that of twice the D."""
    pairs = steps(runs, 2)
    return pairs.assign(value=pairs["loss_q_next"] - pairs["loss_q"])


def at_equal_loss(runs: pd.DataFrame) -> pd.DataFrame:
    """`value`: log of δ over that of the same run's trunk at the same loss before quantization.

    The trunk's log δ is interpolated linearly in its loss between its checkpoints; losses beyond the trunk's range have
    no counterpart and are excluded.
    """
    rows = []
    for _, own in runs[runs["tokens_per_param"] >= FIRST].groupby([*RUN, "bits"]):
        trunk = _falling(own[own["ending"] == "constant"])
        others = own["ending"].isin(findings.ENDINGS) & (own["ending"] != "constant")
        for row in own[others & (own["delta"] > 0)].to_dict("records"):
            rows.append({**row, "value": np.log(row["delta"]) - _between(trunk, row["loss_fp"])})
    return pd.DataFrame(rows, columns=[*runs.columns, "value"]).dropna(subset="value")


def interpolated(runs: pd.DataFrame) -> pd.DataFrame:
    """`value`: log δ of a trunk's checkpoint less its interpolation between its neighbours, twice as far apart as those
    that `at_equal_loss` uses."""
    rows = []
    for _, own in runs[(runs["tokens_per_param"] >= FIRST) & runs["bits"].isin(BITS)].groupby([*RUN, "bits"]):
        trunk = _falling(own[own["ending"] == "constant"])
        for at in range(1, len(trunk) - 1):
            row = trunk.iloc[at].to_dict()
            rest = trunk.drop(trunk.index[at])
            rows.append({**row, "value": np.log(row["delta"]) - _between(rest, row["loss_fp"])})
    return pd.DataFrame(rows, columns=[*runs.columns, "value"])


def _falling(trunk: pd.DataFrame) -> pd.DataFrame:
    """The checkpoints of a trunk with a δ above zero and a loss below those of all before."""
    trunk = trunk[trunk["delta"] > 0].sort_values("tokens_per_param")
    return trunk[trunk["loss_fp"] < trunk["loss_fp"].cummin().shift(fill_value=np.inf)]


def _between(trunk: pd.DataFrame, loss: float) -> float:
    """log δ of a falling trunk where its loss is `loss`; NaN beyond its range."""
    if len(trunk) < 2:
        return float("nan")
    losses, deltas = (trunk[name].to_numpy()[::-1] for name in ("loss_fp", "delta"))
    return float(np.interp(loss, losses, np.log(deltas), left=np.nan, right=np.nan))


def by_size(runs: pd.DataFrame) -> pd.DataFrame:
    """`value`: log of δ over that of the next smaller model with the same text, seed and D, interpolated in log D."""
    rows = []
    for _, own in runs[runs["delta"] > 0].groupby(["text", "seed", "ending", "bits"]):
        for small, large in pairwise(sorted(own["params"].unique())):
            curve = own[(own["params"] == small) & (own["tokens_per_param"] >= FIRST)]
            curve = curve.sort_values("tokens_per_param")
            known = np.log(curve["tokens_per_param"] * small), np.log(curve["delta"])
            for row in own[own["params"] == large].to_dict("records") if len(curve) > 1 else ():
                at = np.interp(np.log(row["tokens_per_param"] * large), *known, left=np.nan, right=np.nan)
                rows.append({**row, "smaller": small, "value": np.log(row["delta"]) - at})
    return pd.DataFrame(rows, columns=[*runs.columns, "smaller", "value"]).dropna(subset="value")


def cells(rows: pd.DataFrame, *keys: str) -> pd.DataFrame:
    """`effect` of the column `value` over the runs of every cell of the keys."""
    found = []
    for key, cell in rows.groupby(list(keys)):
        found.append({**dict(zip(keys, key)), "effect": of_each_run(cell)})
    return pd.DataFrame(found, columns=[*keys, "effect"])


def of_each_run(rows: pd.DataFrame) -> Effect:
    """The effect of the column `value`, after averaging the values of each run."""
    return effect(rows.groupby(RUN)["value"].mean())


def unusual(table: pd.DataFrame, ending: str) -> pd.DataFrame:
    """What an unusual training changes, at the largest D/N it reached: loss before and after, and log δ ratio.

    Columns: unusual, corpus, params, tokens_per_param, bits, and effects `loss_fp`, `loss_q`, `delta`, `ratio`.
    """
    runs = of_runs(table[table["ending"] == ending], "unusual")
    keys = [*RUN, "corpus", "ending", "tokens_per_param", "bits"]
    pairs = runs[runs["unusual"] != ""].merge(runs[runs["unusual"] == ""], on=keys, suffixes=("", "_usual"))
    rows = []
    for key, cell in pairs.groupby(["unusual", "corpus", "params", "bits"]):
        cell = cell[cell["tokens_per_param"] == cell["tokens_per_param"].max()]
        row = dict(zip(["unusual", "corpus", "params", "bits"], key), tokens_per_param=cell["tokens_per_param"].iloc[0])
        row |= {name: effect(cell[name.removesuffix("_usual")] - cell[f"{name}_usual"]) for name in LOSSES}
        both = cell[(cell["delta"] > 0) & (cell["delta_usual"] > 0)]
        rows.append(row | {"ratio": effect(np.log(both["delta"] / both["delta_usual"]))})
    return pd.DataFrame(rows, columns=["unusual", "corpus", "params", "bits", "tokens_per_param", *LOSSES, "ratio"])


def averages(runs: pd.DataFrame) -> pd.DataFrame:
    """Losses of running averages minus those of their own trunk, and these gains minus those of annealed branches.

    Branches have another run for their trunk, so gains are compared and not losses.  Columns: ending, against (trunk or
    annealed), bits, tokens_per_param, and effects `loss_fp`, `loss_q`, `delta`.
    """
    keys = [*RUN, "corpus", "tokens_per_param", "bits"]
    by_ending = {name: own.set_index(keys)[LOSSES] for name, own in runs.groupby("ending")}
    rows = []
    for ending in [name for name in by_ending if name.startswith("averaged ") and "averaged" in by_ending]:
        gain = by_ending[ending] - by_ending["averaged"]
        gains = {"trunk": gain}
        if "annealed" in by_ending and "constant" in by_ending:
            gains["annealed"] = gain - (by_ending["annealed"] - by_ending["constant"])
        for against, found in gains.items():
            for key, cell in found.dropna().groupby(["bits", "tokens_per_param"]):
                row = dict(zip(["bits", "tokens_per_param"], key), ending=ending, against=against)
                rows.append(row | {name: effect(cell[name]) for name in LOSSES})
    return pd.DataFrame(rows, columns=["ending", "against", "bits", "tokens_per_param", *LOSSES])
