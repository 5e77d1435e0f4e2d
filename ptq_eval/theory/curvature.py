"""What turns an error of the weights into loss: the Fisher information, and the slope of the loss itself.

A layer's H = 2/n Σ xxᵀ is the Hessian of the squared error of its output.  How much loss an error of the output costs
is not in it.  To second order, with ε the error of all weights,

    δ = ⟨∇L, ε⟩ + ½ εᵀFε + …,     F = E[s sᵀ],   s = ∇ log p(y | x),   y drawn from the model itself,

where F is the Fisher information, which for a softmax is the Gauss–Newton matrix (Martens 2020, "New insights and
perspectives on the natural gradient method", section 9.2) and, exactly to second order, the Hessian of KL(full
precision ‖ quantized).  Labels drawn from the model make the scores of different tokens uncorrelated, so the gradient
of a whole window's summed loss, S = Σ g xᵀ, gives F without bias: E[S_ij²]/T is its diagonal per token, and ½
E[⟨S, ε⟩²]/T the damage of a given ε.  Labels from the text would give the "empirical" Fisher, which is 1.5 to 1.9
times too large on the embedded trajectory.  `kfac` is the Kronecker-factored form of the diagonal, F_ij ≈
E[g_i²]·H_jj/2 (Martens and Grosse 2015, section 3), which needs no product of the two for each window.

With independent errors of mean 0 and variances Σ = Δ²/12, the second order has mean ½ tr(FΣ) and variance
½ tr((FΣ)²) (that of a quadratic form in Gaussians; uniform errors have a little less), the latter from pairs of
windows, E[(SᵀΣS′)²] = T² tr((FΣ)²).  The slope has mean 0 and variance Σ (∇L)_ij²·Δ²/12.  `slope` takes ∇L on the
windows where δ is measured.

Left out: the rest of the Hessian, Σ (p − y)·∇² logits, which is small only for a model that predicts its text as well
as it believes; and every order beyond the second.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ptq_eval.models.language_model import LanguageModel
from ptq_eval.theory import noise
from ptq_eval.theory.gradients import gradients
from quantizers import Scheme

Tick = Callable[[float], None]


@dataclass(frozen=True, eq=False)
class Perturbation:
    """What is done to the weights: {layer: error [out, in]}, and the variance [out, in] that the model expects."""

    error: Mapping[str, Tensor]
    variance: Mapping[str, Tensor]

    @classmethod
    def of(cls, model: LanguageModel, weights: Mapping[str, Tensor], scheme: Scheme) -> Perturbation:
        """That of quantized `weights` {layer: [out, in]} on the grid of `scheme`."""
        error = {name: weight.float() - model.weight(name).float() for name, weight in weights.items()}
        return cls(error, {name: noise.variance(model.weight(name), scheme) for name in weights})


@dataclass(frozen=True, eq=False)
class Curvature:
    """Second-order damage of one perturbation, in nats per token, layers in the order of `layers`.

    `expected` [windows, layers]: ½ Σ F·Δ²/12, whose mean is the prediction of the noise model; `projection`
    [windows, draws, layers]: ⟨S, ε⟩/√T, half of whose square is the damage of the error itself; `overlap`
    [windows − 1, layers]: SᵀΣS′/T of pairs of windows; `kfac` and `output_error` [layers]: the Kronecker-factored
    prediction, and ½·tr(H·E[εᵀε]) without any curvature.
    """

    layers: tuple[str, ...]
    expected: np.ndarray
    projection: np.ndarray
    overlap: np.ndarray
    kfac: np.ndarray
    output_error: np.ndarray

    def quadratic(self, layers: slice = slice(None)) -> np.ndarray:
        """½ εᵀFε of the error itself in the given layers together, one estimate per window: [windows]."""
        return 0.5 * np.square(self.projection[:, :, layers].sum(-1)).mean(1)

    def scatter(self, layers: slice = slice(None)) -> float:
        """Standard deviation of ½ εᵀFε over roundings, in the given layers together; NaN for a single window."""
        pairs = self.overlap[:, layers].sum(-1)
        return float((0.5 * np.square(pairs).mean()) ** 0.5) if len(pairs) else np.nan


@dataclass(eq=False)
class _Moments:
    """Sums over tokens for one layer: inputs squared [in], gradients squared [out], and how many tokens."""

    inputs: Tensor
    gradients: Tensor
    tokens: int = 0


def fisher(
    model: LanguageModel,
    ids: Tensor,
    perturbations: Sequence[Perturbation],
    *,
    draws: int = 2,
    seed: int = 0,
    tick: Tick | None = None,
) -> list[Curvature]:
    """The second-order damage of each perturbation, on windows `ids` [windows, time], whose labels are not used.

    Labels are drawn `draws` times for each window with a generator of `seed`.  One window passes at a time, in random
    order, so that a window's gradient is whole whatever the layers do with the batch, and neighbours in the text are
    no pairs.  Two gradients are held.  tick(1) after each window.
    """
    layers = tuple(model.linears())
    generator = torch.Generator(model.device).manual_seed(seed)
    order = torch.randperm(len(ids), generator=torch.Generator().manual_seed(seed))
    shape = (len(perturbations), len(ids), len(layers))
    expected, overlap, projection = np.zeros(shape), np.zeros(shape), np.zeros((*shape[:2], draws, shape[2]))
    moments: dict[str, _Moments] = {}
    before: dict[str, Tensor] = {}
    for window, row in enumerate(ids[order].to(device=model.device, dtype=torch.long).split(1)):
        passes = gradients(model, row, lambda logits: _drawn(logits, generator), draws)
        for draw, found in enumerate(passes):
            for place, name in enumerate(layers):
                if name not in found:
                    continue
                _count(moments, name, *found[name], first=draw == 0)
                score = found[name][1].T @ found[name][0]
                for lane, one in enumerate(perturbations):
                    if name not in one.error:
                        continue
                    expected[lane, window, place] += float((score.square() * one.variance[name]).sum())
                    projection[lane, window, draw, place] = float((score * one.error[name]).sum())
                    if draw == 0 and name in before:
                        overlap[lane, window, place] = float((score * one.variance[name] * before[name]).sum())
                if draw == 0:
                    before[name] = score
        if tick:
            tick(1)
    time = ids.shape[1] - 1
    return [
        Curvature(
            layers,
            0.5 * expected[lane] / (draws * time),
            projection[lane] / time**0.5,
            overlap[lane, 1:] / time,
            *_factored(layers, one, moments, draws * len(ids) * time),
        )
        for lane, one in enumerate(perturbations)
    ]


def slope(
    model: LanguageModel, ids: Tensor, perturbations: Sequence[Perturbation], *, tick: Tick | None = None
) -> list[tuple[np.ndarray, np.ndarray]]:
    """(⟨∇L, ε⟩, its standard deviation under the noise model) of each perturbation, each [layers], nats per token.

    ∇L is the gradient of the mean loss on `ids` [windows, time] with their own labels.  Holds one gradient.
    """
    layers = tuple(model.linears())
    mean = {name: torch.zeros_like(model.weight(name), dtype=torch.float32) for name in layers}
    tokens = ids.shape[0] * (ids.shape[1] - 1)
    for window in ids.to(device=model.device, dtype=torch.long).split(1):
        for found in gradients(model, window, lambda _, window=window: window[:, 1:]):
            for name, (inputs, outputs) in found.items():
                mean[name].addmm_(outputs.T, inputs, alpha=1 / tokens)
        if tick:
            tick(1)
    return [_along(layers, mean, one) for one in perturbations]


def _along(layers: Sequence[str], mean: Mapping[str, Tensor], one: Perturbation) -> tuple[np.ndarray, np.ndarray]:
    first, spread = np.zeros(len(layers)), np.zeros(len(layers))
    for place, name in enumerate(layers):
        if name in one.error:
            first[place] = float((mean[name] * one.error[name]).sum())
            spread[place] = float((mean[name].square() * one.variance[name]).sum()) ** 0.5
    return first, spread


def _drawn(logits: Tensor, generator: torch.Generator) -> Tensor:
    """One label for each position, [batch, time], from the model's own prediction."""
    probability = logits.softmax(-1)
    return torch.multinomial(probability.flatten(0, 1), 1, generator=generator).view(logits.shape[:2])


def _count(moments: dict[str, _Moments], name: str, inputs: Tensor, outputs: Tensor, *, first: bool) -> None:
    own = moments.setdefault(name, _Moments(torch.zeros_like(inputs[0]), torch.zeros_like(outputs[0])))
    own.gradients += outputs.square().sum(0)
    if first:  # the inputs are the same for every draw
        own.inputs += inputs.square().sum(0)
        own.tokens += len(inputs)


def _factored(
    layers: Sequence[str], one: Perturbation, moments: Mapping[str, _Moments], samples: int
) -> tuple[np.ndarray, np.ndarray]:
    """(`kfac`, `output_error`) of a `Curvature`; `samples` labels were drawn in all."""
    kfac, output = np.zeros(len(layers)), np.zeros(len(layers))
    for place, name in enumerate(layers):
        if name in one.error and name in moments:
            own = moments[name]
            diagonal = own.inputs * (2 / own.tokens)  # of LayerStats.hessian, without its [in, in] entries
            output[place] = noise.output_damage(one.variance[name], diagonal)
            weighted = one.variance[name] * (own.gradients / samples)[:, None]
            kfac[place] = 0.5 * noise.output_damage(weighted, diagonal)
    return kfac, output
