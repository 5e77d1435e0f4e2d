"""From records to one tidy table: a row per checkpoint, quantizer and bits, in the order of the trajectory.

Delta is the mean paired difference of the windows' losses.  Its standard error is computed for a ratio of means over
windows, under the design by which they were drawn (`sampling`): each pair shares its text, which makes the error many
times smaller than the error of either loss.  `covers` says what the errors are about, `delta_df` are their degrees of
freedom, and `effective_windows` is how many independent windows would determine delta as well.  `over_rounding` is
delta minus the delta of rounding (RTN) on the same grid, with the error of this difference, window by window.

`noise_floor` is how large delta may be by chance, two standard deviations of: other roundings as good as the one made
(`rounding_sd`: a first order, and a second whose standard deviation is a share of the KL divergence), other arithmetic
(`numerics_sd`; all from `measure.floor`), other draws of the calibration windows
(`draws`) and other seeds of the run (`seeds`), where there are several.  Without the first it is unknown.

A measurement that stopped early has a random sample of the windows, and its delta is the sample's.  The
full-precision loss is known on all windows, so the quantized loss of such a row is the sum of the two (the difference
estimator of survey sampling: Särndal, Swensson and Wretman 1992, section 6.3), with an error that counts both.  The
laws always get an array over all windows: windows that were not measured hold the mean, and measured ones are spread
so that the mean, its standard error over windows, and covariances with other rows are those of the sample.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from ptq_eval.records import FULL_PRECISION, CalibrationDraw, Checkpoint, Measurement, Trial
from ptq_eval.results import calibrations
from ptq_eval.results.columns import COLUMNS
from ptq_eval.results.draws import add_calibration, calibration_se, combined
from ptq_eval.results.draws import cells as cells_of
from ptq_eval.results.points import Losses
from ptq_eval.results.seeds import add_seeds
from ptq_eval.results.selection import pairing, place, select
from ptq_eval.results.tokens import of_tokens
from ptq_eval.runtime import columns_of
from ptq_eval.sampling import (
    SIGNIFICANT,
    Design,
    design_of,
    effective,
    independent,
    mean_and_error,
    standard_error,
)

Windows = dict[str, Losses]
"""Per row key: the windows' mean losses after and before quantization, nats per token; all windows, see above."""

ROUNDING = "rtn"


def tabulate(measurements: Iterable[Measurement], checkpoints: Sequence[Checkpoint]) -> tuple[pd.DataFrame, Windows]:
    """`table_of` the records of listed checkpoints that no newer version of their quantizer supersedes."""
    return table_of(select(measurements, checkpoints)[0], checkpoints)


def table_of(
    mine: Sequence[Measurement],
    checkpoints: Sequence[Checkpoint],
    first: Mapping[str, CalibrationDraw] | None = None,
) -> tuple[pd.DataFrame, Windows]:
    """The table of selected records, and the per-window losses behind its rows.

    `first` is the calibration of each run that laws are fitted under, see `calibrations`.  An excluded checkpoint gets
    one row of status "excluded" with its reason.
    """
    order = {place(c): i for i, c in enumerate(checkpoints)}
    full = {pairing(m.trial): m for m in mine if m.trial.quantizer == FULL_PRECISION and m.nll}
    designs = _designs(mine)
    rows, windows = [], {}
    cells = cells_of(mine)
    for cell in cells:
        trial = cell[0].trial
        at, reference = order[place(trial.checkpoint)], full.get(pairing(trial))
        whole = designs.get(trial.corpus)
        own = [_row(checkpoints[at], measurement, reference, whole) for measurement in cell]
        row = own[0]
        if row["status"] in ("ok", "partial") and reference is not None:
            after, before = np.array([_after(m, reference, whole) for m in cell]), _per_token(reference)
            if len(cell) > 1:
                row = combined(own, after, before, whole or independent(len(before)))
            windows[row["key"]] = Losses(after.mean(axis=0), before, whole)
        row |= calibrations.described(cell, first or {})
        rows.append((at, _rank(cell[0]), row))
    add_calibration([row for *_, row in rows])
    add_seeds((checkpoints[at], row) for at, _, row in rows)
    for *_, row in rows:
        if row["key"] in windows:
            windows[row["key"]] = windows[row["key"]]._replace(calibration_se=calibration_se(row))
    calibrations.compare((row for *_, row in rows), windows)
    _compare_with_rounding([row for *_, row in rows], cells, designs)
    for checkpoint in checkpoints:
        if checkpoint.fatal:
            rows.append((order[place(checkpoint)], ("", 0.0, ""), _excluded(checkpoint)))
    rows.sort(key=lambda item: item[:2])
    return pd.DataFrame([row for *_, row in rows], columns=COLUMNS), windows


