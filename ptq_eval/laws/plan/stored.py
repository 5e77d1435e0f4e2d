"""Load the constants for a plan from an output folder: `fit.json` with the replicates of `replicates.npz`.

Nothing is fitted here.  A `fit.json` holds a degradation law for each configuration and the loss before quantization:
for each run its own curve, and with at least three sizes Chinchilla's law over all of them.  A plan needs one law of
each kind, so the quantizer has to be named if there are several.  The law over all sizes is preferred; without it the
curve of the run nearest to the N of the question is used, whose E contains A/N^alpha and which predicts no loss at
another N.  Verdicts on D_crit are kept: a plan claims no more about a run than its fit does.
"""

from __future__ import annotations

import json
import math
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ptq_eval.config.plan import FULL_BITS
from ptq_eval.errors import NothingToFitError, OutputMismatchError, PlanError
from ptq_eval.laws.base import Coverage, Estimate, FitResult, FitStatus
from ptq_eval.laws.findings import Finding, Why, why, why_from
from ptq_eval.laws.formulas.chinchilla import Chinchilla, ChinchillaD
from ptq_eval.laws.plan.question import Reason
from ptq_eval.laws.plan.source import RUNTIME, TRAINED, Source, from_fits
from ptq_eval.laws.quality import Scatter
from ptq_eval.laws.turning.verdict import VerdictKind
from ptq_eval.results.load import load
from ptq_eval.results.points import FULL_PRECISION

Entry = Mapping[str, Any]
Ranges = dict[str, tuple[float, float]]

FIRST_VERSION = 2
"""The first version of `fit.json` that records reasons as values."""
_AXES = {"P": "bits"}
_AXES |= {name: name for name in ("N", "D", *TRAINED, *RUNTIME.values(), "G", "E_bits", "M_bits", "B_g")}
_CONFIGURATION = ("options", "group_size", "symmetric", "calibration")
_TOGETHER = {"P_w": "P", **RUNTIME}
_RUNTIME = tuple(RUNTIME.values())
Runtime = tuple[float | None, float | None]
"""Bits of activations and cache when served; None in full precision."""
_AXIS_NOTES = {
    "bits": "",
    "effective": "; bits are all those stored per weight, scales included",
    "gaussian": "; bits are counted for an ideal code with the same squared error on Gaussian numbers",
}
INTEGERS = "int"
"""The number format of plain integers, which entries do not name."""


def from_folder(
    out: str | Path,
    *,
    quantizer: str | None = None,
    number_format: str | None = None,
    params: float | None = None,
    together: Runtime | None = None,
) -> Source:
    """The constants of the fit in an output folder; `together`: of weights, with activations and cache of these bits.

    number_format: the family of formats, where several have laws of their own.  params: the N asked about, which
    chooses among the curves of several runs.

    Raises NothingToFitError if the folder has no fit, one of version 1, or no replicates, OutputMismatchError if the
    fit was made of other records than the folder holds now, and what `from_stored` raises.
    """
    out = Path(out)
    content = _read_fit(out)
    measured = (out / "records").is_dir()
    again = f"ptq-eval fit {out}" if measured else "repeat the run that made this folder, with this version"
    if "data" in content:
        again = f"repeat ptq-eval fit --data for {content['data'].get('source', 'the table')}"
    elif measured and content.get("records") != load(out, content.get("bits_axis")).digest:
        what = f"{out}/fit.json was made of other records than the folder holds now"
        raise OutputMismatchError(what, got=f"digest {content.get('records', 'not recorded')}", remedy=again)
    if content.get("version", 1) < FIRST_VERSION:
        what = f"{out}/fit.json was written by an older ptq-eval, without the reasons and replicates that a plan needs"
        raise NothingToFitError(what, got=f"version {content.get('version', 1)}", remedy=again)
    kept = _read_replicates(out / "replicates.npz", again)
    chosen = {"quantizer": quantizer, "number_format": number_format, "params": params}
    return from_stored(content, name=str(out), replicates=kept, together=together, **chosen)  # type: ignore[arg-type]


