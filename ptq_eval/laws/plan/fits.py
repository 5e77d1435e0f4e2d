"""Fits for a plan from the records of an output folder, with replicates of their own; see `stored` for a `fit.json`.

A plan needs one degradation law and one loss law.  Records hold several quantizers, so one has to be named.  The loss
before quantization follows Chinchilla's law where there are three sizes; with fewer, the curve of the one size that is
nearest to the N asked about, whose E contains A/N^alpha and says nothing about another N.

Which runs have a D_crit at which bits is decided by `analyse`, as for `fit.json`: the same records are judged alike by
whichever command reads them.  A `fit.json` beside the records is believed if the digest of its fit says that it was
made of the same measurements.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ptq_eval.errors import NothingToFitError, PlanError
from ptq_eval.laws import _texts
from ptq_eval.laws.base import SAME_SIZE, n_distinct
from ptq_eval.laws.fit.fit import fit
from ptq_eval.laws.fit.folder import analyse
from ptq_eval.laws.formulas.chinchilla import Chinchilla, ChinchillaD
from ptq_eval.laws.formulas.kumar import KumarPTQ, KumarPTQRatio
from ptq_eval.laws.plan.source import Source, from_fits
from ptq_eval.laws.plan.stored import verdicts
from ptq_eval.laws.tables.points import (
    FULL_PRECISION,
    Point,
    Row,
    Windows,
    by,
    delta_data,
    full_precision,
    loss_data,
    read,
)
from ptq_eval.laws.warnings import cautions

REPLICATES = 500
"""As many as for a fit: verdicts near a border are then the same."""


def from_records(
    rows: Iterable[Row],
    windows: Windows,
    *,
    quantizer: str | None = None,
    params: float | None = None,
    name: str = "records",
    seed: int = 0,
    n_boot: int = REPLICATES,
    told: Mapping[str, Any] | None = None,
) -> Source:
    """Fit what a plan needs to the rows of `degradation.csv` (for `rows` and `windows` see `analyse`).

    told: a `fit.json` of these records, so that they need not be judged again; one of others is left out, with a note.
    Raises PlanError where there are several quantizers and none is named, or the one named is not there;
    NothingToFitError where no row can be used.
    """
    rows = list(rows)
    points, _ = read(rows)
    full = full_precision(points)
    if not full:
        raise NothingToFitError("no measurement with known N and D to plan from", got=name)
    options: Any = {"seed": seed, "n_boot": n_boot}
    mine = _of(quantizer, [p for p in points if p.config.quantizer != FULL_PRECISION], name)
    one_size, curve, law = None, "", Chinchilla()
    if n_distinct([p.N for p in full]) < Chinchilla.needs["N"]:
        wanted = params or max(p.N for p in full)
        nearest = min(full, key=lambda p: abs(math.log(p.N / wanted)))
        full = [p for p in full if abs(p.N / nearest.N - 1) <= SAME_SIZE]
        one_size, law = float(np.median([p.N for p in full])), ChinchillaD()
        curve = ", ".join(dict.fromkeys(p.run for p in full))
    fits = [fit(law, loss_data(full, windows), **options)]
    if mine:
        form = KumarPTQ if n_distinct([p.N for p in mine]) > 1 else KumarPTQRatio
        several = len({p.P for p in mine}) > 1
        fits.append(fit(form() if several else form(gamma_post=1.0), delta_data(mine, windows), **options))
    columns = {"N": [p.N for p in [*full, *mine]], "D": [p.D for p in [*full, *mine]], "bits": [p.P for p in mine]}
    ranges = {axis: (min(values), max(values)) for axis, values in columns.items() if values}
    note = f"{len(full)} checkpoints before quantization"
    note += f", {len(mine)} measurements after {mine[0].config.quantizer}" if mine else ", none after quantization"
    source = from_fits(fits, name=name, ranges=ranges, note=note, one_size=one_size, curve=curve)
    doubts = (*source.doubts, *map(_texts.caution, cautions([*full, *mine], {}, [])))
    if not mine:
        return replace(source, doubts=doubts)
    if told and not _same(told, fits[-1].digest):
        doubts = (f"{name}/fit.json is out of date, so D_crit was judged anew: ptq-eval fit {name}", *doubts)
        told = None
    critical = (told or analyse(rows, windows, **options))["critical_tokens"]
    return replace(
        source,
        bits=tuple(sorted(set(columns["bits"]))) or source.bits,
        doubts=doubts,
        verdicts=verdicts(critical, mine[0].config.quantizer),
    )


def _same(told: Mapping[str, Any], digest: str) -> bool:
    """Whether a `fit.json` holds a fit to the data of this digest, and what it says of D_crit."""
    return "critical_tokens" in told and any(entry.get("digest") == digest for entry in told.get("fits", []))


def _of(quantizer: str | None, points: Sequence[Point], name: str) -> list[Point]:
    """The points of one configuration."""
    groups = by(points, "config")
    names = list(dict.fromkeys(config.quantizer for config in groups))
    if quantizer is None and len(names) > 1:
        remedy = f"--quantizer {names[0]}"
        raise PlanError(f"{name} holds several quantizers: which one?", allowed=", ".join(names), remedy=remedy)
    chosen = [group for config, group in groups.items() if quantizer in (None, config.quantizer)]
    if quantizer is not None and not chosen:
        raise PlanError("no measurement of this quantizer", got=quantizer, allowed=", ".join(names) or "none")
    if len(chosen) > 1:
        raise PlanError(
            f"{name} holds {len(chosen)} configurations of {chosen[0][0].config.quantizer} that are not comparable",
            remedy="plan from an output folder with one group size, symmetry and calibration",
        )
    return chosen[0] if chosen else []
