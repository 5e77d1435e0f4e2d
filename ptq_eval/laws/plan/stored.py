"""Fits for a plan from a stored `fit.json`, with the replicates of `replicates.npz` where that lies beside it.

A `fit.json` holds a degradation law for each configuration and, as a rule, a loss curve for each run.  A plan needs one
of each, so the quantizer is named, and of several curves that of the run nearest to the N asked about is taken, as a
plan from records does.  The verdicts on D_crit are kept: a plan says no more of a run than its fit did.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ptq_eval.errors import NothingToFitError, PlanError
from ptq_eval.laws import _texts
from ptq_eval.laws.base import Coverage, Estimate, FitResult, FitStatus
from ptq_eval.laws.findings import Why, why_from
from ptq_eval.laws.fit import bootstrap
from ptq_eval.laws.plan.source import TRAINED, Source, from_fits
from ptq_eval.laws.tables.points import FULL_PRECISION, Row
from ptq_eval.laws.turning.predicted import VerdictKind

Entry = Mapping[str, Any]
Ranges = dict[str, tuple[float, float]]

ONE_RUN = "chinchilla_d"
"""The loss law of one run."""
_AXES = {"P": "bits", **{name: name for name in ("N", "D", *TRAINED, "G", "E_bits", "M_bits", "B_g")}}
_CONFIGURATION = ("options", "group_size", "symmetric", "calibration")
_LINEAR = ("beta", "gamma_D", "gamma")
"""Constants whose interval is taken on a linear scale in every law that a plan can use."""


def from_stored(
    content: Mapping[str, Any],
    *,
    name: str,
    quantizer: str | None = None,
    params: float | None = None,
    replicates: Mapping[str, np.ndarray] | None = None,
    rows: Iterable[Row] = (),
) -> Source:
    """The constants of a `fit.json`.

    params: the N asked about, which chooses among curves of several runs.  replicates: [n_boot, p] by the place of a
    fit in `fits`.  rows: those of `degradation.csv`, for the ranges that the fits themselves do not record.

    Raises PlanError where there are several quantizers and none is named, or the one named is not there, or where it
    holds several fits of one law, of which no plan can choose one; NothingToFitError where there is none.
    """
    entries = {str(i): entry for i, entry in enumerate(content.get("fits", [])) if entry.get("parameters")}
    if not entries:
        raise NothingToFitError("no fit to plan from", got=name)
    critical, rows = content.get("critical_tokens") or [], list(rows)
    chosen = _of(quantizer, entries, name)
    own = next((e["quantizer"] for e in chosen.values() if not _is_loss(e) and e.get("quantizer")), None)
    sizes = _sizes(critical, rows)
    chosen, one_size = _nearest(chosen, sizes, params)
    laws = [str(entry.get("law")) for entry in chosen.values()]
    if twice := sorted({law for law in laws if laws.count(law) > 1}):
        raise PlanError(
            f"{name} holds several fits of {twice[0]}: a plan needs one",
            got=f"{laws.count(twice[0])} fits",
            remedy="fit the rows of one group alone: ptq-eval fit --data TABLE --where CONDITION",
        )
    known = replicates or {}
    fits = [stored(entry, known.get(key)) for key, entry in chosen.items()]
    curve = next((", ".join(entry.get("runs") or []) for entry in chosen.values() if _is_loss(entry)), "")
    source = from_fits(
        fits,
        name=name,
        ranges=_ranges(chosen.values(), critical, rows, own),
        note=_note(content, own, name),
        one_size=one_size,
        curve=curve if one_size else "",
    )
    return replace(source, verdicts=verdicts(critical, own))


def verdicts(critical: Iterable[Entry], quantizer: str | None) -> tuple[tuple[float, float, str], ...]:
    """(N, bits, why there is no predicted D_crit or "") for the entries of `critical_tokens` of one quantizer.

    A prediction that the fit calls too far to believe is none of these: the plan judges the distance of its own N.
    """
    found = []
    for entry in critical:
        N, bits = entry.get("params"), entry.get("bits")
        if N and bits and quantizer in (None, entry.get("quantizer")):
            run = f" of run {entry['run']}" if entry.get("run") else ""
            why, kind = why_from(entry.get("reason")), entry.get("verdict_kind")
            far = why is not None and why.kind is Why.TOO_FAR
            given = entry.get("predicted") and (far or kind != VerdictKind.NOT_IDENTIFIED)
            told = _texts.reason(why) or str(entry.get("verdict", ""))
            reason = "" if given else f"the fit{run} says: {told}"
            found.append((float(N), float(bits), reason))
    return tuple(found)


def stored(entry: Entry, replicates: np.ndarray | None = None) -> FitResult:
    """An entry of `fits` in `fit.json` as a result, with its replicates where they are kept; null becomes NaN."""

    def number(value: Any) -> float:
        return math.nan if value is None else float(value)

    texts: dict[str, Any] = {name: str(entry.get(name) or "") for name in ("law", "equation", "source", "loss")}
    counts: dict[str, Any] = {
        name: int(entry.get(name) or 0) for name in ("n_points", "n_dropped", "n_runs", "seed", "n_boot")
    }
    names = ("objective", "huber_delta", "scatter", "r2", "r2_log", "level")
    floats: dict[str, Any] = {name: number(entry.get(name)) for name in names}
    estimates = {constant: Estimate.from_dict(values) for constant, values in entry["parameters"].items()}
    draws = np.empty((0, 0)) if replicates is None else np.asarray(replicates, float)
    if len(draws) and draws.shape[1:] != (len(estimates),):
        got = f"{draws.shape[1:]} columns for {len(estimates)} constants of {texts['law']}"
        raise NothingToFitError("these replicates belong to another fit", got=got, remedy="fit the table again")
    return FitResult(
        **texts,
        **counts,
        **floats,
        estimates=estimates,
        digest=str(entry.get("digest") or ""),
        status=FitStatus.from_dict(entry),
        covers=Coverage.from_dict(entry.get("covers") or {}),
        replicates=draws,
        stretch=_stretch(estimates, draws, counts["n_runs"], floats["level"]),
    )


def _stretch(estimates: Mapping[str, Estimate], draws: np.ndarray, runs: int, level: float) -> float:
    """By how much the stored intervals are wider than their percentiles; that of the number of runs if not seen."""
    if not len(draws):
        return 1.0
    for i, (name, known) in enumerate(estimates.items()):
        if name in _LINEAR and known.value < known.high < math.inf:
            _, plain = bootstrap.interval(known.value, draws[:, i], factor=1.0, level=level, log=False)
            if plain > known.value:
                return (known.high - known.value) / (plain - known.value)
    return bootstrap.stretch(runs, level)


def _is_loss(entry: Entry) -> bool:
    return "beta" in entry["parameters"]


def _of(quantizer: str | None, entries: Mapping[str, Entry], name: str) -> dict[str, Entry]:
    """The fits of the loss, and those of the degradation of one configuration of one quantizer."""
    damage = [entry for entry in entries.values() if not _is_loss(entry)]
    names = list(dict.fromkeys(str(entry["quantizer"]) for entry in damage if entry.get("quantizer")))
    if quantizer is None and len(names) > 1:
        remedy = f"--quantizer {names[0]}"
        raise PlanError(f"{name} holds several quantizers: which one?", allowed=", ".join(names), remedy=remedy)
    if quantizer is not None and quantizer not in names:
        raise PlanError("no fit of this quantizer", got=quantizer, allowed=", ".join(names) or "none")
    mine = [entry for entry in damage if quantizer in (None, entry.get("quantizer"))]
    configurations = {tuple(str(entry.get(key)) for key in _CONFIGURATION) for entry in mine}
    if len(configurations) > 1:
        raise PlanError(
            f"{name} holds {len(configurations)} configurations of {mine[0]['quantizer']} that are not comparable",
            remedy="plan from an output folder with one group size, symmetry and calibration",
        )
    full = ("", FULL_PRECISION, None, *([quantizer] if quantizer else []))
    same = full if len(names) > 1 else (*full, *names)
    return {
        key: entry
        for key, entry in entries.items()
        if (_is_loss(entry) and entry.get("quantizer") in same) or any(entry is one for one in mine)
    }


def _sizes(critical: Iterable[Entry], rows: Sequence[Row]) -> dict[str, float]:
    """N by the name of a run."""
    found = {str(entry.get("run")): float(entry.get("params") or math.nan) for entry in [*critical, *rows]}
    return {run: N for run, N in found.items() if math.isfinite(N)}


def _nearest(
    entries: dict[str, Entry], sizes: Mapping[str, float], params: float | None
) -> tuple[dict[str, Entry], float | None]:
    """One loss curve where there are those of several runs, and the N that it holds for; None for a law in N.

    Without `params` the curve of the largest N.
    """
    N_of = {
        key: next((sizes[run] for run in entry.get("runs") or [] if run in sizes), None)
        for key, entry in entries.items()
        if entry.get("law") == ONE_RUN
    }
    known = {key: N for key, N in N_of.items() if N is not None}
    if not known:
        return entries, None
    wanted = params or max(known.values())
    best = min(known, key=lambda key: abs(math.log(known[key] / wanted)))
    return {key: entry for key, entry in entries.items() if key == best or key not in N_of}, known[best]


def _ranges(fits: Iterable[Entry], critical: Sequence[Entry], rows: Sequence[Row], quantizer: str | None) -> Ranges:
    """The ranges that the fits record; where they record none, those of the measurements and the critical tokens."""
    found: dict[str, list[float]] = {}
    for entry in fits:
        for axis, ends in (entry.get("ranges") or {}).items():
            if axis in _AXES:
                found.setdefault(_AXES[axis], []).extend(ends)
    if not found:
        for entry in [*rows, *(entry for entry in critical if entry.get("quantizer") == quantizer)]:
            mine = entry.get("quantizer") == quantizer
            values = {"N": entry.get("params"), "D": entry.get("tokens"), "bits": entry.get("bits") if mine else None}
            for axis, value in values.items():
                if value is not None and math.isfinite(float(value)):
                    found.setdefault(axis, []).append(float(value))
    return {axis: (min(values), max(values)) for axis, values in found.items()}


def _note(content: Mapping[str, Any], quantizer: str | None, name: str) -> str:
    source = content.get("data", {}).get("source", "") or f"the measurements of {name}"
    return f"fitted to {source}" + (f", {quantizer}" if quantizer else "")
