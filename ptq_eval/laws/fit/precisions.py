"""Laws of three precisions: what weights, activations and cache cost together, fitted to a run that crossed them.

The points are those of weights alone, of activations or the cache alone, and of all combinations, for one trajectory,
one configuration of the weights and one way to round activations and cache.  Three forms (`formulas.served`) are fitted
to the same points and ranked by what they predict of the largest D and by AICc (`laws.compare`): the N_eff form, the
product of separate laws, and their sum, which is the product with kappa = 0.  D_crit is that of the form ranked first.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any

import numpy as np

from ptq_eval.config.plan import FULL_BITS
from ptq_eval.laws.base import Estimate, FitResult, n_distinct
from ptq_eval.laws.compare.ranking import compare
from ptq_eval.laws.findings import Why, why
from ptq_eval.laws.fit.fit import fit
from ptq_eval.laws.forecast.folder import forecasts
from ptq_eval.laws.formulas.n_eff import PARTS
from ptq_eval.laws.formulas.served import NEffPTQ, ProductPTQ, Served
from ptq_eval.laws.turning.observed import turning_point
from ptq_eval.laws.turning.predicted import poor_fit, predict
from ptq_eval.laws.turning.verdict import Conflict, refutation
from ptq_eval.records import FULL_PRECISION, WEIGHTS_KEPT, BitsAxis
from ptq_eval.results.points import (
    Config,
    Point,
    Row,
    Windows,
    curve,
    delta_data,
    format_family,
    is_runtime,
    number,
    read,
)
from ptq_eval.runtime import COLUMNS

SUM = "sum"
"""The name of the product form with kappa = 0."""
_ACTIVATIONS = ("activation_format", "activation_per", "activation_range")
_CACHE = ("kv_format", "key_per", "key_rope", "value_per", "kv_range")
_AXES = {"P_w": "bits", "P_a": "activation_bits", "P_kv": "kv_bits"}


@dataclass(frozen=True)
class Crossed:
    """The points of one trajectory and configuration of the weights, alone and with activations and cache rounded.

    activations, cache: what of their rounding is not bits, by column; empty where a part is always in full precision.
    bits: of activations and cache, by the key of a point; NaN in full precision.
    """

    trajectory: str
    config: Config
    activations: Mapping[str, Any]
    cache: Mapping[str, Any]
    points: Sequence[Point]
    bits: Mapping[Any, tuple[float, float]]

    def data(self, windows: Windows) -> dict[str, np.ndarray]:
        """The columns for a law of three precisions; full precision has 16 bits."""
        data = delta_data(self.points, windows)
        P, pairs = data.pop("P"), np.array([self.bits[point.key] for point in self.points])
        served = {"P_w": P, "P_a": pairs[:, 0], "P_kv": pairs[:, 1]}
        return data | {name: np.where(np.isfinite(bits), bits, FULL_BITS) for name, bits in served.items()}


@dataclass(frozen=True)
class Fitted:
    """What was found for one `Crossed`: `entry` for `fit.json`, and the replicates [n_boot, p] of its forms."""

    entry: dict[str, Any]
    replicates: list[np.ndarray] = field(repr=False)


def fit_table(
    rows: Iterable[Row],
    windows: Windows,
    curves: Mapping[str, FitResult],
    *,
    seed: int = 0,
    n_boot: int = 200,
    axis: BitsAxis = "bits",
) -> list[Fitted]:
    """Fit all groups of a table; `curves`: the fits of the full-precision loss by trajectory."""
    options: dict[str, Any] = {"seed": seed, "n_boot": n_boot}
    groups = crossed(rows, axis)
    return [fit_precisions(group, windows, curves.get(group.trajectory), **options) for group in groups]


def crossed(rows: Iterable[Row], axis: BitsAxis = "bits") -> list[Crossed]:
    """The groups of a table's rows in which weights are rounded together with activations, the cache or both."""
    by_key = {row["key"]: row for row in rows if row.get("quantizer") != FULL_PRECISION}
    if not any(map(is_runtime, by_key.values())):
        return []
    points = read([{**row, **dict.fromkeys(COLUMNS)} for row in by_key.values()], axis)[0]
    kept = [point for point in points if point.config.quantizer == WEIGHTS_KEPT]
    found: dict[tuple[str, Config], list[Point]] = {}
    for point in points:
        if point.config.quantizer != WEIGHTS_KEPT:
            found.setdefault((point.trajectory, point.curve), []).append(point)
    return [
        Crossed(
            trajectory, config, *ways, *_with(ways, [*points, *(p for p in kept if p.trajectory == trajectory)], by_key)
        )
        for (trajectory, config), points in found.items()
        for ways in _ways([by_key[point.key] for point in points])
    ]


def _ways(rows: Sequence[Row]) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """How activations and cache were rounded beside weights, in every combination; nothing where neither was."""
    activations, cache = ([own for row in rows if (own := _scheme(row, names))] for names in (_ACTIVATIONS, _CACHE))
    if not activations and not cache:
        return []
    distinct = lambda several: [own for i, own in enumerate(several) if own not in several[:i]] or [{}]
    return list(product(distinct(activations), distinct(cache)))


def _scheme(row: Row, names: Sequence[str]) -> dict[str, Any]:
    known = {name: value for name in names if (value := row.get(name)) is not None and value == value and value != ""}
    if names[0] not in known:
        return {}
    return {**known, names[0]: re.sub(r"^int\d$", "int", format_family(str(known[names[0]])))}