def _read_fit(out: Path) -> dict[str, Any]:
    path = out / "fit.json"
    if not path.is_file():
        measured = (out / "records").is_dir()
        remedy = f"ptq-eval fit {out}" if measured else f"measure first: ptq-eval run FOLDER -o {out}"
        raise NothingToFitError("no fit to plan from", got=path, allowed="a folder with fit.json", remedy=remedy)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        remedy = "fit again: ptq-eval fit OUT, or for a table ptq-eval fit --data FILE"
        raise NothingToFitError("this fit cannot be read", got=f"{path}: {error}", remedy=remedy) from error
    if not isinstance(content, dict) or not isinstance(content.get("fits"), list):
        remedy = "fit again: ptq-eval fit OUT, or for a table ptq-eval fit --data FILE"
        raise NothingToFitError("this is not the content of a fit.json", got=path, remedy=remedy)
    return content


def _read_replicates(path: Path, remedy: str) -> dict[str, np.ndarray]:
    """The bootstrap's constants of each fit, by its place in `fit.json`."""
    if not path.is_file():
        what = "this fit has no bootstrap replicates, which the intervals of a plan are computed from"
        raise NothingToFitError(what, got=f"no {path}", remedy=remedy)
    try:
        with np.load(path, allow_pickle=False) as kept:
            return {key: kept[key] for key in kept.files}
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise NothingToFitError("these replicates cannot be read", got=f"{path}: {error}", remedy=remedy) from error


def from_stored(
    content: Mapping[str, Any],
    *,
    name: str,
    quantizer: str | None = None,
    number_format: str | None = None,
    params: float | None = None,
    replicates: Mapping[str, np.ndarray] | None = None,
    together: Runtime | None = None,
) -> Source:
    """The constants of a `fit.json`; `together`: of weights, with activations and cache of these bits.

    params: the N asked about, which chooses among the curves of several runs.  replicates: [n_boot, p] by the place of
    a fit in "fits"; without them no answer has an interval.

    Raises PlanError if there are several quantizers and none is chosen, if the one chosen is not there, or if there are
    several fits of one law, among which no plan can choose; NothingToFitError if there is no fit.
    """
    entries = {str(i): entry for i, entry in enumerate(content["fits"]) if entry.get("parameters")}
    if not entries:
        raise NothingToFitError("no fit to plan from", got=name)
    if together is not None:
        entries, content = _together(content, entries, params, name, together)
    chosen = _of(quantizer, number_format, entries, name)
    own = next((e["quantizer"] for e in chosen.values() if not _is_loss(e) and e.get("quantizer")), None)
    chosen = _one_loss(chosen, params)
    laws = [str(entry.get("law")) for entry in chosen.values()]
    if twice := sorted({law for law in laws if laws.count(law) > 1}):
        raise PlanError(
            f"{name} holds several fits of {twice[0]}: a plan needs one",
            got=f"{laws.count(twice[0])} fits",
            remedy="fit the rows of one group alone: ptq-eval fit --data TABLE --where CONDITION",
        )
    curve = next((entry for entry in chosen.values() if _size(entry) is not None), {})
    source = from_fits(
        [stored(entry, (replicates or {}).get(key)) for key, entry in chosen.items()],
        name=name,
        ranges=_ranges(chosen.values()),
        note=_note(content, own, name),
        one_size=_size(curve),
        curve=", ".join(curve.get("runs", ())),
    )
    axis = content.get("bits_axis", "bits")
    family = next((_family(e) for e in chosen.values() if not _is_loss(e)), "")
    critical = [
        {**entry, "bits": entry.get("axis_bits", entry.get("bits"))}
        for entry in content.get("critical_tokens") or []
        if own in (None, entry.get("quantizer")) and family in ("", _family(entry))
    ]
    others = {e["quantizer"] for e in entries.values() if not _is_loss(e) and e.get("quantizer")}
    measured = sorted({float(entry["bits"]) for entry in critical if entry.get("bits")})
    return replace(
        source,
        axis=axis,
        verdicts=verdicts(critical),
        others=tuple(sorted(others - {own})),
        bits=source.bits if "data" in content else tuple(measured) or source.bits,
        warnings=tuple(content.get("warnings", ())),
    )


