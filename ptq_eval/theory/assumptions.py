"""Why a predicted damage is not what is measured: each assumption of ½ Σ F·Δ²/12 tested by itself.

The prediction assumes that the error of rounding is uniform noise, independent from weight to weight, and that no order
beyond the second matters.

uniform    KL under noise ε ~ U(−Δ/2, Δ/2) that is drawn, in place of the error of rounding, with the same Δ.  The noise
           is what was assumed, so what this exceeds the prediction by are the higher orders.
quadratic  ½ εᵀFε of the error of rounding itself, on the windows where KL is measured: KL at W ± tε over t², with t so
           small that the fourth order is below 1 %.  There is no higher order in it, so what differs from the prediction
           is the error; KL of the whole error over it is the part of the higher orders.

Means of two opposite errors, in which odd orders vanish.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from ptq_eval.measure.evaluate import Evaluator
from ptq_eval.models.language_model import LanguageModel
from ptq_eval.theory.curvature import Perturbation

SMALL = 1e-3
"""KL, nats per token, at which the second order is measured: float32 resolves it, and the fourth order is small."""


def measured(
    model: LanguageModel, evaluator: Evaluator, one: Perturbation, predicted: float, *, seed: int = 0
) -> dict[str, float]:
    """uniform and quadratic of one perturbation whose predicted KL is `predicted`, nats per token."""
    noise = uniform(one.variance, torch.Generator().manual_seed(seed))
    share = min(1.0, math.sqrt(SMALL / predicted)) if predicted > 0 else 1.0
    return {
        "uniform": _kl(model, evaluator, noise, 1.0),
        "quadratic": _kl(model, evaluator, one.error, share) / share**2,
    }


def uniform(variance: Mapping[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
    """Noise ~ U(−Δ/2, Δ/2) of the `variance` Δ²/12 of every weight: {layer: [out, in]}."""
    return {
        name: (torch.rand(own.shape, generator=generator) - 0.5).to(own.device) * (12 * own).sqrt()
        for name, own in variance.items()
    }


def _kl(model: LanguageModel, evaluator: Evaluator, error: Mapping[str, Tensor], share: float) -> float:
    """KL(W ‖ W ± share·error), mean over windows and over the signs; one copy of the weights at a time."""
    found = []
    for sign in (share, -share):
        weights = {name: model.weight(name).float() + sign * own for name, own in error.items()}
        ((_, scores),) = evaluator.score([weights])
        found.append(np.mean(scores.kl))
    return float(np.mean(found)) / (evaluator.ids.shape[1] - 1)
