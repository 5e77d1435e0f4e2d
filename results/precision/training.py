"""What table.csv.gz says of training precision, effective parameters, recipes, and the constants of published laws.

    python -m results.precision.training

Writes training.csv, a row for each effect, and prints it.  Losses of integers and floats in training are from
trained.csv.gz, which has the runs that are not measured too.  Effects are differences between runs of one seed at
equal D, on books.  An effect is the mean over seeds, `scatter` their standard deviation, `error` scatter/√runs.  It
is decided where a t interval at 95 % excludes zero and it is twice its error at least; else `detectable` is the least
effect that would be decided with probability 0.8.

Effective parameters are read off the study itself: a precision that raises the loss by Δ is worth as much as
N_eff = N·exp(−Δ/s), s being how much the loss falls per log N between the two smallest sizes at equal D.
"""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from ptq_eval.laws import KUMAR_2024, effective_params, fit
from ptq_eval.laws.formulas.kumar import KumarPTQ
from ptq_eval.laws.formulas.n_eff import NEff
from ptq_eval.results.endings import smallest
from ptq_eval.results.gate.decision import Evidence
from ptq_eval.sampling import SIGNIFICANT
from results.precision import findings

HERE = Path(__file__).resolve().parent
FULL = "full"
PARTS = ("weights", "activations", "kv")
RECIPE = {"peak_learning_rate": 3e-3, "weight_decay": 0.1, "optimizer": "adamw", "schedule": "wsd"}
RATIO, SMALL, LARGE = 80.0, 13_408, 40_160
"""The D/N at which precisions and recipes are compared, their N, and the N of the next size."""
BITS = (2.0, 3.0, 4.0)


def read(name: str = "table.csv.gz") -> pd.DataFrame:
    """The measurements on books, with D/N as planned and the training precision as `weights/activations/kv`."""
    table = pd.read_csv(HERE / name, dtype=dict.fromkeys(PARTS, str), low_memory=False)
    table = table[table["text"].str.startswith("books")]
    table = table[table["status"].isin(["ok", "partial"])] if "status" in table else table
    precision = table["weights"] + "/" + table["activations"] + "/" + table["kv"]
    late = (table["low_precision_share"] < 1).map({True: " in the branch", False: ""})
    return table.assign(precision=precision + late, ratio=findings.planned(table))


def usual(table: pd.DataFrame, **other: Any) -> pd.DataFrame:
    """Rows of the usual recipe, but for `other`."""
    return table[(table[list(RECIPE)] == pd.Series({**RECIPE, **other})).all(axis=1)]


def effect(question: str, case: str, values: pd.Series | np.ndarray, unit: str, **more: Any) -> dict[str, Any]:
    """A row: the mean over runs with its error, and whether it is decided."""
    values = np.asarray(values, float)
    n, mean, scatter = len(values), values.mean(), values.std(ddof=1) if len(values) > 1 else math.nan
    return _row(question, case, mean, scatter / math.sqrt(n), n, unit, scatter=scatter, **more)


def _row(question: str, case: str, mean: float, error: float, n: int, unit: str, **more: Any) -> dict[str, Any]:
    half = max(stats.t.ppf(0.975, n - 1), SIGNIFICANT) * error if n > 1 else math.inf
    seen = smallest(Evidence(mean, error, n - 1, n)) if n > 1 else math.inf
    return {
        "question": question, "case": case, "runs": n, "effect": mean, "error": error, "unit": unit,
        "decided": bool(abs(mean) > half), "detectable": seen, **more,
    }  # fmt: skip


def losses(table: pd.DataFrame, part: str) -> pd.DataFrame:
    """Validation loss in the training precision, [seed, precision] of the small size at `RATIO`."""
    own = usual(table[(table["params"] == SMALL) & (table["ratio"] == RATIO) & (table["part"] == part)])
    return own.groupby(["seed", "precision"])["eval_loss"].first().unstack()


def per_log_size(table: pd.DataFrame, part: str) -> tuple[float, float]:
    """How much the loss falls per log N at the D of `RATIO` in full precision, and its standard error."""
    own = usual(table[(table["part"] == part) & (table["precision"] == "full/full/full")])
    own = own.groupby(["params", "seed", "tokens"])["eval_loss"].first().reset_index()
    D = own[(own["params"] == SMALL) & own["tokens"].between(0.99 * RATIO * SMALL, 1.01 * RATIO * SMALL)]
    small = D["eval_loss"]
    large = [
        np.interp(np.log(D["tokens"].iloc[0]), np.log(run["tokens"]), run["eval_loss"])
        for _, run in own[own["params"] == LARGE].groupby("seed")
    ]
    apart = math.log(LARGE / SMALL)
    slope = (small.mean() - np.mean(large)) / apart
    return slope, math.hypot(small.sem(), stats.sem(large)) / apart