def _designs(mine: Sequence[Measurement]) -> dict[str, Design]:
    """By corpus: how its windows were drawn, from the record that says most of it."""
    found: dict[str, Design] = {}
    samples = {m.trial.corpus: m.trial.sample for m in mine if m.trial.sample is not None}
    for m in mine:
        if m.nll and not m.windows and m.trial.corpus not in found:
            found[m.trial.corpus] = design_of(samples.get(m.trial.corpus), len(m.nll))
    return found


def _compare_with_rounding(
    rows: Sequence[dict[str, Any]], cells: Sequence[Sequence[Measurement]], designs: Mapping[str, Design]
) -> None:
    """Add to each row of another method how much worse than rounding it is, and the paired error of that."""
    rounding = {_grid(m.trial): m for m, *_ in cells if m.trial.quantizer == ROUNDING and m.nll}
    for row, cell in zip(rows, cells):
        m = cell[0]
        other = rounding.get(_grid(m.trial)) if m.trial.quantizer not in (ROUNDING, FULL_PRECISION) and m.nll else None
        whole = designs.get(m.trial.corpus)
        if other is not None and whole is not None:
            difference = np.mean([_by_window(draw, whole) for draw in cell], axis=0) - _by_window(other, whole)
            common = np.flatnonzero(np.isfinite(difference))
            if len(common):
                some = whole if len(common) == len(difference) else whole.at(common)
                found = mean_and_error(difference[common], np.ones(len(common)), some)
                row["over_rounding"], row["over_rounding_se"] = found[0], math.hypot(found[1], calibration_se(row))


def _grid(trial: Trial) -> tuple[Any, ...]:
    """What a measurement shares with the one of rounding that it is compared with."""
    scheme = trial.scheme
    runtime = json.dumps([trial.activations, trial.cache], sort_keys=True, default=str)
    return pairing(trial), runtime, scheme and (scheme.bits, scheme.group_size, scheme.symmetric, scheme.format)


def _by_window(m: Measurement, design: Design) -> np.ndarray:
    """Loss per window of the corpus, nats per token; NaN where it was not measured."""
    found = np.full(len(design.units), np.nan)
    found[list(m.windows) or slice(None)] = _per_token(m)
    return found


def _rank(measurement: Measurement) -> tuple[str, float, str]:
    trial = measurement.trial
    quantizer = "" if trial.quantizer == FULL_PRECISION else trial.quantizer
    return quantizer, float(trial.bits or 0), trial.key()


def _per_token(measurement: Measurement) -> np.ndarray:
    return np.asarray(measurement.nll) / np.asarray(measurement.n_tokens)


def _after(measurement: Measurement, reference: Measurement, design: Design | None) -> np.ndarray:
    """Loss per window after quantization, over all windows of the reference."""
    if not measurement.windows:
        return _per_token(measurement)
    before, places = _per_token(reference), list(measurement.windows)
    return before + extended(_per_token(measurement) - before[places], places, design or independent(len(before)))


def extended(sample: np.ndarray, windows: Sequence[int], design: Design) -> np.ndarray:
    """A sample's values over all windows of a design: same mean, and the standard error of the mean is the sample's.

    Deviations from the mean are enlarged for that, and zero where nothing is known.
    """
    full = np.full(len(design.units), sample.mean())
    full[list(windows)] = sample
    own, wanted = standard_error(full, design), standard_error(sample, design.at(windows))
    factor = wanted / own if own > 0 and wanted == wanted else 1.0
    return sample.mean() + (full - sample.mean()) * factor


