"""The damage of every layer: measured by quantizing one layer at a time, and predicted.

Measured: the model with one layer quantized and everything else in full precision is evaluated like any variant, on the
same windows as the full-precision model, so δ has the standard error of a paired difference.  KL(full precision ‖
quantized) is measured too, because it is what the second order predicts: δ of a single rounding also moves up or down
the slope of the loss, by more than the curvature does where the error is small.

Predicted: from calibration windows alone (`curvature.fisher`).  What needs labels of the evaluation text, the slope and
its spread, has columns of its own and enters no prediction.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from ptq_eval.measure.evaluate import evaluate
from ptq_eval.measure.scoring import Scores
from ptq_eval.measure.variants import Variant
from ptq_eval.models.language_model import LanguageModel
from ptq_eval.sampling import Design, mean_and_error, standard_error
from ptq_eval.theory import ALL
from ptq_eval.theory.curvature import Curvature, Perturbation, fisher, slope
from ptq_eval.theory.summary import ratio

Damage = dict[str, tuple[float, float]]
"""{"delta" and "kl": (mean, standard error over windows)}, nats per token."""

Tick = Callable[[float], None]


def measure(
    model: LanguageModel,
    ids: Tensor,
    variants: Sequence[Variant],
    *,
    design: Design | None = None,
    tick: Tick | None = None,
) -> list[dict[str, Damage]]:
    """For each variant {layer: damage when only that layer is quantized} on windows `ids`, drawn by `design`; `ALL` for
    all layers."""
    trials = [(index, name) for index, variant in enumerate(variants) for name in (*variant.weights, ALL)]
    weights = [variants[i].weights if name == ALL else {name: variants[i].weights[name]} for i, name in trials]
    full, scores = evaluate(model, ids, weights, tick=tick)
    found: list[dict[str, Damage]] = [{} for _ in variants]
    for (index, name), score in zip(trials, scores):
        found[index][name] = damage(full, score, ids.shape[1] - 1, design)
    return found


def damage(full: Scores, score: Scores, tokens: int, design: Design | None) -> Damage:
    """Measured damage, of scores against those in full precision on windows of so many scored `tokens`."""
    weights = np.full(len(score.nll), tokens)
    difference = np.asarray(score.nll) - np.asarray(full.nll)
    return {"delta": mean_and_error(difference, weights, design), "kl": mean_and_error(score.kl, weights, design)}


def rows(
    model: LanguageModel,
    evaluation: Tensor,
    calibration: Tensor,
    variants: Sequence[Variant],
    *,
    draws: int = 2,
    seed: int = 0,
    designs: tuple[Design | None, Design | None] = (None, None),
    tick: Tick | None = None,
) -> list[list[dict[str, Any]]]:
    """For each variant one row per layer, and one for all together: measured and predicted damage, nats per token.

    `evaluation` and `calibration` are windows [n, time], drawn by the two `designs`.  Keys: layer, weights (how many),
    delta, delta_se, kl, kl_se, predicted, predicted_se (noise model with the Fisher diagonal), kfac, output_error
    (without curvature), scatter (of the second order over roundings, a standard deviation), quadratic, quadratic_se
    (½ εᵀFε of the error itself), slope (⟨∇L, ε⟩ on the evaluation windows), spread (its standard deviation over
    roundings) and noise_ratio (Σ ε² over Σ Δ²/12).
    """
    perturbations = [Perturbation.of(model, variant.weights, variant.scheme) for variant in variants]
    curvatures = fisher(model, calibration, perturbations, draws=draws, seed=seed, tick=tick)
    slopes = slope(model, evaluation, perturbations, tick=tick)
    damages = measure(model, evaluation, variants, design=designs[0], tick=tick)
    return [
        [_row(model, name, damage, one, curvature, along, designs[1]) for name in damage]
        for damage, one, curvature, along in zip(damages, perturbations, curvatures, slopes)
    ]


def _row(
    model: LanguageModel,
    name: str,
    damage: Mapping[str, Damage],
    one: Perturbation,
    curvature: Curvature,
    along: tuple[np.ndarray, np.ndarray],
    design: Design | None,
) -> dict[str, Any]:
    names = list(one.error) if name == ALL else [name]
    part = slice(None) if name == ALL else slice(curvature.layers.index(name), curvature.layers.index(name) + 1)
    expected, exact = curvature.expected[:, part].sum(1), curvature.quadratic(part)
    predicted, predicted_se = float(expected.mean()), standard_error(expected, design)
    quadratic, quadratic_se = float(exact.mean()), standard_error(exact, design)
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
        "noise_ratio": ratio(
            sum(float(one.error[layer].square().sum()) for layer in names),
            sum(float(one.variance[layer].sum()) for layer in names),
        ),
    }
