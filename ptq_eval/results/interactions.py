"""Weights, activations and cache together: whether their damages add, or the factors of the N_eff law multiply.

Every combination is compared with its parts, each measured alone at the same checkpoint on the same windows: δ_w of the
weights, δ_a of the activations, δ_kv of the cache.  If the parts add, the interaction

    I = δ(w, a, kv) − δ_w − δ_a − δ_kv

is zero.  In the N_eff law of Kumar et al. 2024 (arXiv 2411.04330, eqs. 3 and 4) L = K·(f_w f_a f_kv)^−alpha + … with
K = A·N^−alpha, so that 1 + δ/K is a product, and with κ = 1/K

    I = κ·(δ_w δ_a + δ_w δ_kv + δ_a δ_kv) + κ²·δ_w δ_a δ_kv.

K does not depend on D, bits or method: one κ of each trajectory is fitted to all its combinations by weighted least
squares.  Both hypotheses are tested combination by combination, adjusted by Holm's procedure; a combination's I is the
mean over the checkpoints that have all its parts.  Errors are of paired differences over the evaluation windows, to
first order in the errors of κ and of the parts; other roundings and other draws of calibration windows are not in them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from ptq_eval.records import WEIGHTS_KEPT
from ptq_eval.results.over_rounding import holm
from ptq_eval.results.points import Losses, Row, is_other, is_runtime
from ptq_eval.runtime import COLUMNS
from ptq_eval.sampling import Design, independent, standard_error

_PLACE = ("run", "step", "weights_sha", "protocol", "dtype", "device")
_WEIGHTS = ("quantizer", "quantizer_version", "options", "bits", "group_size", "symmetric", "format", "calibration")
_ACTIVATIONS, _CACHE = COLUMNS[:4], COLUMNS[4:]
_STEPS = 20
"""Of Gauss and Newton; the residual is nearly linear in κ."""


@dataclass(frozen=True)
class Combination:
    """One combination at one checkpoint: losses per window [n] above full precision, together and of each part."""

    row: Row
    together: np.ndarray
    parts: tuple[np.ndarray, ...]
    design: Design

    @property
    def interaction(self) -> np.ndarray:
        """I, per window [n]."""
        return self.together - np.sum(self.parts, axis=0)

    def product(self, order: int) -> np.ndarray:
        """The sum over all sets of `order` parts of the product of their δ, linearised per window [n]."""
        found = np.zeros_like(self.together)
        for chosen in combinations(self.parts, order):
            means = [float(part.mean()) for part in chosen]
            found += math.prod(means) * (1 - order)
            for place, part in enumerate(chosen):
                found += part * math.prod(means[:place] + means[place + 1 :])
        return found


class Terms(NamedTuple):
    """Of one combination in a trajectory, means over its checkpoints, per window [n]: I, and its pairs and triples."""

    interaction: np.ndarray
    pairs: np.ndarray
    triples: np.ndarray
    design: Design


def effects(
    rows: Iterable[Row], windows: Mapping[Any, Losses], trajectories: Mapping[str, str] | None = None
) -> list[dict[str, Any]]:
    """What was found in each trajectory with combinations, for `fit.json`; `trajectories` are those of the runs.

    Each has `kappa` with its error `kappa_se` (per nat; null where nothing determines it) and its `combinations`, whose
    δ, sum of parts and `difference` from it are in nats per token, with the `error` of the difference and p of no
    difference, and the same of the product form (`product_difference` …; p is null with a single combination).
    """
    groups: dict[str, dict[str, list[Combination]]] = {}
    for one in _found(rows, windows):
        trajectory = (trajectories or {}).get(str(one.row["run"]), str(one.row["run"]))
        key = json.dumps([_values(one.row, (*_WEIGHTS, *COLUMNS)), len(one.together)], default=str)
        groups.setdefault(trajectory, {}).setdefault(key, []).append(one)
    return [_trajectory(name, list(several.values())) for name, several in groups.items()]


def _found(rows: Iterable[Row], windows: Mapping[Any, Losses]) -> Iterable[Combination]:
    known = [row for row in rows if row["key"] in windows and not is_other(row)]
    by_place = {_key(row): row for row in known}
    for row in known:
        if not is_runtime(row):
            continue
        parts = [_alone(row, part) for part in ("weights", "activations", "cache") if _has(row, part)]
        alone = [by_place[key] for key in parts if key in by_place]
        if len(parts) < 2 or len(alone) < len(parts):
            continue
        before, design = windows[row["key"]].before, windows[row["key"]].design
        together, *apart = (windows[one["key"]].after - before for one in (row, *alone))
        yield Combination(row, together, tuple(apart), design or independent(len(before)))


def _has(row: Row, part: str) -> bool:
    if part == "weights":
        return row["quantizer"] != WEIGHTS_KEPT
    return _text(row.get("activation_format" if part == "activations" else "kv_format")) != ""


def _alone(row: Row, part: str) -> str:
    """The key of the row in which only this part is quantized."""
    weights = dict(row) if part == "weights" else {**dict.fromkeys(_WEIGHTS), "quantizer": WEIGHTS_KEPT}
    kept = {"activations": _ACTIVATIONS, "cache": _CACHE}.get(part, ())
    runtime = {name: row.get(name) if name in kept else None for name in COLUMNS}
    return _key({**{name: row.get(name) for name in _PLACE}, **{n: weights.get(n) for n in _WEIGHTS}, **runtime})


def _key(row: Row) -> str:
    weights = _WEIGHTS if row["quantizer"] != WEIGHTS_KEPT else _WEIGHTS[:1]
    return json.dumps(_values(row, (*_PLACE, *weights, *COLUMNS)), default=str)


def _values(row: Row, names: Sequence[str]) -> list[Any]:
    return [None if (value := row.get(name)) is None or value != value else value for name in names]


def _text(value: Any) -> str:
    return "" if value is None or value != value else str(value)


def _trajectory(name: str, cells: Sequence[Sequence[Combination]]) -> dict[str, Any]:
    terms = [_terms(cell) for cell in cells]
    fitted = _fit(terms)
    added = [(t.interaction, t.design) for t in terms]
    multiplied = [(_residual(t, *fitted), t.design) for t in terms] if fitted else []
    p_added = _adjusted(added)
    p_multiplied = _adjusted(multiplied) if len(cells) > 1 else [math.nan] * len(multiplied)
    entries = []
    for place, cell in enumerate(cells):
        entry = {column: _plain(cell[0].row.get(column)) for column in (*_WEIGHTS, *COLUMNS)}
        entry |= {"checkpoints": len(cell), "delta": _mean(one.together for one in cell)}
        entry |= {"sum_of_parts": math.fsum(_mean(one.parts[i] for one in cell) for i in range(len(cell[0].parts)))}
        entry |= _test(*added[place], p_added[place], "")
        entry |= _test(*multiplied[place], p_multiplied[place], "product_") if multiplied else {}
        entries.append(entry)
    kappa = {"kappa": fitted[0], "kappa_se": standard_error(fitted[1], terms[0].design)} if fitted else {}
    return {"trajectory": name, "kappa": None, "kappa_se": None, **kappa, "combinations": entries}


def _terms(cell: Sequence[Combination]) -> Terms:
    mean = lambda arrays: np.mean(list(arrays), axis=0)
    pairs, triples = (mean(one.product(order) for one in cell) for order in (2, 3))
    return Terms(mean(one.interaction for one in cell), pairs, triples, cell[0].design)


def _fit(terms: Sequence[Terms]) -> tuple[float, np.ndarray] | None:
    """κ of least weighted squares, and its influence per window [n]; None where the parts have no products."""
    sizes = {len(one.interaction) for one in terms}
    errors = np.array([standard_error(one.interaction, one.design) for one in terms])
    if len(sizes) > 1 or not np.isfinite(errors).all():
        return None
    weights = 1 / np.maximum(errors, 1e-12) ** 2
    interaction, pairs, triples = (np.array([part for part in column]) for column in list(zip(*terms))[:3])
    kappa = 0.0
    for _ in range(_STEPS):
        slope = (pairs + 2 * kappa * triples).mean(axis=1)
        scale = float(weights @ slope**2)
        if not 0 < scale < math.inf:
            return None
        residual = interaction - kappa * pairs - kappa**2 * triples
        kappa += float(weights * slope @ residual.mean(axis=1)) / scale
    residual = interaction - kappa * pairs - kappa**2 * triples
    slope = (pairs + 2 * kappa * triples).mean(axis=1)
    return kappa, (weights * slope) @ residual / float(weights @ slope**2)


def _residual(t: Terms, kappa: float, influence: np.ndarray) -> np.ndarray:
    """I minus the product form, per window [n], with what the error of κ does."""
    plain = t.interaction - kappa * t.pairs - kappa**2 * t.triples
    return plain - float((t.pairs + 2 * kappa * t.triples).mean()) * (influence - influence.mean())


def _adjusted(tested: Sequence[tuple[np.ndarray, Design]]) -> list[float]:
    """Two-sided p of a mean of zero, adjusted for all of them."""
    alone = []
    for series, design in tested:
        error = standard_error(series, design)
        t = abs(float(series.mean())) / error if error > 0 else math.nan
        alone.append(float(2 * stats.t.sf(t, design.freedom)))
    return [float(p) for p in holm(np.array(alone))]


def _test(series: np.ndarray, design: Design, p: float, prefix: str) -> dict[str, Any]:
    return {
        f"{prefix}difference": float(series.mean()),
        f"{prefix}error": standard_error(series, design),
        f"{prefix}p": None if p != p else p,
    }


def _mean(arrays: Iterable[np.ndarray]) -> float:
    return float(np.mean([array.mean() for array in arrays]))


def _plain(value: Any) -> Any:
    """A value of a table for JSON."""
    if value is None or value != value:
        return None
    return value.item() if hasattr(value, "item") else value
