"""One checkpoint's rows in a few numbers: agreement over the layers, and the bound over the bit-widths."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ptq_eval.theory.bound import bound, grid_factor
from ptq_eval.theory.sensitivity import ALL, agreement

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

    `sum` and `joint` are the damages of the layers one at a time, added up, and of all together.
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


def bounds(table: Rows) -> list[dict[str, Any]]:
    """The bound of each quantizer, for δ and for KL, beside `predicted`, the constant of the noise model.

    The error of a damage is that of evaluation, the scatter of the second order and, for δ, the spread of the slope
    together: all of them move one rounding's damage about the expectation that the bound is for.
    """
    found = []
    for quantizer in dict.fromkeys(row["quantizer"] for row in table):
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