def _together(
    content: Mapping[str, Any], entries: Mapping[str, Entry], params: float | None, name: str, served: Runtime
) -> tuple[dict[str, Entry], Mapping[str, Any]]:
    """The fits of the loss and, of the run nearest to `params`, the form of three precisions that is ranked first; and
    the content with D_crit at the bits of activations and cache that were measured nearest to these."""
    place, found, critical = len(content["fits"]), list[tuple[float, str, Entry]](), list[dict[str, Any]]()
    for entry in content.get("precisions", ()):
        form, ranges = entry["forms"][0], {_TOGETHER.get(axis, axis): ends for axis, ends in entry["ranges"].items()}
        head = {key: entry[key] for key in ("quantizer", "format", *_CONFIGURATION) if key in entry}
        found.append((entry["ranges"]["N"][0], str(place), {**head, **form, "runs": entry["runs"], "ranges": ranges}))
        place += len(entry["forms"])
        turns = [turn for turn in entry["critical_tokens"] if turn["bits"]]
        apart = lambda turn: sum(abs((turn[axis] or FULL_BITS) - (P or FULL_BITS)) for axis, P in zip(_RUNTIME, served))
        near = min(map(apart, turns), default=0.0)
        about = {**head, "params": entry["ranges"]["N"][0], "run": entry["trajectory"]}
        for turn in (turn for turn in turns if apart(turn) <= near):
            kind = VerdictKind.PREDICTED if turn["predicted"] else VerdictKind.NOT_IDENTIFIED
            critical.append({**about, **turn, "verdict_kind": kind.value})
    if not found:
        remedy = "ptq-eval run … --activation-bits 8,4 --kv-bits 8,4, then plan again"
        raise PlanError(f"{name} holds no fit of activations and cache together with the weights", remedy=remedy)
    wanted = params or max(N for N, *_ in found)
    nearest = min((N for N, *_ in found), key=lambda N: abs(math.log(N / wanted)))
    own = {key: entry for N, key, entry in found if nearest == N}
    if len({str(entry["quantizer"]) for entry in own.values()}) < len(own):
        what = f"{name} holds several ways to round activations and cache, or several configurations of the weights"
        raise PlanError(f"{what}: a plan needs one", got=f"{len(own)} fits", remedy="plan from a folder with one")
    losses = {key: entry for key, entry in entries.items() if _is_loss(entry)}
    return {**losses, **own}, {**content, "critical_tokens": critical}


def verdicts(critical: Iterable[Entry]) -> tuple[tuple[float, float, Finding | None], ...]:
    """(N, bits, why there is no predicted D_crit or None) for entries of `critical_tokens`.

    A prediction that the fit calls too far to believe is kept: the plan judges the distance of its own N.  So is one
    beside a forecast that says nothing; one that the measurements refute is not.
    """
    found = []
    for entry in critical:
        if (N := entry.get("params")) and (bits := entry.get("bits")):
            reason = why_from(entry.get("reason"))
            kept = reason is not None and reason.kind in (Why.TOO_FAR, Why.FORECAST_OPEN, Why.DELTA_HIDDEN)
            known = entry.get("predicted") and (kept or entry.get("verdict_kind") != VerdictKind.NOT_IDENTIFIED)
            if withheld := entry.get("withheld"):
                reason = why(Why.REFUTED, conflict=withheld)
            facts = {"found": reason, "run": str(entry.get("run") or "")}
            found.append((float(N), float(bits), None if known else Finding(Reason.FIT_GIVES_NONE, facts)))
    return tuple(found)


def stored(entry: Entry, replicates: np.ndarray | None = None) -> FitResult:
    """An entry of `fits` in `fit.json` as a result, with its replicates; null becomes NaN."""

    def number(value: Any) -> float:
        return math.nan if value is None else float(value)

    texts: dict[str, Any] = {
        name: str(entry.get(name) or "") for name in ("law", "equation", "source", "loss", "response")
    }
    counts: dict[str, Any] = {
        name: int(entry.get(name) or 0) for name in ("n_points", "n_dropped", "n_runs", "seed", "n_boot")
    }
    names = ("objective", "huber_delta", "scatter", "r2", "r2_log", "level", "stretch")
    floats: dict[str, Any] = {name: number(entry.get(name)) for name in names}
    estimates = {constant: Estimate.from_dict(values) for constant, values in entry["parameters"].items()}
    draws = np.empty((0, 0)) if replicates is None else np.asarray(replicates, float)
    if len(draws) and draws.shape[1:] != (len(estimates),):
        got = f"{draws.shape[1:]} columns for {len(estimates)} constants of {texts['law']}"
        raise NothingToFitError("these replicates belong to another fit", got=got, remedy="fit again")
    return FitResult(
        **texts,
        **counts,
        **floats,
        estimates=estimates,
        digest=str(entry.get("digest") or ""),
        status=FitStatus.from_dict(entry),
        scatter_kind=Scatter(entry.get("scatter_kind") or Scatter.WEIGHTS),
        covers=Coverage.from_dict(entry.get("covers") or {}),
        replicates=draws,
    )


