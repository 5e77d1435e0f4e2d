"""What the noise model predicts for a low-rank update on a quantized base: see docs/theory.md, "Low-rank updates".

Everything is predicted from the checkpoint before quantization, its Fisher information on the calibration text, the
noise variance Δ²/12, and the training batches; nothing is fitted to what is measured afterwards.

**Loss.** E[δ] = ½ tr(FΣ) (`curvature`), so δ ≤ C·4^−b.

**What an update can absorb.**  With F of a layer factored as G ⊗ X (X = E[xxᵀ], G = E[ggᵀ], g the gradient by the
output; Martens and Grosse 2015), the loss of an error ε with an update u is ½ ‖G^½(ε + u)X^½‖².  By Eckart and Young
(1936) the best u of rank r removes the r largest singular values of M = G^½εX^½, and leaves the share
Σ_{i>r} σ_i²/Σ σ_i², here `residual_share`.

**Gradients.**  With V(W) the variance of a batch's gradient by the update (`adapt.noise`) and ε of mean 0, the odd
orders of V(W + ε) vanish on average, so E[V] = V(W) + v·(2^b − 1)^−2 + O(Δ⁴).  v is taken from pairs W ± ε with ε drawn
from the noise model at `PROBE_BITS`, half the sum of both less V(W): no quantizer enters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ptq_eval.adapt.lora import Adapter
from ptq_eval.adapt.noise import gradient_noise
from ptq_eval.measure.evaluate import Evaluator
from ptq_eval.measure.gradients import drawn, gradients
from ptq_eval.measure.variants import Variant
from ptq_eval.models.language_model import LanguageModel
from ptq_eval.sampling import Design, standard_error
from ptq_eval.theory import assumptions
from ptq_eval.theory.bound import grid_factor
from ptq_eval.theory.curvature import Curvature, Perturbation, fisher, noise_variance, slope
from ptq_eval.theory.sensitivity import damage
from quantizers import Scheme

PROBE_BITS = 6
"""Fine enough for the second order, coarse enough for float32."""

Tick = Callable[[float], None]
Factors = Mapping[str, tuple[Tensor, Tensor]]
"""{layer: (X [in, in], G [out, out])}."""


def damages(
    model: LanguageModel,
    variants: Sequence[Variant],
    evaluation: Tensor,
    calibration: Tensor,
    *,
    rank: int,
    seed: int = 0,
    designs: tuple[Design | None, Design | None] = (None, None),
    budget: float = 0.0,
    tick: Tick | None = None,
) -> list[tuple[dict[str, Any], list[dict[str, Any]]]]:
    """For each variant its damage before training, predicted and measured, and a row for each layer.

    `evaluation` and `calibration` are windows [n, time], drawn by the two `designs`.  Nats per token.  The first has
    the keys of `sensitivity.rows` that `summary.bounds` needs; `residual`, the predicted damage that the best update of
    `rank` leaves; and what `assumptions` says of the prediction.  A layer's row has predicted, residual and
    residual_share.  `budget` is the memory (bytes) for outputs in full precision.
    """
    found = [Perturbation.of(model, variant.weights, variant.scheme) for variant in variants]
    curvatures = fisher(model, calibration, found, seed=seed, tick=tick)
    factors = kronecker_factors(model, calibration, seed=seed, tick=tick)
    slopes = slope(model, evaluation, found, tick=tick)
    evaluator = Evaluator(model, evaluation, tick=tick)
    evaluator.budget = budget
    scores = evaluator.score([variant.weights for variant in variants])
    rows = []
    for one, curvature, (_, spread), (_, score) in zip(found, curvatures, slopes, scores):
        layers = _layers(one, curvature, factors, rank)
        measured = damage(evaluator.full, score, evaluation.shape[1] - 1, designs[0])
        expected = curvature.expected.sum(1)
        whole = {name: pair[0] for name, pair in measured.items()}
        whole |= {f"{name}_se": pair[1] for name, pair in measured.items()}
        whole |= {"predicted": float(expected.mean()), "predicted_se": standard_error(expected, designs[1])}
        whole |= {"scatter": curvature.scatter(), "spread": float(np.square(spread).sum() ** 0.5)}
        whole |= assumptions.measured(model, evaluator, one, whole["predicted"], seed=seed)
        rows.append((whole | {"residual": sum(row["residual"] for row in layers)}, layers))
    return rows


def with_bounds(bases: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """`bases` with bound = C·4^−bits, where C is predicted for the lowest width of the quantizer, which has the largest
    factor of the grid (`bound.grid_factor`), from the prediction at its highest; infinite for other formats."""
    found = []
    for base in bases:
        own = [one for one in bases if one["quantizer"] == base["quantizer"] and one["format"].startswith("int")]
        limit = np.inf
        if base in own:
            finest, lowest = max(own, key=lambda one: one["bits"]), min(one["bits"] for one in own)
            scale = 4.0 ** finest["bits"] / grid_factor(finest["bits"]) * grid_factor(lowest)
            limit = finest["predicted"] * scale * 4.0 ** -base["bits"]
        found.append({**base, "bound": limit})
    return found


def _layers(one: Perturbation, curvature: Curvature, factors: Factors, rank: int) -> list[dict[str, Any]]:
    rows = []
    for place, name in enumerate(curvature.layers):
        if name in one.error and name in factors:
            share = residual_share(one.error[name], *factors[name], rank)
            predicted = float(curvature.expected[:, place].mean())
            numbers = {"predicted": predicted, "residual_share": share, "residual": share * predicted}
            rows.append({"layer": name, "weights": one.error[name].numel(), **numbers})
    return rows


def kronecker_factors(model: LanguageModel, ids: Tensor, *, seed: int = 0, tick: Tick | None = None) -> Factors:
    """X and G of every layer on windows `ids` [windows, time], with labels drawn from the model."""
    generator = torch.Generator(model.device).manual_seed(seed)
    sums: dict[str, tuple[Tensor, Tensor]] = {}
    for row in ids.to(device=model.device, dtype=torch.long).split(1):
        (found,) = gradients(model, row, lambda probability: drawn(probability, generator))
        for name, (inputs, outputs) in found.items():
            pair = inputs.T @ inputs, outputs.T @ outputs
            sums[name] = pair if name not in sums else (sums[name][0] + pair[0], sums[name][1] + pair[1])
        if tick:
            tick(1)
    tokens = len(ids) * (ids.shape[1] - 1)
    return {name: (x / tokens, g / tokens) for name, (x, g) in sums.items()}


def residual_share(error: Tensor, inputs: Tensor, outputs: Tensor, rank: int) -> float:
    """The share of ½ tr(GεXεᵀ) that the best update of `rank` leaves; `error` [out, in], X [in, in], G [out, out].

    1 for an error that costs nothing, where there is nothing to absorb.
    """
    squares = torch.linalg.svdvals(_root(outputs) @ error.double() @ _root(inputs)).square()
    total = float(squares.sum())
    return float(squares[rank:].sum()) / total if total > 0 else 1.0


def _root(matrix: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(matrix.double())
    return (vectors * values.clamp(min=0).sqrt()) @ vectors.T


def gradient_response(
    model: LanguageModel,
    scheme: Scheme,
    batches: Sequence[Tensor],
    *,
    rank: int,
    alpha: float,
    seed: int,
    widths: Sequence[int] = (),
    pairs: int = 1,
    tick: Tick | None = None,
) -> dict[str, Any]:
    """plain V and growth v of E[variance] = V + v/(2^b − 1)², for a new adapter on a base of b bits in the groups of
    `scheme`; and `uniform` {b: variance under drawn noise of b bits} for b in `widths`, which has all even orders.

    `batches` are those of the variance, [batch, time] each; `seed` is that of the adapter and of the noise.
    """
    at = lambda weights: _variance(model, weights, batches, rank=rank, alpha=alpha, seed=seed, tick=tick)
    generator = torch.Generator().manual_seed(seed)
    under = lambda bits: sum(at(weights) for weights in _pair(model, replace(scheme, bits=bits), generator)) / 2
    plain = at({})
    growth = sum(under(PROBE_BITS) - plain for _ in range(pairs)) / pairs * (2**PROBE_BITS - 1) ** 2
    return {"plain": plain, "growth": growth, "uniform": {str(bits): under(bits) for bits in widths}}


def _pair(model: LanguageModel, scheme: Scheme, generator: torch.Generator) -> Iterable[dict[str, Tensor]]:
    """The weights with noise of the steps of `scheme`, and with the opposite noise."""
    noise = assumptions.uniform(
        {name: noise_variance(model.weight(name), scheme) for name in model.linears()}, generator
    )
    return [{name: model.weight(name) + sign * own for name, own in noise.items()} for sign in (1, -1)]


def _variance(
    model: LanguageModel,
    weights: Mapping[str, Tensor],
    batches: Sequence[Tensor],
    *,
    rank: int,
    alpha: float,
    seed: int,
    tick: Tick | None,
) -> float:
    adapter = Adapter(model, weights, rank=rank, alpha=alpha, seed=seed)
    found = gradient_noise(adapter.loss, adapter.parameters, batches).variance
    if tick:
        tick(1)
    return found