def _row(
    checkpoint: Checkpoint, m: Measurement, reference: Measurement | None, design: Design | None
) -> dict[str, Any]:
    trial, scheme = m.trial, m.trial.scheme
    row = _about(checkpoint) | {
        "quantizer": trial.quantizer,
        "calibration": trial.calibration,
        "bits_per_weight": m.bits_per_weight,
        "windows": len(m.nll),
        "protocol": trial.protocol,
        "status": m.status,
        "message": m.message,
        "dtype": trial.dtype,
        "device": trial.device,
        "options": json.dumps(dict(trial.options), sort_keys=True),
        "key": trial.key(),
        "quantizer_version": trial.quantizer_version,
    }
    if scheme is not None:
        row |= {name: getattr(scheme, name) for name in ("bits", "group_size", "symmetric", "format")}
        row |= {"effective_bits": m.effective_bits, "gaussian_mse": m.details.get("gaussian_mse")}
    row |= columns_of(trial)
    if trial.calibration_corpus:
        row |= {"calibration_draws": 1, "covers_calibration": False}
    if reference is not None:
        row["loss_fp"], row["loss_fp_se"] = mean_and_error(reference.nll, reference.n_tokens, design)
        row |= {"ppl_fp": reference.perplexity, "bpb_fp": reference.bits_per_byte}
    if trial.quantizer != FULL_PRECISION and m.nll:
        row |= _damage(m, reference, design)
    row |= {name: m.details[name] for name in ("damping_max", "damping_retries", "dead_columns") if name in m.details}
    row["second_order_ratio"] = m.details.get("second_order_ratio")
    row["doubts"] = json.dumps(m.details["doubts"]) if m.details.get("doubts") else None
    row["layers_skipped"] = len(m.details.get("layers_skipped", ()))
    return row | _floor(m, reference)


def _floor(m: Measurement, reference: Measurement | None) -> dict[str, Any]:
    """The noise floor of delta and its parts, where they were measured; nats per token."""
    parts = {"rounding_sd": m.details.get("rounding")}
    if reference is not None and m is not reference:
        parts["numerics_sd"] = reference.details.get("numerics")
        if parts["rounding_sd"] is not None and m.kl:
            divergence = max(math.fsum(m.kl) / math.fsum(m.n_tokens), 0.0)
            second = reference.details.get("second_order", 0.0) * divergence  # 0: records of earlier versions
            parts["rounding_sd"] = math.hypot(parts["rounding_sd"], second)
    known = {name: value for name, value in parts.items() if value is not None}
    if "rounding_sd" in known:
        known["noise_floor"] = SIGNIFICANT * math.hypot(*known.values())
    return known


def _damage(m: Measurement, reference: Measurement | None, whole: Design | None) -> dict[str, Any]:
    design = whole.at(m.windows) if whole is not None and m.windows else whole
    row: dict[str, Any] = {"ppl_q": m.perplexity, "bpb_q": m.bits_per_byte}
    row["loss_q"], row["loss_q_se"] = mean_and_error(m.nll, m.n_tokens, design)
    row["kl"], row["kl_se"] = mean_and_error(m.kl, m.n_tokens, design)
    row["top1_agreement"], row["top1_se"] = mean_and_error(m.agree, m.n_tokens, design)
    row |= of_tokens(m, design)
    if reference is not None:
        difference = np.subtract(m.nll, np.asarray(reference.nll)[list(m.windows) or slice(None)])
        row["delta"], row["delta_se"] = mean_and_error(difference, m.n_tokens, design)
        row["effective_windows"] = effective(difference, m.n_tokens, design)
        if m.windows:
            row |= _added(row["delta"], m, reference, whole)
    if design is not None:
        row |= {"delta_df": design.freedom, "covers": design.covers.value}
        documents = m.trial.sample.documents if m.trial.sample is not None else ()
        seen = [documents[i] for i in m.windows] if documents and m.windows else documents
        row["documents"] = len(set(seen)) or None
    return row


def _added(delta: float, m: Measurement, reference: Measurement, design: Design | None) -> dict[str, Any]:
    """The quantized loss of a measurement that stopped early: full precision on all windows, plus delta."""
    loss = reference.loss + delta
    return {
        "loss_q": loss,
        "loss_q_se": standard_error(_after(m, reference, design), design),
        "ppl_q": math.exp(loss) if loss < 700 else math.inf,
        "bpb_q": reference.bits_per_byte * loss / reference.loss,
    }


def _about(checkpoint: Checkpoint) -> dict[str, Any]:
    names = "run step tokens params learning_rate schedule_phase stage tokens_source params_source"
    row = {name: getattr(checkpoint, name) for name in [*names.split(), "params_convention", "weights_sha"]}
    return row | {"tokens_per_param": checkpoint.tokens_per_param}


def _excluded(checkpoint: Checkpoint) -> dict[str, Any]:
    reasons = "; ".join(map(str, checkpoint.fatal))
    return _about(checkpoint) | {"status": "excluded", "message": reasons, "windows": 0}
