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

import torch
from torch import Tensor

from ptq_eval.adapt.lora import Adapter
from ptq_eval.adapt.noise import gradient_noise
from ptq_eval.measure.gradients import drawn, gradients
from ptq_eval.models.language_model import LanguageModel
from ptq_eval.theory.curvature import noise_variance
from quantizers import Scheme

PROBE_BITS = 6
"""Fine enough for the second order, coarse enough for float32."""

Tick = Callable[[float], None]
Factors = Mapping[str, tuple[Tensor, Tensor]]
"""{layer: (X [in, in], G [out, out])}."""


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
    pairs: int = 1,
    tick: Tick | None = None,
) -> tuple[float, float]:
    """(V, v) of E[variance] = V + v/(2^b − 1)², for a new adapter on a base of b bits in the groups of `scheme`.

    `batches` are those of the variance, [batch, time] each; `seed` is that of the adapter and of the noise.
    """
    at = lambda weights: _variance(model, weights, batches, rank=rank, alpha=alpha, seed=seed, tick=tick)
    plain = at({})
    generator = torch.Generator().manual_seed(seed)
    found = [sum(at(weights) for weights in _pair(model, scheme, generator)) / 2 - plain for _ in range(pairs)]
    return plain, sum(found) / pairs * (2**PROBE_BITS - 1) ** 2


def _pair(model: LanguageModel, scheme: Scheme, generator: torch.Generator) -> Iterable[dict[str, Tensor]]:
    """The weights with noise of `PROBE_BITS`, and with the opposite noise."""
    fine = replace(scheme, bits=PROBE_BITS)
    noise = {}
    for name in model.linears():
        weight = model.weight(name)
        uniform = torch.rand(weight.shape, generator=generator).to(weight.device) - 0.5
        noise[name] = uniform * (12 * noise_variance(weight, fine)).sqrt()
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
