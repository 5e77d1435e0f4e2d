"""Why a predicted damage P = ½ Σ F·Δ²/12 is not the KL that is measured: three factors whose product is KL/P.

    KL/P = (N/P) · (Q/N) · (KL/Q)

N  the second order ½ εᵀFε of noise ε ~ U(−Δ/2, Δ/2) that is drawn.  The noise is as assumed, so N/P is what the
   curvature owes to its estimate, from other windows, and to this one draw.
Q  the second order of the error of quantization itself, so Q/N is that the error is not this noise.
KL of the whole error, so KL/Q are the higher orders.

A second order is KL at W ± tε over t², on the windows where KL is measured, with t so small that the fourth order is
below 1 %.  KL of the whole noise, in place of the error, says whether two orders suffice where the noise is as assumed.
Those of noise are means of two opposite draws, in which odd orders vanish.
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
    """Of one perturbation whose predicted KL is `predicted`, nats per token: quadratic is Q, uniform_quadratic N, and
    uniform the KL of the whole noise."""
    noise = uniform(one.variance, torch.Generator().manual_seed(seed))
    share = min(1.0, math.sqrt(SMALL / predicted)) if predicted > 0 else 1.0
    return {
        "uniform": _kl(model, evaluator, noise, 1.0),
        "uniform_quadratic": _kl(model, evaluator, noise, share) / share**2,
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