def precisions(table: pd.DataFrame) -> list[dict[str, Any]]:
    """What each training precision costs, what it leaves of N, whether parts multiply, and which precision is best."""
    rows = []
    for part in ("trunk", "annealed"):
        found, (slope, slope_error) = losses(table, part), per_log_size(table, part)
        cost = found.sub(found["full/full/full"], axis=0).drop(columns="full/full/full").dropna(how="all")
        for name in cost:
            row = effect("loss of training precision", name, cost[name].dropna(), "nats per token", ending=part)
            log_share = -row["effect"] / slope
            spread = math.hypot(row["error"], row["effect"] * slope_error / slope) / slope
            half = stats.t.ppf(0.975, row["runs"] - 1) * spread
            shares = {"share": log_share, "share_low": log_share - half, "share_high": log_share + half}
            row |= {key: math.exp(value) for key, value in shares.items()}
            rows.append(row | {"paper": _published(name)})
        alone = cost[["4/full/full", "full/4/full", "full/full/4"]].sum(axis=1)
        together = cost["4/4/4"]
        case = "4/4/4 against the sum of its parts"
        rows.append(effect("do the factors multiply", case, together - alone, "nats per token", ending=part))
        # log N_eff/P: what a budget of N·P buys; six bits of everything from their parts, the cache as at 4
        six = cost[["6/full/full", "full/6/full", "full/full/4"]].sum(axis=1)
        per_bit = {"4": -together / slope - math.log(4), "6": -six / slope - math.log(6), "16": 0 * six - math.log(16)}
        for low, high in (("4", "16"), ("6", "16"), ("4", "6")):
            gap = per_bit[low] - per_bit[high]
            share = gap.mean() - math.log(float(high) / float(low))
            error = math.hypot(gap.sem(), share * slope_error / slope)
            about = {"scatter": gap.std(), "ending": part}
            case = f"{low} against {high} bits"
            rows.append(_row("N_eff per bit of training", case, gap.mean(), error, len(gap), "log", **about))
    return rows


EQUAL_BITS = {"fp8_e4m3": "8", "fp6_e2m3": "6", "fp4_e2m1": "4"}
"""Floats and the integers of the same bits: weights have one scale per channel in both."""


def floats(trained: pd.DataFrame) -> list[dict[str, Any]]:
    """What weights in floating point cost in training against integers of the same bits."""
    rows = []
    for part in ("trunk", "annealed"):
        found = losses(trained, part)
        for name, bits in EQUAL_BITS.items():
            pair = [f"{weights}/full/full" for weights in (name, bits)]
            if set(pair) <= set(found):
                apart = (found[pair[0]] - found[pair[1]]).dropna()
                case = f"weights {name} against integers of {bits} bits"
                rows.append(effect("integer or float in training", case, apart, "nats per token", ending=part))
    return rows


def _published(name: str) -> float:
    """The share of N that is left by the constants of Kumar et al. 2024; NaN where they do not say."""
    if " " in name or "fp" in name:
        return math.nan
    P = [16.0 if bits == FULL else float(bits) for bits in name.split("/")]
    full = effective_params(SMALL, 16.0, 16.0, 16.0, constants=KUMAR_2024)
    return float(effective_params(SMALL, *P, constants=KUMAR_2024) / full)


def robustness(table: pd.DataFrame) -> list[dict[str, Any]]:
    """δ of runs in low precision against full precision, at equal D and at an equal loss before quantization."""
    own = usual(table[(table["params"] == SMALL) & (table["quantizer"] != "none") & table["bits"].isin(BITS)])
    key = ["seed", "part", "bits", "quantizer", "grouping", "ratio"]
    means = own.groupby(["precision", *key])[["delta", "loss_fp"]].mean().reset_index()
    full = means[means["precision"] == "full/full/full"]
    at_loss = {
        cell: (run.sort_values("loss_fp")["loss_fp"].to_numpy(), run.sort_values("loss_fp")["delta"].to_numpy())
        for cell, run in full.groupby(key[:-1])
    }
    low = means[(means["precision"] != "full/full/full") & (means["ratio"] >= 20)]
    low = low.merge(full.drop(columns="precision"), on=key, suffixes=("", "_full"))
    low["at_loss"] = [
        np.interp(row.loss_fp, *at_loss[row.seed, row.part, row.bits, row.quantizer, row.grouping], np.nan, np.nan)
        for row in low.itertuples()
    ]
    rows = []
    for (name, bits), cell in low.groupby(["precision", "bits"]):
        for reference, column in (("equal D", "delta_full"), ("equal loss", "at_loss")):
            both = cell[cell[column].notna()].groupby("seed")[["delta", column]].sum()
            change = both["delta"] / both[column] - 1
            question = f"delta after training in low precision, at {reference}"
            rows.append(effect(question, name, change, "relative", bits=bits))
    return rows


