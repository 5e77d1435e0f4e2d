"""The other sentences of the paper that depend on results, in plain text."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from ptq_eval.report.common.numbers import count, percent, plus_minus, ratio, rough, short
from ptq_eval.report.common.words import listed, plural
from results.paper import others, study
from results.paper.study import BITS, Effect
from results.paper.words import PLACES, WIDTH, amount, of_row, sign, times
from results.precision import number_formats


def growth(runs: pd.DataFrame) -> tuple[str, str]:
    """(exponents of D of annealed branches at one width; whether they change along a run)."""
    rows = study.exponents(runs[(runs["ending"] == "annealed") & (runs["bits"] == WIDTH)])
    cells = study.cells(rows, *PLACES).to_dict("records")
    steps = [cells[0], cells[-1]]
    said = [
        f"{plus_minus(row['effect'].mean, row['effect'].error)} from D/N = {ratio(row[PLACES[0]])} to "
        f"{ratio(row[PLACES[1]])} ({plural(row['effect'].n, 'run')})"
        for row in steps
    ]
    early, late = (rows[rows["tokens_per_param"] == row["tokens_per_param"]] for row in steps)
    pairs = early.merge(late, on=study.RUN, suffixes=("_early", "_late"))
    change = study.effect(pairs["value_late"] - pairs["value_early"])
    return listed(said), _change(change)


def _change(change: Effect) -> str:
    """How the exponent of the same runs changes."""
    if not change.decided:
        return f"Whether it changes along a run is undecided ({plus_minus(change.mean, change.error)})."
    word = "falls" if change.mean < 0 else "rises"
    return f"In the same runs, it {word} by {amount(change)}: no single power of D describes them."


def bits(runs: pd.DataFrame) -> tuple[str, str]:
    """(the factor of each bit; which predictions are within two errors of it)."""
    rows = study.bit_ratios(runs[runs["ending"].isin(["constant", "annealed"])])
    effects = {width: study.of_each_run(rows[rows["bits"] == width]) for width in BITS}
    said = [f"{times(found)} from {width + 1} to {width} bits" for width, found in effects.items()]
    second = others.predicted_bit_ratios(BITS)["second order"]
    near = [
        f"{width + 1} to {width}"
        for width, predicted in zip(BITS, second)
        if abs(math.log(predicted) - effects[width].mean) <= 2 * effects[width].error
    ]
    where = f"within two errors of this for {listed(near)} bits" if near else "further than two errors from all"
    return listed(said), f"second order gives {listed([short(value) for value in second])}, {where}"


def size(runs: pd.DataFrame) -> str:
    """δ of larger models over that of smaller ones at the same D."""
    rows = study.by_size(runs[runs["bits"].isin(BITS) & (runs["ending"] == "annealed")])
    rows = rows[rows["tokens_per_param"] >= study.FIRST]
    said = []
    for (corpus, small, large), own in rows.groupby(["corpus", "smaller", "params"]):
        found, published = study.of_each_run(own), others.published_size_factor(small, large)
        values = listed([rough(value) for value in published.values()])
        said.append(
            f"the model of N = {count(large)} has {times(found)} times the δ of that of N = {count(small)} ({corpus}, "
            f"{plural(found.n, 'seed')}{'' if found.decided else ', undecided'}), where the published exponents give "
            f"{values}"
        )
    return "; ".join(said) if said else "no two sizes overlap in D"


def size_caution(table: pd.DataFrame) -> str:
    """What else differs between the sizes."""
    if table["width"].nunique() == 1:
        caution = "so this is an effect of depth as much as of N, and no test of gamma_N where models grow in both"
        return f"The sizes differ in depth at one width, {caution}."
    return "The sizes differ in width and in depth, in other proportions than models of practice."


def training(table: pd.DataFrame) -> str:
    """Which trainings change δ and the loss after quantization at one width."""
    found = study.unusual(table[table["bits"] == WIDTH], "annealed").to_dict("records")
    if not found:
        return "No other training is measured."

    several = len({row["params"] for row in found}) > 1

    def where(name: str, wanted: int) -> list[str]:
        return [_training(row, several) for row in found if sign(row[name]) == wanted]

    lower, higher = where("delta", -1), where("delta", 1)
    said = [f"Of {plural(len(found), 'training')}, δ at {WIDTH} bits is decidedly lower after {_or_none(lower)}"]
    said.append(f" and higher after {_or_none(higher)}. ")
    said.append(f"The loss after quantization is lower after {_or_none(where('loss_q', -1))} ")
    said.append(f"and higher after {_or_none(where('loss_q', 1))}; the rest is undecided.")
    return "".join(said)


def _training(row: Mapping[str, Any], with_size: bool) -> str:
    size = f" (N = {count(row['params'])})" if with_size else ""
    return others.training_name(str(row["unusual"])) + size


def _or_none(names: list[str]) -> str:
    return listed(names) if names else "none"


def at_equal_loss() -> str:
    """By how much δ at one width is lower after training in low precision, at equal loss before quantization."""
    own = others.trained("delta after training in low precision, at equal loss")
    own = own[own["bits"] == WIDTH]
    decided = own[own["decided"].astype(str) == "True"]
    said = [
        f"{others.precision_name(row['case'])} {plus_minus(100 * row['effect'], 100 * row['error'])} %"
        for row in decided.to_dict("records")
    ]
    return f"{listed(said) if said else 'no decided difference'}, of {len(own)} trainings"


def together() -> str:
    """Whether precisions of weights, activations and cache cost together what they cost alone."""
    own = others.trained("do the factors multiply")
    row = own[own["ending"] == "annealed"].iloc[-1]
    width = str(row["case"]).split("/")[0]
    decided = str(row["decided"]) == "True"
    verdict = "" if decided else ", undecided"
    return (
        f"Together, {width} bits of weights, activations and cache cost {plus_minus(row['effect'], row['error'])} nats "
        f"per token more than the three alone ({plural(row['runs'], 'run')}{verdict})."
    )


def floats() -> str:
    """What floating point costs after training at equal bits, and whether that changes with D."""
    found = number_formats.effects(number_formats.compared(number_formats.read()))
    own = found[(found["part"] == "annealed") & (found["grouping"] != "rows")].to_dict("records")
    said = [f"{_format(row['format'])} {times(of_row(row, 'ratio'))}" for row in own]
    changes = [
        f"{_format(row['format'])} ({plus_minus(row['slope'], row['slope_error'])})"
        for row in own
        if row["slope_decided"]
    ]
    return (
        f"{listed(said)} ({plural(own[0]['runs'], 'run')}, D/N from {ratio(number_formats.FIRST)} on). With each "
        f"doubling of D the logarithm of the factor changes decidedly for {_or_none(changes)}."
    )


def floats_in_training() -> str:
    """What weights in floating point cost in training against integers of the same bits."""
    own = others.trained("integer or float in training")
    own = own[own["ending"] == "annealed"]
    said = []
    for row in own.to_dict("records"):
        name = str(row["case"]).split(" ")[1]
        verdict = "" if str(row["decided"]) == "True" else ", undecided"
        said.append(
            f"{_format(name)} {plus_minus(row['effect'], row['error'])} ({plural(row['runs'], 'run')}{verdict})"
        )
    if not said:
        return ""
    return f"In training, weights in floats rather than integers of the same bits change the loss by: {listed(said)}."


def _format(name: str) -> str:
    return name.upper().replace("_", " ")


def averages(runs: pd.DataFrame) -> str:
    """What running averages change, against the trunk and the annealed branch of the same run and D."""
    found = study.averages(runs[runs["bits"] == WIDTH])
    if found.empty:
        return "Running averages of weights are part of the design and not measured yet: nothing is said of them."
    said = []
    for (ending, against), own in found.groupby(["ending", "against"], sort=False):
        row = own.sort_values("tokens_per_param").iloc[-1]
        base = "its trunk's last weights" if against == "trunk" else "the gain of the annealed branch"
        name = str(ending).replace("averaged ", "").upper().replace("-", " ")
        effect = row["loss_q"]
        where = f"D/N = {ratio(row['tokens_per_param'])}, {plural(effect.n, 'run')}"
        said.append(f"{name} against {base} ({where}): the loss after {WIDTH} bits is {_lower(effect)}.")
    return " ".join(said)


def _lower(effect: Effect) -> str:
    if not effect.decided:
        return f"undecided ({plus_minus(effect.mean, effect.error)})"
    return f"{'higher' if effect.mean > 0 else 'lower'} by {amount(effect)}"


def adapters() -> dict[str, str]:
    """Where the predictions hold, and what remains after training."""
    table = others.predictions().sort_values("bits", ascending=False)
    adapted = others.adapted()
    said = {}
    for name, column in (("Kl", "kl_within"), ("Delta", "delta_within"), ("Variance", "variance_within")):
        said[f"AdaptWithin{name}"] = _widths(table[table[column].astype(bool)]["bits"])
    holds = table["kl"] <= table["bound"] + 2 * table["kl_se"]
    said["BoundHolds"], said["BoundFails"] = _widths(table[holds]["bits"]), _widths(table[~holds]["bits"])
    clear = table[table["delta"] > 2 * table["delta_se"]]
    left = [f"{percent(row['delta_after'] / row['delta'])} at {row['bits']} bits" for row in clear.to_dict("records")]
    said["AdaptLeft"] = listed(left)
    said["AdaptBest"] = percent((clear["residual"] / clear["predicted"]).max())
    said["AdaptSeeds"] = plural(adapted["seed"].nunique(), "seed")
    grown = table["variance"] - table["variance_full"]
    said["AdaptGrowth"] = listed(
        [
            f"{short(after / before)} from {wide} to {narrow} bits"
            for wide, narrow, before, after in zip(table["bits"], table["bits"][1:], grown, grown[1:])
            if wide - narrow == 1
        ]
    )
    return said


def _widths(bits: pd.Series) -> str:
    return f"{listed([f'{width}' for width in bits])} bits" if len(bits) else "no width"


def arena(counted: pd.DataFrame) -> str:
    """Which laws are never significantly worse than the best where the largest D is held out."""
    own = counted[counted["held_out"] == "last"]
    good = [others.law_name(law) for law in own[(own["good"] > 0) & (own["worse"] == 0)]["law"]]
    worse = [others.law_name(law) for law in own[own["worse"] > 0]["law"]]
    end = f"; significantly worse somewhere: {listed(worse)}" if worse else ""
    text = f"Never significantly worse than the best where the largest D is held out: {listed(good)}{end}"
    return f"{text.removesuffix('.')}."


def clear(table: pd.DataFrame) -> str:
    """The share of the usual runs' δ that are further from zero than twice their error, by bit-width."""
    own = study.usual(table)
    limit = np.hypot(2 * own["delta_se"], own["noise_floor"])  # a noise floor is two standard deviations
    shares = (own["delta"].abs() > limit).groupby(own["bits"]).mean()
    return listed([f"{percent(share)} at {width:.0f} bits" for width, share in shares.items()])
