"""One checkpoint's rows in a few numbers: agreement over the layers, and the bound over the bit-widths.  No torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

from ptq_eval.sampling import SIGNIFICANT
from ptq_eval.theory import ALL
from ptq_eval.theory.bound import bound, grid_factor

MIN_LAYERS = 4
"""With fewer layers a correlation says nothing."""

PREDICTIONS = ("predicted", "kfac", "quadratic", "output_error")
"""What is compared with each measured damage."""

Rows = Sequence[Mapping[str, Any]]


def _groups(table: Rows) -> dict[tuple[str, int], list[Mapping[str, Any]]]:
    groups: dict[tuple[str, int], list[Mapping[str, Any]]] = {}
    for row in table:
        groups.setdefault((row["quantizer"], row["bits"]), []).append(row)
    return groups


def agreements(table: Rows) -> list[dict[str, Any]]:
    """One entry per quantizer, bit-width, prediction and measured damage, over the layers of one checkpoint.

    `sum` adds up the damages of the layers quantized one at a time; `joint` quantizes all together.
    """
    found = []
    for (quantizer, bits), own in _groups(table).items():
        layers = [row for row in own if row["layer"] != ALL]
        joint = next(row for row in own if row["layer"] == ALL)
        for measured in ("delta", "kl"):
            sums = {"sum": sum(row[measured] for row in layers), "joint": joint[measured]}
            for prediction in PREDICTIONS:
                columns = ([row[name] for row in layers] for name in (prediction, measured, f"{measured}_se"))
                head = {"quantizer": quantizer, "bits": bits, "prediction": prediction, "measured": measured}
                found.append({**head, **agreement(*columns), **sums})
    return found


def agreement(predicted: Sequence[float], measured: Sequence[float], error: Sequence[float]) -> dict[str, Any]:
    """How well predictions [layers] agree with measurements [layers] of these standard errors [layers].

    `layers`, `clear` (layers whose damage is more than two standard errors above zero), `spearman` (ranks, all layers),
    `pearson_log` (logarithms, the clear layers), `ratio` = Σ predicted / Σ measured.  A correlation is NaN for fewer
    than four layers, or without differences between them.
    """
    x, y, e = (np.asarray(column, float) for column in (predicted, measured, error))
    clear = (y > SIGNIFICANT * e) & (x > 0)
    return {
        "layers": len(x),
        "clear": int(clear.sum()),
        "spearman": _correlation(stats.spearmanr, x, y),
        "pearson_log": _correlation(stats.pearsonr, np.log(x[clear]), np.log(y[clear])),
        "ratio": ratio(float(x.sum()), float(y.sum())),
    }


def _correlation(kind: Callable[..., Any], x: np.ndarray, y: np.ndarray) -> float:
    if len(x) < MIN_LAYERS or not (np.ptp(x) > 0 and np.ptp(y) > 0):
        return np.nan
    return float(kind(x, y)[0])


def ratio(above: float, below: float) -> float:
    """above / below, NaN for division by zero."""
    return above / below if below else np.nan


def bounds(table: Rows) -> list[dict[str, Any]]:
    """The bound of each quantizer of integers, for δ and for KL, beside `predicted`, the constant of the noise model.

    The error of a damage combines the errors of evaluation, the scatter of the second order and, for δ, the spread of
    the slope: all of them move one rounding's damage away from its expectation, which the bound is about.
    """
    found = []
    for quantizer in dict.fromkeys(row["quantizer"] for row in table if "format" not in row):
        joint = [row for row in table if row["quantizer"] == quantizer and row["layer"] == ALL]
        finest = max(joint, key=lambda row: row["bits"])
        noise = finest["predicted"] * 4.0 ** finest["bits"] / grid_factor(finest["bits"])
        for measured in ("delta", "kl"):
            fitted = bound(
                [row["bits"] for row in joint],
                [row[measured] for row in joint],
                [_error(row, measured) for row in joint],
            )
            predicted = noise * grid_factor(fitted.lowest) if fitted.lowest else None
            found.append({"quantizer": quantizer, "measured": measured, **vars(fitted), "predicted": predicted})
    return found


def _error(row: Mapping[str, Any], measured: str) -> float:
    parts = [row[f"{measured}_se"], row["scatter"], row["spread"] if measured == "delta" else 0.0]
    return float(np.sqrt(np.nansum(np.square(parts))))