def _with(
    ways: tuple[dict[str, Any], dict[str, Any]], points: Sequence[Point], by_key: Mapping[Any, Row]
) -> tuple[list[Point], dict[Any, tuple[float, float]]]:
    """The points in which activations and cache are rounded in these ways or not at all, and their bits."""
    own = []
    for point in points:
        row = by_key[point.key]
        if _scheme(row, _ACTIVATIONS) in ({}, ways[0]) and _scheme(row, _CACHE) in ({}, ways[1]):
            own.append(point)
    bits = {p.key: (number(by_key[p.key].get("activation_bits")), number(by_key[p.key].get("kv_bits"))) for p in own}
    return own, bits


def forms(data: Mapping[str, np.ndarray]) -> dict[str, Served]:
    """The laws of the parts that are rounded in these columns."""
    parts = [part for part, x in PARTS.items() if (data[f"P_{x}"] < FULL_BITS).any()]
    once = [part for part in parts if n_distinct((P := data[f"P_{PARTS[part]}"])[P < FULL_BITS]) == 1]
    return {
        NEffPTQ.name: NEffPTQ(parts),
        ProductPTQ.name: ProductPTQ(parts, one_precision=once),
        SUM: ProductPTQ(parts, kappa=0.0, one_precision=once),
    }


def fit_precisions(
    group: Crossed, windows: Windows, full: FitResult | None, *, seed: int = 0, n_boot: int = 200
) -> Fitted:
    """Fit and rank the forms of one group; `full`: the fit of its full-precision loss, for D_crit.

    The entry has "forms", by rank: each a fit with "form", "held_out_error", "delta_aicc" and "outcome" (against the
    first, see `compare.ranking.Outcome`; null where it could not be ranked), "poor" if the first describes its points
    poorly, and "critical_tokens": D_crit in tokens, or the reason why there is none, at every combination of bits that
    was measured (null: full precision).  Only the first form has intervals, because the bootstrap is what takes time.
    """
    data = group.data(windows)
    laws = forms(data)
    comparison = compare(laws, data, intervals="none", seed=seed)
    ranked = {row["name"]: row for row in comparison.to_dict()["laws"]}
    results = {one.name: one.result for one in comparison.entries}
    order = [*ranked, *(name for name in laws if name not in ranked)]
    best = order[0]
    results[best] = fit(laws[best], data, seed=seed, n_boot=n_boot)
    results |= {name: fit(laws[name], data, intervals="none", seed=seed) for name in order[1:] if name not in results}
    listed = []
    for name in order:
        row = ranked.get(name, {})
        ranking = {key: row.get(key) for key in ("held_out_error", "delta_aicc")}
        outcome = row.get("against_best", {}).get("outcome")
        listed.append({**results[name].to_dict(), "form": name, **ranking, "outcome": outcome})
    columns = ["N", "D", *laws[best].columns[2:]]
    entry = {
        **group.config.to_dict(),
        "trajectory": group.trajectory,
        "runs": sorted({point.run for point in group.points}),
        "activations": dict(group.activations),
        "cache": dict(group.cache),
        "ranges": {name: _range(data[name], name) for name in columns},
        "forms": listed,
        "poor": poor.to_dict() if (poor := poor_fit(results[best])) else None,
        "critical_tokens": _critical(group, data, laws[best], results[best], full, windows, seed, n_boot),
    }
    return Fitted(entry, [results[name].replicates for name in order])


def _range(values: np.ndarray, name: str) -> list[float]:
    known = values[values < FULL_BITS] if name.startswith("P_") else values
    return [float(known.min()), float(known.max())]


def _critical(
    group: Crossed,
    data: Mapping[str, np.ndarray],
    law: Served,
    result: FitResult,
    full: FitResult | None,
    windows: Windows,
    seed: int,
    n_boot: int,
) -> list[dict[str, Any]]:
    """D_crit of every combination, or why there is none: as for weights alone, one that the measurements or the
    forecast of that combination refute is withheld."""
    found, columns = [], law.columns[2:]
    places = list(zip(*(data[name].tolist() for name in columns)))
    for place in sorted(set(places)):
        at = dict(zip(columns, place))
        turn, reason = None, why(Why.NO_LOSS_CURVE)
        if full is not None:
            turn, reason = predict(law, result, full, {"N": float(data["N"][0]), **at}, tokens=data["D"])
        line = [point for point, own in zip(group.points, places) if own == place]
        if turn is not None and (conflict := _conflict(turn, line, at.get("P_w", FULL_BITS), windows, seed, n_boot)):
            turn, reason = None, why(Why.REFUTED, conflict=conflict.value)
        bits = {axis: None if (P := at.get(name, FULL_BITS)) >= FULL_BITS else P for name, axis in _AXES.items()}
        known = {"predicted": turn.to_dict() if turn else None, "reason": reason.to_dict() if reason else None}
        found.append({**bits, **known})
    return found


def _conflict(
    turn: Estimate, line: Sequence[Point], bits: float, windows: Windows, seed: int, n_boot: int
) -> Conflict | None:
    """How the measurements of a combination, or their forecast, refute its predicted turn."""
    ordered = [replace(point, bits=bits) for point in sorted(line, key=lambda point: point.D)]
    measured = curve(ordered, windows, quantized=True)
    ahead = next(iter(forecasts(ordered, windows, seed=seed).values()), None)
    return refutation(turn, measured, turning_point(*measured, seed=seed, n_boot=n_boot), ahead)
