"""Runs of `ptq-eval adapt` beside each other: what is derived from their metrics files.  No torch.

The reference of a run is the run of the same seed on the base that is not quantized: both saw the same batches and are
evaluated on the same windows, so the difference δ of their losses has the standard error of a paired difference.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from ptq_eval.config.adapt import UNQUANTIZED_BITS
from ptq_eval.records import FULL_PRECISION
from ptq_eval.sampling import Design, mean_and_error

ROUNDING = "rtn"
"""The quantizer that file names do not mention."""

Metrics = Mapping[str, Any]


@dataclass(frozen=True)
class Run:
    """One base and one seed; `quantizer` is `full precision` for a base of 16 bits."""

    quantizer: str
    bits: int
    seed: int

    @property
    def base(self) -> str:
        """The base in words: `rtn, 4 bits`."""
        return f"{self.quantizer}, {self.bits} bits"


def metrics_name(run: Run) -> str:
    """`metrics_{bits}_{seed}.json`, with the quantizer between them unless it is rtn."""
    method = re.sub(r"[^\w.-]+", "-", run.quantizer)
    middle = [] if run.quantizer in (FULL_PRECISION, ROUNDING) else [method]
    return "_".join(["metrics", str(run.bits), *middle, str(run.seed)]) + ".json"


def references(runs: Sequence[Metrics]) -> dict[int, Metrics]:
    """The runs on the base that is not quantized, by seed."""
    return {run["seed"]: run for run in runs if run["bits"] == UNQUANTIZED_BITS}


def epochs(runs: Sequence[Metrics], design: Design | None = None) -> list[dict[str, Any]]:
    """One row per run and epoch: its numbers without the single windows, delta and delta_se (nats per token)."""
    full = references(runs)
    found = []
    for run in runs:
        reference = full.get(run["seed"])
        for place, epoch in enumerate(run["epochs"]):
            row = {name: value for name, value in epoch.items() if name != "nll"}
            other = reference["epochs"][place]["nll"] if reference is not None else None
            delta, error = _paired(epoch, other, design)
            head = {name: run[name] for name in ("quantizer", "bits", "seed")}
            found.append({**head, **row, "delta": delta, "delta_se": error})
    return found


def _paired(epoch: Metrics, reference: Sequence[float] | None, design: Design | None) -> tuple[float, float]:
    if reference is None:
        return np.nan, np.nan
    own, sums = np.asarray(epoch["nll"]), float(np.sum(epoch["nll"]))
    tokens = sums / epoch["loss"] / len(own)  # of a window: all have the same number
    return mean_and_error(own - np.asarray(reference), np.full(len(own), tokens), design)


def summary(runs: Sequence[Metrics], design: Design | None = None) -> list[dict[str, Any]]:
    """One row per run: the first and the last epoch beside each other, and what it cost."""
    by_run: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in epochs(runs, design):
        by_run.setdefault((row["quantizer"], row["bits"], row["seed"]), []).append(row)
    found = []
    for run in runs:
        own = by_run[run["quantizer"], run["bits"], run["seed"]]
        row = {name: run[name] for name in ("quantizer", "bits", "seed", "format", "group_size", "bits_per_weight")}
        for name in ("loss", "perplexity", "delta", "delta_se", "kl", "gradient_norm", "gradient_variance"):
            row |= {f"{name}_before": own[0][name], name: own[-1][name]}
        found.append({**row, "epochs": own[-1]["epoch"], "steps": own[-1]["steps"], "seconds": run["cost"]["seconds"]})
    return found


def costs(runs: Sequence[Metrics]) -> list[dict[str, Any]]:
    """One row per run: time, steps, tokens and trained parameters."""
    machine = ("host", "machine", "threads", "torch", "time")
    return [
        {
            **{name: run[name] for name in ("quantizer", "bits", "seed")},
            **run["cost"],
            **{name: run["provenance"].get(name) for name in machine},
        }
        for run in runs
    ]


def by_base(rows: Sequence[Metrics], name: str) -> list[dict[str, Any]]:
    """Mean and standard deviation over seeds of one column of `summary`, for each base; deviation NaN for one seed."""
    bases: dict[tuple[str, int], list[float]] = {}
    for row in rows:
        bases.setdefault((row["quantizer"], row["bits"]), []).append(row[name])
    return [
        {
            "quantizer": quantizer,
            "bits": bits,
            "seeds": len(values),
            "mean": float(np.mean(values)),
            "deviation": float(np.std(values, ddof=1)) if len(values) > 1 else np.nan,
        }
        for (quantizer, bits), values in bases.items()
    ]


WITHIN = 0.1
"""Relative difference between prediction and observation that counts as agreement."""


def comparisons(theory: Mapping[str, Any], rows: Sequence[Metrics]) -> list[dict[str, Any]]:
    """One row per base: what was predicted beside the means over seeds of `summary` rows.

    bound: C·4^−bits with the predicted C of the quantizer's lowest width.  uniform, uniform_quadratic and quadratic are
    those of `theory.assumptions`.  The `_ratio` are predicted over observed, and `_within` says whether they differ by
    at most 10 %.  variance_predicted, and variance_uniform under drawn noise, are NaN for bases of another grid.
    """
    found = []
    means = {name: {(one["quantizer"], one["bits"]): one["mean"] for one in by_base(rows, name)} for name in _MEANS}
    for base in theory["bases"]:
        key = base["quantizer"], base["bits"]
        if key not in means["delta"]:
            continue
        row = {name: base[name] for name in _OF_BASE}
        row |= {"delta_after": means["delta"][key], "variance": means[_VARIANCE][key], **_variances(theory, base)}
        for name, predicted in _RATIOS.items():
            row[f"{name}_ratio"] = row[predicted] / row[name] if row[name] else np.nan
            row[f"{name}_within"] = bool(abs(row[f"{name}_ratio"] - 1) <= WITHIN)
        found.append(row)
    return found


def factors(row: Metrics) -> dict[str, float]:
    """KL over its prediction, of a row of `comparisons`, as the product of what `theory.assumptions` separates."""
    return {
        "curvature": row["uniform_quadratic"] / row["predicted"],
        "error": row["quadratic"] / row["uniform_quadratic"],
        "orders": row["kl"] / row["quadratic"],
    }


def _variances(theory: Mapping[str, Any], base: Metrics) -> dict[str, float]:
    """The variance of gradients without quantization, predicted for the base, and under noise of its width."""
    own = [one for one in theory["gradients"] if _same_grid(one, base)]
    steps = (2.0 ** base["bits"] - 1) ** 2
    mean = lambda values: float(np.mean(values)) if values else np.nan
    return {
        "variance_full": mean([one["plain"] for one in theory["gradients"]]),
        "variance_predicted": mean([one["plain"] + one["growth"] / steps for one in own]),
        "variance_uniform": mean([one["uniform"][str(base["bits"])] for one in own]),
    }


def _same_grid(response: Metrics, base: Metrics) -> bool:
    integer = re.fullmatch(r"int\d(_half)?", base["format"]) is not None
    return integer and base["group_size"] == response["group_size"] and str(base["bits"]) in response["uniform"]


_VARIANCE = "gradient_variance_before"
_MEANS = ("delta", _VARIANCE)
_OF_BASE = (
    "quantizer", "bits", "predicted", "bound", "kl", "kl_se", "delta", "delta_se", "residual", "uniform",
    "uniform_quadratic", "quadratic", "scatter", "spread",
)  # fmt: skip
_RATIOS = {
    "kl": "predicted",
    "delta": "predicted",
    "uniform": "predicted",
    "variance": "variance_predicted",
    "variance_uniform": "variance_predicted",
}
"""{what is observed: what predicts it}."""


FEWEST = 3
"""Bases that have a correlation."""


class Correlation(NamedTuple):
    """Pearson's r between logarithms, NaN for fewer than `FEWEST` bases; over so many, where both are above zero."""

    r: float
    bases: int


def correlations(compared: Sequence[Metrics]) -> dict[str, Correlation]:
    """How prediction and observation correlate over the bases where both are above zero.

    For the variance it is the growth over the base that is not quantized that is compared.
    """
    growth = [
        (row["variance_predicted"] - row["variance_full"], row["variance"] - row["variance_full"]) for row in compared
    ]
    pairs = {name: [(row["predicted"], row[name]) for row in compared] for name in ("kl", "delta")} | {
        "variance": growth
    }
    return {name: _correlation(own) for name, own in pairs.items()}


def _correlation(pairs: Sequence[tuple[float, float]]) -> Correlation:
    usable = [pair for pair in pairs if min(pair) > 0]
    if len(usable) < FEWEST:
        return Correlation(np.nan, len(usable))
    first, second = np.log(np.array(usable)).T
    return Correlation(float(np.corrcoef(first, second)[0, 1]), len(usable))