def longer(table: pd.DataFrame) -> list[dict[str, Any]]:
    """What each doubling of D does to the loss after quantization of each size, a run's mean over quantizers and
    groupings."""
    own = usual(table[(table["precision"] == "full/full/full") & (table["quantizer"] != "none")])
    losses = own.groupby(["params", "part", "bits", "seed", "ratio"])["loss_q"].mean().unstack()
    rows = []
    for first, last in pairwise(sorted(losses)):
        change, case = (losses[last] - losses[first]).dropna(), f"D/N {first:g} to {2 * first:g}"
        for (params, part, bits), cell in change.groupby(["params", "part", "bits"]):
            about = {"ending": part, "bits": bits, "params": params}
            rows.append(effect("loss after quantization of longer training", case, cell, "nats per token", **about))
    return rows


def recipes(table: pd.DataFrame) -> list[dict[str, Any]]:
    """What another learning rate, weight decay, optimizer or schedule, or an average, changes at equal D."""
    full = table[(table["precision"] == "full/full/full") & (table["params"] == SMALL) & (table["ratio"] == RATIO)]
    full = full[(full["quantizer"] != "none") & full["bits"].isin(BITS)]
    key, values = ["part", "bits", "seed"], ["loss_fp", "loss_q", "delta"]
    base = usual(full).groupby(key)[values].mean()
    rows = []
    others = {"peak_learning_rate": (1e-3, 1e-2), "weight_decay": (0.0, 0.3), "optimizer": ("muon",)}
    cases = {f"{name} {value}": usual(full, **{name: value}) for name, each in others.items() for value in each}
    averaged = usual(full, schedule="constant")
    cases["inverse-sqrt"] = usual(full, schedule="inverse-sqrt")
    for case, own in cases.items():
        rows += _changes(case, own.groupby(key)[values].mean() - base)
    for name in sorted(set(averaged["part"]) - {"trunk"}):
        trunk, mean = (
            averaged[averaged["part"] == part].groupby(["bits", "seed"])[values].mean() for part in ("trunk", name)
        )
        rows += _changes(f"average {name}", pd.concat({"trunk": mean - trunk}, names=["part"]))
    return rows


def _changes(case: str, differences: pd.DataFrame) -> list[dict[str, Any]]:
    rows = []
    for (part, bits), cell in differences.dropna().groupby(["part", "bits"]):
        about = {"ending": part, "bits": bits}
        rows += [effect(f"{name} of a recipe", case, cell[name], "nats per token", **about) for name in cell]
    return rows


def constants(table: pd.DataFrame) -> list[dict[str, Any]]:
    """The constants of Kumar's laws on this study, 95 % intervals over runs, beside the published ones."""
    own = usual(table[table["precision"] == "full/full/full"])
    rows = []
    grouped = own[(own["quantizer"] != "none") & (own["grouping"] == "groups") & (own["ratio"] >= 20)]
    for (quantizer, part), cell in grouped.groupby(["quantizer", "part"]):
        columns = {"N": "params", "D": "tokens", "P": "bits", "delta": "delta", "se": "delta_se", "run": "run"}
        found = fit(KumarPTQ(), {name: cell[column].to_numpy() for name, column in columns.items()}, level=0.95)
        for name, value in found.estimates.items():
            known, paper = math.isfinite(value.low) and math.isfinite(value.high), KUMAR_2024.constants[name]
            rows.append({
                "question": "constants", "case": f"{name} {quantizer}", "ending": part, "runs": found.n_runs,
                "effect": value.value, "share_low": value.low, "share_high": value.high, "unit": f"R2 {found.r2:.2f}",
                "paper": paper, "decided": known and not value.low <= paper <= value.high,
            })  # fmt: skip
    trained = usual(table[(table["quantizer"] == "none") & (table["part"] == "annealed") & (table["ratio"] >= 20)])
    trained = trained[(trained["low_precision_share"] == 1) & ~trained["weights"].str.startswith("fp")]
    data = {"N": trained["params"], "D": trained["tokens"], "loss": trained["eval_loss"], "run": trained["run"]}
    data |= {f"P_{x}": trained[part].replace(FULL, "16").astype(float) for x, part in zip(("w", "a", "kv"), PARTS)}
    whole = fit(NEff(), {name: column.to_numpy() for name, column in data.items()})
    reason = f"{whole.status.kind}: {whole.status.reason}"
    rows.append({"question": "constants", "case": "law of training precision", "runs": whole.n_runs, "unit": reason})
    return rows


QUESTIONS = (longer, precisions, robustness, recipes, constants)


def main() -> None:
    """Write training.csv beside this file, and print it."""
    table = read()
    rows = [row for part in QUESTIONS for row in part(table)]
    found = pd.DataFrame([*rows, *floats(read("trained.csv.gz"))]).astype({"params": "Int64"})
    found.to_csv(HERE / "training.csv", index=False, float_format="%.4g")
    print(found.to_string(index=False, float_format="{:.3g}".format, na_rep=""))


if __name__ == "__main__":
    main()
