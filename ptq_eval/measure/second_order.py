"""By how much the second order of δ differs from one rounding to the next, as a share of its mean.

With independent rounding errors of mean 0 and variances Σ, ½ εᵀFε has the mean ½ tr(FΣ) and the variance ½ tr((FΣ)²),
F the Fisher information (`theory.curvature` has the sources).  So its standard deviation is the share √(2/r) of its
mean, with r = tr(FΣ)²/tr((FΣ)²) the number of directions that count.  All variances of Σ may be multiplied by one
factor, so r does not depend on the bits; they are taken as proportional to the square of each row's range.

A gradient S of the loss summed over T tokens, with labels that the model itself predicts, has E[SSᵀ] = T·F.  So
SᵀΣS/T has the expectation tr(FΣ), and (SᵀΣS′)²/T², of two independent gradients, tr((FΣ)²).
"""

from __future__ import annotations

import math
from collections.abc import MutableMapping
from functools import partial

import torch
from torch import Tensor

from ptq_eval.measure.gradients import drawn, gradients
from ptq_eval.measure.kept import Kept, once
from ptq_eval.models.language_model import LanguageModel

WINDOWS = 12
"""Gradients that are compared pair by pair, each of one window: what a pair says hardly depends on how many windows are
behind it, so more pairs are worth more than longer samples.  The share is then known to about 12 %
(docs/log.md)."""


def share(model: LanguageModel, ids: Tensor, kept: Kept | None = None) -> float:
    """The standard deviation of ½ εᵀFε over roundings divided by its mean, from windows `ids` [n, time], n at least 2.

    Memory holds one gradient per window, unless they are `kept`.  Labels are drawn with a generator of their own.
    """
    return once(kept, "second order", partial(_share, model, ids, kept))


def _share(model: LanguageModel, ids: Tensor, kept: Kept | None) -> float:
    generator = torch.Generator(model.device).manual_seed(0)
    rows = ids.to(device=model.device, dtype=torch.long).split(1)
    scores = [
        _score(model, row, generator) if kept is None else _kept(kept, model, row, generator, place)
        for place, row in enumerate(rows)
    ]
    products = torch.zeros(len(scores), len(scores), dtype=torch.float64)
    for name in model.linears():
        weight = model.weight(name).float()
        spread = weight.amax(1, keepdim=True) - weight.amin(1, keepdim=True)
        reached = [score[name].to(weight.device) if name in score else torch.zeros_like(weight) for score in scores]
        table = torch.stack([(score * spread).flatten() for score in reached])
        products += (table @ table.T).double().cpu()
    for score in scores:
        score.clear()
    apart = ~torch.eye(len(scores), dtype=torch.bool)
    trace, square = float(products.diagonal().mean()), float(products[apart].square().mean())
    return math.sqrt(2 * square) / trace if trace > 0 else 0.0


def _score(model: LanguageModel, ids: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
    """S/√T of a window `ids` [1, time]: {layer: [out, in]}, float32; without layers that no token reaches."""
    score: dict[str, Tensor] = {}

    def take(name: str, inputs: Tensor, outputs: Tensor) -> None:
        score[name] = outputs.T @ inputs * (ids.shape[1] - 1) ** -0.5

    for rest in gradients(model, ids, lambda probability: drawn(probability, generator), take=take):
        for name, (inputs, outputs) in rest.items():  # where one of several calls was not reached
            take(name, inputs, outputs)
    return score


def _kept(
    kept: Kept, model: LanguageModel, ids: Tensor, generator: torch.Generator, place: int
) -> MutableMapping[str, Tensor]:
    """As `_score`, on disk; an earlier process may have left it there, with the state of the generator after it."""
    name = f"gradient {place}"
    score = kept.tensors(name)
    if not kept.parts(name):
        score.update(_score(model, ids, generator))
        kept.add(name, [list(score), generator.get_state().tolist()])
        return score
    layers, state = kept.parts(name)[0]
    for layer in layers:
        score.adopt(layer)
    generator.set_state(torch.tensor(state, dtype=torch.uint8))
    return score
