"""Everything the laws find in one output folder: fits, critical tokens, and warnings, as values without prose.

Degradation is fitted per configuration, over all runs: equation 2 where there are at least two sizes, its
form in D/N where there is one.  The full-precision curve is fitted per trajectory (E + B/D^beta) where each
has at least `MIN_OWN_CURVE` checkpoints, because D_crit needs the slope of that very curve; with fewer, and
at least three sizes, one Chinchilla law serves all.  All fits share one seed, hence their resamples.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from ptq_eval.laws.base import FitResult, Law, n_distinct
from ptq_eval.laws.findings import Caution, Finding, Why, caution, why
from ptq_eval.laws.fit.choice import Choice
from ptq_eval.laws.fit.fit import fit
from ptq_eval.laws.fit.requirements import standard_errors
from ptq_eval.laws.forecast.folder import Line, forecasts
from ptq_eval.laws.formulas.chinchilla import Chinchilla, ChinchillaD
from ptq_eval.laws.formulas.kumar import KumarPTQ, KumarPTQRatio
from ptq_eval.laws.turning.observed import TurningPoint, controlled, turning_point
from ptq_eval.laws.turning.predicted import CriticalTokens, poor_fit, predict
from ptq_eval.laws.turning.verdict import Forecast, refutation, verdict
from ptq_eval.laws.warnings import cautions, poor_fits
from ptq_eval.records import BitsAxis
from ptq_eval.results.points import (
    FULL_PRECISION,
    Config,
    Curve,
    Point,
    Row,
    Windows,
    by,
    curve,
    delta_data,
    digest,
    full_precision,
    loss_data,
    read,
)
from ptq_eval.sampling import errors_needed

VERSION = 3
"""Of the meaning of the returned object; since 3, "interior" is a test with control over all lines, "answer" says which
interval counts, and "predicted" is null where it is refuted."""

MIN_OWN_CURVE = 6


@dataclass(frozen=True)
class FolderFit:
    """`content` is JSON-ready; `replicates` holds [n_boot, p] for each entry of its "fits", in their order; `turns`
    are the observed turns of all lines, with control over all of them; `curves` the fits of the full-precision loss by
    trajectory."""

    content: dict[str, Any]
    replicates: list[np.ndarray] = field(repr=False)
    turns: Mapping[Line, TurningPoint] = field(default_factory=dict, repr=False)
    curves: Mapping[str, FitResult] = field(default_factory=dict, repr=False)


@dataclass(frozen=True)
class Early:
    """Deltas of a fit that ended before the last evaluation window: `count` of `deltas`, after a median of `median`
    (`low` to `high`) of `windows` windows."""

    count: int
    deltas: int
    median: float
    low: int
    high: int
    windows: int


def analyse(table: Iterable[Row], windows: Windows, *, seed: int = 0, n_boot: int = 200) -> dict[str, Any]:
    """Fit everything in a table of measurements: the content of `fit_points` for rows.

    table: rows with the columns of `degradation.csv` plus "learning_rate", "schedule_phase" and "key".
    """
    return fit_points(read(table)[0], windows, seed=seed, n_boot=n_boot).content


def fit_points(
    points: list[Point],
    windows: Windows,
    *,
    seed: int = 0,
    n_boot: int = 200,
    laws: Choice | None = None,
    axis: BitsAxis = "bits",
) -> FolderFit:
    """Fit every law of the main job, or those in `laws`, to the points of a folder.

    windows: by key, the loss per evaluation window after and before quantization (nats per token); may be
    empty.  axis: what P is in these points.  The content holds "fits", "critical_tokens", "cautions", "version",
    "bits_axis" and "records", the digest of the points; `report.with_texts` adds the sentences.  Bad data end as
    statuses, verdicts and cautions, never as an exception.
    """
    head = {"version": VERSION, "records": digest(points), "bits_axis": axis}
    if not points:
        nothing = [caution(Caution.NOTHING_TO_FIT).to_dict()]
        return FolderFit({"fits": [], "critical_tokens": [], "cautions": nothing, **head}, [])
    full = full_precision(points)
    rises = _rises(full, windows, seed, n_boot)
    laws = laws or Choice()
    curves, fitted = _curves(full, windows, seed, n_boot, laws.loss)
    critical: list[dict[str, Any]] = []
    turning: list[CriticalTokens] = []
    poor: list[Finding] = []
    ahead = forecasts(points, windows, seed=seed)
    windows_of = {(p.run, p.step, p.D): p.n_windows for p in full}
    quantized = [p for p in points if p.config.quantizer != FULL_PRECISION]
    lines = _lines(quantized)
    turns = _turns(lines, windows, seed, n_boot)
    for config, group in by(quantized, "curve").items():
        law = laws.delta or _degradation_law(group)
        result = fit(law, delta_data(group, windows), seed=seed, n_boot=n_boot)
        fitted.append((config, group, result))
        poor += poor_fits(config, result)
        members = {p.config for p in group}
        for name, own in by(group, "trajectory").items():
            for place in [place for place in lines if place[0] in members and place[1] == name]:
                known, rise = curves.get(name), rises.get(name)
                alone = [one is known for one in curves.values()].count(True) == 1
                tokens = [p.D for p in (own if alone else group)]
                measured = curve(lines[place], windows, quantized=True)
                one = _critical(
                    lines[place], measured, turns[place], law, result, known, rise, tokens, ahead.get(place)
                )
                turning.append(one)
                on_axis = {} if axis == "bits" else {"axis_bits": lines[place][0].P}
                critical.append({**place[0].to_dict(), **one.to_dict(), **on_axis})
    found = [*cautions(points, rises, turning), *poor]
    content = {
        "fits": [_entry(*one, windows_of) for one in fitted],
        "critical_tokens": critical,
        "cautions": [one.to_dict() for one in found],
    }
    return FolderFit({**content, **head}, [result.replicates for *_, result in fitted], turns, curves)


def _rises(full: list[Point], windows: Windows, seed: int, n_boot: int) -> dict[str, TurningPoint]:
    """By trajectory, the observed turn of the full-precision loss, with control over all of them."""
    found = {
        name: turning_point(*curve(group, windows, quantized=False), seed=seed, n_boot=n_boot)
        for name, group in by(full, "trajectory").items()
    }
    return controlled(found, {name: (name, math.inf) for name in found})


def _lines(quantized: list[Point]) -> dict[Line, list[Point]]:
    """The points of each configuration, trajectory and bit-width, in the order of D."""
    return {
        (config, name, bits): line
        for config, group in by(quantized, "config").items()
        for name, own in by(group, "trajectory").items()
        for bits, line in by(sorted(own, key=lambda p: (p.bits, p.D)), "bits").items()
    }


def _turns(lines: Mapping[Line, list[Point]], windows: Windows, seed: int, n_boot: int) -> dict[Line, TurningPoint]:
    """The observed turn of every line, with control over all of them."""
    found = {
        place: turning_point(*curve(line, windows, quantized=True), seed=seed, n_boot=n_boot)
        for place, line in lines.items()
    }
    return controlled(found, {place: (place[:2], place[2]) for place in lines})


def _degradation_law(points: list[Point]) -> Law:
    """Equation 2 or its form for one size; with one bit-width, gamma_post is fixed."""
    form = KumarPTQ if n_distinct([p.N for p in points]) > 1 else KumarPTQRatio
    bits = {p.P for p in points if math.isfinite(p.P)}
    return form(gamma_post=1.0) if len(bits) == 1 else form()


def _curves(
    full: list[Point], windows: Windows, seed: int, n_boot: int, chosen: Law | None
) -> tuple[dict[str, FitResult], list[tuple[Config, list[Point], FitResult]]]:
    """The full-precision curve of every trajectory, and the fits of the full-precision loss with their points.

    Where sizes suffice, Chinchilla's law over all runs is among the fits also if each run has its own curve: it
    predicts the loss at another N.  A `chosen` law of N serves all runs, one of D alone is fitted to each.
    """
    groups = by(full, "trajectory")
    config = Config(FULL_PRECISION)
    own = all(len({p.D for p in group}) >= MIN_OWN_CURVE for group in groups.values())
    over_all: list[tuple[Config, list[Point], FitResult]] = []
    of_all = chosen if chosen and "N" in chosen.columns else None
    if of_all or (not chosen and n_distinct([p.N for p in full]) >= Chinchilla.needs["N"]):
        result = fit(of_all or Chinchilla(), loss_data(full, windows), seed=seed, n_boot=n_boot)
        over_all = [(config, full, result)]
        if of_all or not own:
            return dict.fromkeys(groups, result), over_all
    law = chosen or ChinchillaD()
    curves = {name: fit(law, loss_data(group, windows), seed=seed, n_boot=n_boot) for name, group in groups.items()}
    return curves, [*((config, groups[name], result) for name, result in curves.items()), *over_all]


def _entry(
    config: Config, points: list[Point], result: FitResult, windows_of: Mapping[tuple[str, str, float], float]
) -> dict[str, Any]:
    full = config.quantizer == FULL_PRECISION
    axes = ("N", "D") if full else ("N", "D", "P")
    known = {axis: [v for p in points if math.isfinite(v := getattr(p, axis))] for axis in axes}
    ranges = {axis: [min(values), max(values)] for axis, values in known.items() if values}
    early = None if full else _early(points, windows_of)
    more = {"ranges": ranges, "early": vars(early) if early else None}
    return {**config.to_dict(), "runs": sorted(by(points, "run")), **result.to_dict(), **more}


def _early(points: list[Point], windows_of: Mapping[tuple[str, str, float], float]) -> Early | None:
    """The deltas among `points` with fewer windows than their full-precision loss; None if there are none.

    windows_of: the windows of the full-precision loss, by checkpoint.
    """
    known = [p for p in points if math.isfinite(p.delta)]
    pairs = [(p.n_windows, windows_of.get((p.run, p.step, p.D), math.nan)) for p in known]
    used = sorted(int(n) for n, whole in pairs if n < whole)
    if not used:
        return None
    most = int(max(whole for _, whole in pairs if math.isfinite(whole)))
    return Early(len(used), len(known), statistics.median(used), used[0], used[-1], most)


def _critical(
    points: list[Point],
    measured: Curve,
    observed: TurningPoint,
    law: Law,
    delta: FitResult,
    loss: FitResult | None,
    full: TurningPoint | None,
    tokens: list[float],
    forecast: Forecast | None,
) -> CriticalTokens:
    """D_crit of one trajectory at one bit-width; `full` is the turn of its full-precision loss, `tokens`
    are the D behind the prediction."""
    N, P, largest = points[0].N, points[0].P, max(p.D for p in points)
    predicted, reason = None, why(Why.NO_LOSS_CURVE)
    if loss is not None:
        doubt = partial(_doubt, points, law, delta)
        predicted, reason = predict(law, delta, loss, {"N": N, "P": P}, tokens=tokens, doubt=doubt)
    rise, rises = _full_precision_rise(points, observed), bool(full and full.interior)
    withheld = refutation(predicted, measured, observed, forecast)
    judged = {"full_rises": rises, "full_rise": rise, "poor": poor_fit(delta), "withheld": withheld}
    return CriticalTokens(
        run=points[0].trajectory,
        params=N,
        quantizer=points[0].config.quantizer,
        bits=points[0].bits,
        largest_tokens=largest,
        predicted=None if withheld else predicted,
        observed=observed,
        forecast=forecast,
        verdict=verdict(predicted, reason, largest, observed, forecast, level=delta.level, **judged),
        full_precision_rise=rise,
    )


def _doubt(points: list[Point], law: Law, result: FitResult) -> Finding | None:
    """Whether these deltas of one run and bit-width fail to follow the law that is fitted to all.

    The ratio delta/f is constant under the law; its mean, weighted by the noise that the fit estimates, must be
    significantly above zero by its error, taken from its scatter between checkpoints: deltas that jump about zero may
    each differ from it by many evaluation errors.  If it is not, either no delta is significantly above zero, or
    some are and the law misses them: two findings that must not be confused.
    """
    known = [p for p in points if math.isfinite(p.delta)]
    delta, se, df = (np.array([getattr(p, name) for p in known]) for name in ("delta", "se", "df"))
    above, bits = int(np.sum(delta > errors_needed(df) * se)), points[0].bits
    none = why(Why.DELTA_NOT_SIGNIFICANT, bits=bits)
    if len(known) < 2:
        return None if above == len(known) else none
    f = law.predict(result.values, {name: np.array([getattr(p, name) for p in known]) for name in law.columns})
    noise = np.hypot(standard_errors(se), result.scatter * f)
    share = f / f.max()  # so that neither ratio nor weight is lost where f is very small
    weights = np.square(share * noise.max() / noise)
    mean = float(np.average(delta / share, weights=weights))
    variance = float(np.average(np.square(delta / share - mean), weights=weights)) / (len(known) - 1)
    if mean > errors_needed(len(known) - 1) * math.sqrt(variance):
        return None
    return why(Why.LAW_MISSES_DELTAS, bits=bits, clear=above, deltas=len(known)) if above else none


def _full_precision_rise(points: list[Point], observed: TurningPoint) -> float:
    """How much the full-precision loss changes from the observed minimum to the last checkpoint; NaN if unknown."""
    losses = {p.D: p.loss_fp for p in points if math.isfinite(p.loss_q)}
    return losses[max(losses)] - losses[observed.tokens] if observed.tokens in losses else math.nan