def _is_loss(entry: Entry) -> bool:
    return "beta" in entry["parameters"]


def _of(quantizer: str | None, number_format: str | None, entries: Mapping[str, Entry], name: str) -> dict[str, Entry]:
    """The fits of the loss, and of the degradation under one configuration of one quantizer."""
    damage = [entry for entry in entries.values() if not _is_loss(entry)]
    names = list(dict.fromkeys(str(entry["quantizer"]) for entry in damage if entry.get("quantizer")))
    if quantizer is None and len(names) > 1:
        remedy = f"--quantizer {names[0]}"
        raise PlanError(f"{name} holds several quantizers: which one?", allowed=", ".join(names), remedy=remedy)
    if quantizer is not None and quantizer not in names:
        raise PlanError("no fit of this quantizer", got=quantizer, allowed=", ".join(names) or "none")
    mine = _of_format(number_format, [e for e in damage if quantizer in (None, e.get("quantizer"))], name)
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


def _of_format(number_format: str | None, damage: list[Entry], name: str) -> list[Entry]:
    """The fits of one number format; of all where they share a law."""
    families = list(dict.fromkeys(map(_family, damage)))
    allowed = ", ".join(families)
    if number_format is None and len(families) > 1:
        raise PlanError(
            f"{name} holds several number formats, each with a law of its own: which one?",
            allowed=allowed,
            remedy=f"--number-format {families[0]}, or one law for all: ptq-eval fit {name} --bits-axis effective",
        )
    if number_format is not None and number_format not in families:
        shared = families == [""]
        raise PlanError(
            "all number formats share a law in this fit" if shared else "no fit of this number format",
            got=number_format,
            allowed=allowed if not shared else "",
            remedy="--serve-bits with the bits of the format on that axis: see `ptq-eval formats`" if shared else "",
        )
    return [entry for entry in damage if number_format in (None, _family(entry))]


def _family(entry: Entry) -> str:
    """The number formats of an entry: plain integers where it names none, "" where all of them share a law."""
    return str(entry.get("format", INTEGERS))


def _size(entry: Entry) -> float | None:
    """The N that the loss curve of one run holds for; None for any other law."""
    ends = (entry.get("ranges") or {}).get("N")
    return sum(ends) / 2 if ends and entry.get("law") == ChinchillaD.name else None


def _one_loss(entries: dict[str, Entry], params: float | None) -> dict[str, Entry]:
    """The law of the loss over all sizes, or else the curve of the run nearest to `params` (by default the largest)."""
    sizes = {key: N for key, entry in entries.items() if (N := _size(entry)) is not None}
    if not sizes:
        return entries
    over_all = any(e.get("law") == Chinchilla.name and stored(e).identified for e in entries.values())
    wanted = params or max(sizes.values())
    best = None if over_all else min(sizes, key=lambda key: abs(math.log(sizes[key] / wanted)))
    unusable = {k for k, e in entries.items() if e.get("law") == Chinchilla.name and e.get("runs") and not over_all}
    return {key: e for key, e in entries.items() if key == best or key not in {*sizes, *unusable}}


def _ranges(fits: Iterable[Entry]) -> Ranges:
    """The ranges of the data behind the fits."""
    found: dict[str, list[float]] = {}
    for entry in fits:
        for axis, ends in (entry.get("ranges") or {}).items():
            if axis in _AXES:
                found.setdefault(_AXES[axis], []).extend(ends)
    return {axis: (min(values), max(values)) for axis, values in found.items()}


def _note(content: Mapping[str, Any], quantizer: str | None, name: str) -> str:
    source = content.get("data", {}).get("source", "") or f"the measurements of {name}"
    axis = _AXIS_NOTES[content.get("bits_axis", "bits")]
    return f"fitted to {source}" + (f", {quantizer}" if quantizer else "") + axis
