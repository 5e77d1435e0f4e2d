"""The damage of every layer: measured by quantizing one at a time, and predicted; and how well the two agree.

Measured: the model with one layer quantized and everything else in full precision is evaluated like any lane, on the
same windows as the full-precision model, so δ has the standard error of a paired difference.  KL(full precision ‖
quantized) is kept beside it, because it is what the second order predicts: δ of a single rounding also moves up or
down the slope of the loss, by more than the curvature does where the error is small.

Predicted: from calibration windows alone (`curvature.fisher`).  What takes labels of the evaluation text, the slope and
its spread, stands in columns of its own and enters no prediction.

Agreement is Pearson's correlation of logarithms, Spearman's of ranks, and the ratio of sums.  Logarithms take the
layers whose damage stands two standard errors above zero; ranks take all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats
from torch import Tensor

from ptq_eval.measure.calibration import Lane
from ptq_eval.measure.evaluate import evaluate
from ptq_eval.measure.scoring import Scores
from ptq_eval.models.language_model import LanguageModel
from ptq_eval.theory.curvature import Curvature, Perturbation, fisher, slope

ALL = "all"
"""In place of a layer's name: every layer quantized together."""

CLEAR = 2.0
FEWEST = 4
"""Layers below which a correlation says nothing."""

Damage = dict[str, tuple[float, float]]
"""{"delta" and "kl": (mean, standard error over windows)}, nats per token."""

Tick = Callable[[float], None]


def measure(
    model: LanguageModel, ids: Tensor, lanes: Sequence[Lane], *, tick: Tick | None = None
) -> list[dict[str, Damage]]:
    """{layer: its damage when it alone is quantized} of each lane on windows `ids`, and that of all under `ALL`."""
    trials = [(place, name) for place, lane in enumerate(lanes) for name in (*lane.weights, ALL)]
    weights = [lanes[place].weights if name == ALL else {name: lanes[place].weights[name]} for place, name in trials]
    full, scores = evaluate(model, ids, weights, tick=tick)
    found: list[dict[str, Damage]] = [{} for _ in lanes]
    for (place, name), score in zip(trials, scores):
        found[place][name] = _damage(full, score, ids.shape[1] - 1)
    return found


def _damage(full: Scores, score: Scores, tokens: int) -> Damage:
    difference = np.asarray(score.nll) - np.asarray(full.nll)
    return {"delta": mean_and_error(difference / tokens), "kl": mean_and_error(np.asarray(score.kl) / tokens)}


def mean_and_error(windows: np.ndarray) -> tuple[float, float]:
    """Mean over windows [n] and its standard error; NaN for a single window."""
    return float(windows.mean()), float(windows.std(ddof=1) / len(windows) ** 0.5) if len(windows) > 1 else np.nan


def rows(
    model: LanguageModel,
    evaluation: Tensor,
    calibration: Tensor,
    lanes: Sequence[Lane],
    *,
    draws: int = 2,
    seed: int = 0,
    tick: Tick | None = None,
) -> list[list[dict[str, Any]]]:
    """For each lane one row per layer, and one for all together: measured and predicted damage, nats per token.

    `evaluation` and `calibration` are windows [n, time].  Keys: layer, weights (how many), delta, delta_se, kl, kl_se,
    predicted, predicted_se (noise model with the Fisher diagonal), kfac, output_error (without curvature), scatter (of
    the second order over roundings, a standard deviation), quadratic, quadratic_se (½ εᵀFε of the error itself), slope
    (⟨∇L, ε⟩ on the evaluation windows), spread (its standard deviation over roundings) and noise_ratio (Σ ε² over
    Σ Δ²/12).
    """
    moved = [Perturbation.of(model, lane.weights, lane.scheme) for lane in lanes]
    curvatures = fisher(model, calibration, moved, draws=draws, seed=seed, tick=tick)
    slopes = slope(model, evaluation, moved, tick=tick)
    damages = measure(model, evaluation, lanes, tick=tick)
    return [
        [_row(model, name, damage, one, curvature, along) for name in damage]
        for damage, one, curvature, along in zip(damages, moved, curvatures, slopes)
    ]


def _row(
    model: LanguageModel,
    name: str,
    damage: Mapping[str, Damage],
    one: Perturbation,
    curvature: Curvature,
    along: tuple[np.ndarray, np.ndarray],
) -> dict[str, Any]:
    names = list(one.error) if name == ALL else [name]
    part = slice(None) if name == ALL else slice(curvature.layers.index(name), curvature.layers.index(name) + 1)
    predicted, predicted_se = mean_and_error(curvature.expected[:, part].sum(1))
    quadratic, quadratic_se = mean_and_error(curvature.quadratic(part))
    first, spread = along
    measured = damage[name]
    return {
        "layer": name,
        "weights": sum(model.weight(layer).numel() for layer in names),
        "delta": measured["delta"][0],
        "delta_se": measured["delta"][1],
        "kl": measured["kl"][0],
        "kl_se": measured["kl"][1],
        "predicted": predicted,
        "predicted_se": predicted_se,
        "kfac": float(curvature.kfac[part].sum()),
        "output_error": float(curvature.output_error[part].sum()),
        "scatter": curvature.scatter(part),
        "quadratic": quadratic,
        "quadratic_se": quadratic_se,
        "slope": float(first[part].sum()),
        "spread": float(np.square(spread[part]).sum() ** 0.5),
        "noise_ratio": _ratio(
            sum(float(one.error[layer].square().sum()) for layer in names),
            sum(float(one.variance[layer].sum()) for layer in names),
        ),
    }


def agreement(predicted: Sequence[float], measured: Sequence[float], error: Sequence[float]) -> dict[str, Any]:
    """How well predictions [layers] meet measurements with standard errors, both [layers].

    `layers`, `clear` (those above two standard errors), `spearman` over all layers, `pearson_log` over the clear ones,
    `ratio` = Σ predicted / Σ measured.  NaN where fewer than four layers, or no differences, are left.
    """
    x, y, e = (np.asarray(column, float) for column in (predicted, measured, error))
    clear = (y > CLEAR * e) & (x > 0)
    return {
        "layers": len(x),
        "clear": int(clear.sum()),
        "spearman": _correlation(stats.spearmanr, x, y),
        "pearson_log": _correlation(stats.pearsonr, np.log(x[clear]), np.log(y[clear])),
        "ratio": _ratio(float(x.sum()), float(y.sum())),
    }


def _correlation(kind: Callable[..., Any], x: np.ndarray, y: np.ndarray) -> float:
    if len(x) < FEWEST or not (np.ptp(x) > 0 and np.ptp(y) > 0):
        return np.nan
    return float(kind(x, y)[0])


def _ratio(above: float, below: float) -> float:
    return above / below if below else np.nan
