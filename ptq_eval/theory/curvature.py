"""What a rounding error costs: noise of the weights, the Fisher information, and the slope of the loss itself.

**Noise.**  A weight that is rounded to a grid of step Δ, and is equally likely to be anywhere between two grid points,
is off by a uniform variable on [−Δ/2, Δ/2], of mean 0 and variance Δ²/12 (Bennett 1948, "Spectra of quantized
signals", section III).  Δ is the scale of the weight's group as `quantizers.grid` defines it, (max − min)/(2^b − 1), so
Δ² falls as 4^−b up to the grid's own factor 4^b/(2^b − 1)², which is 1.78 at 2 bits, 1.14 at 4 and 1.01 at 8.  Not in
this model: the weights that define a group's range are on or near the grid; a zero weight is exact; and the errors of a
method that shifts one weight to compensate another (GPTQ), scales columns (AWQ) or clips its range are neither
independent nor of this variance.  For those, the error itself is used.

**Curvature.**  A layer's H = 2/n Σ xxᵀ is the Hessian of the squared error of its output; how much loss an output error
costs is not in it.  To second order, with ε the error of all weights,

    δ = ⟨∇L, ε⟩ + ½ εᵀFε + …,     F = E[s sᵀ],   s = ∇ log p(y | x),   y drawn from the model itself,

where F is the Fisher information, which for a softmax is the Gauss–Newton matrix (Martens 2020, "New insights and
perspectives on the natural gradient method", section 9.2) and, exactly to second order, the Hessian of KL(full
precision ‖ quantized).  With labels drawn from the model, the scores of different tokens are uncorrelated, so the
gradient of a whole window's summed loss, S = Σ g xᵀ, gives F without bias: E[S_ij²]/T is its diagonal per token, and
½ E[⟨S, ε⟩²]/T the damage of a given ε.  Labels from the text would give the "empirical" Fisher, which is 1.5 to 1.9
times too large on the embedded trajectory.  `kfac` is the Kronecker-factored form of the diagonal, F_ij ≈
E[g_i²]·H_jj/2 (Martens and Grosse 2015, section 3), which does not need their product for each window.

With independent errors of mean 0 and variances Σ = Δ²/12, the second order has mean ½ tr(FΣ) and variance
½ tr((FΣ)²) (that of a quadratic form in Gaussians; for uniform errors it is slightly less), the latter from pairs of
windows, E[(SᵀΣS′)²] = T² tr((FΣ)²).  The slope has mean 0 and variance Σ (∇L)_ij²·Δ²/12; `slope` takes ∇L on the
windows where δ is measured.

Neglected: the rest of the Hessian, Σ (p − y)·∇² logits, which is small only for a model that predicts its text as well
as it believes; and every order beyond the second.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ptq_eval.measure.gradients import drawn, gradients, mean_gradient
from ptq_eval.models.language_model import LanguageModel
from quantizers import Scheme, grid
from quantizers.formats import FORMATS

Tick = Callable[[float], None]


def noise_step(weight: Tensor, scheme: Scheme) -> Tensor:
    """Δ of every group of `weight` [out, in]: [out, groups], float32; 0 for a group of zeros, which is coded exactly.

    Raises GroupSizeRangeError for a group that is larger than a row.
    """
    groups = grid.to_groups(weight.detach().float(), scheme.columns_per_group(weight.shape[1]))
    scale, _ = grid.find_params(groups, scheme.bits, scheme.symmetric)
    return torch.where(groups.abs().amax(-1) > 0, scale, 0.0)


def noise_variance(weight: Tensor, scheme: Scheme) -> Tensor:
    """E[ε²] of every entry of `weight`: [out, in], float32; Δ²/12 for integers.

    In any other format Δ is the distance between the midpoints around the level that the weight is rounded to: cells of
    unequal width, as in Panter and Dite 1951, "Quantization distortion in pulse-count modulation".  The weight that
    sets the scale of its group is nearly exact, so with groups of 16 to 64 this is up to a third too large.
    """
    size, columns = scheme.columns_per_group(weight.shape[1]), weight.shape[1]
    if scheme.format == "int":
        return (noise_step(weight, scheme).square() / 12).repeat_interleave(size, dim=1)[:, :columns]
    groups = grid.to_groups(weight.detach().float(), size)
    params = grid.params_of(groups, scheme, grid.outer_of(weight.detach().float(), scheme))
    codes = grid.codes_of(groups, params, scheme).long()
    cells = FORMATS[scheme.format].levels().to(weight.device).cell_variance()[codes]
    zeros = groups.abs().amax(-1) == 0
    step = torch.where(zeros, 0.0, params.scale).unsqueeze(-1)
    return grid.from_groups(cells * step.square(), columns)


def output_damage(variance: Tensor, diagonal: Tensor) -> float:
    """½·tr(H·E[εᵀε]), H = 2/n Σ xxᵀ: the mean squared error of the layer's output, summed over its features.

    `variance` [out, in]; `diagonal` [in] of `LayerStats.hessian`, the only part of H that independent errors of mean 0
    involve.  The unit is the output's squared: this is not a loss, and layers cannot be compared by it.
    """
    return 0.5 * float((variance.double() * diagonal.double()).sum())


@dataclass(frozen=True, eq=False)
class Perturbation:
    """A change of the weights: {layer: error [out, in]}, and the variance [out, in] that the noise model expects.

    Noise is drawn, and sums are taken, layer by layer in this order.
    """

    error: Mapping[str, Tensor]
    variance: Mapping[str, Tensor]

    @classmethod
    def of(cls, model: LanguageModel, weights: Mapping[str, Tensor], scheme: Scheme) -> Perturbation:
        """That of quantized `weights` {layer: [out, in]} on the grid of `scheme`, in the model's order of layers."""
        own = {name: model.weight(name) for name in model.matrices() if name in weights}
        error = {name: weights[name].float() - weight.float() for name, weight in own.items()}
        return cls(error, {name: noise_variance(weight, scheme) for name, weight in own.items()})


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
        """½ εᵀFε of the error itself in these layers together, one estimate per window: [windows]."""
        return 0.5 * np.square(self.projection[:, :, layers].sum(-1)).mean(1)

    def scatter(self, layers: slice = slice(None)) -> float:
        """Standard deviation of ½ εᵀFε over roundings, in these layers together; NaN for a single window."""
        pairs = self.overlap[:, layers].sum(-1)
        return float((0.5 * np.square(pairs).mean()) ** 0.5) if len(pairs) else np.nan


@dataclass(eq=False)
class _Moments:
    """Sums over tokens for one layer: inputs squared [in], gradients squared [out], and the number of tokens."""

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
    """The second-order damage of each perturbation, on windows `ids` [windows, time], whose own labels are not used.

    Labels are drawn `draws` times for each window, with a generator seeded by `seed`.  Windows pass one at a time, so
    that each gradient belongs to one window whatever the layers do with a batch, and in random order, so that pairs are
    not neighbours in the text.  Memory holds two gradients.  tick(1) after each window.
    """
    layers = tuple(model.linears())
    generator = torch.Generator(model.device).manual_seed(seed)
    order = torch.randperm(len(ids), generator=torch.Generator().manual_seed(seed))
    shape = (len(perturbations), len(ids), len(layers))
    expected, overlap, projection = np.zeros(shape), np.zeros(shape), np.zeros((*shape[:2], draws, shape[2]))
    moments: dict[str, _Moments] = {}
    before: dict[str, Tensor] = {}
    for window, row in enumerate(ids[order].to(device=model.device, dtype=torch.long).split(1)):
        passes = gradients(model, row, lambda probability: drawn(probability, generator), draws)
        for draw, found in enumerate(passes):
            for layer, name in enumerate(layers):
                if name not in found:
                    continue
                _count(moments, name, *found[name], first=draw == 0)
                score = found[name][1].T @ found[name][0]
                for index, one in enumerate(perturbations):
                    if name not in one.error:
                        continue
                    expected[index, window, layer] += float((score.square() * one.variance[name]).sum())
                    projection[index, window, draw, layer] = float((score * one.error[name]).sum())
                    if draw == 0 and name in before:
                        overlap[index, window, layer] = float((score * one.variance[name] * before[name]).sum())
                if draw == 0:
                    before[name] = score
        if tick:
            tick(1)
    time = ids.shape[1] - 1
    return [
        Curvature(
            layers,
            0.5 * expected[index] / (draws * time),
            projection[index] / time**0.5,
            overlap[index, 1:] / time,
            *_factored(layers, one, moments, draws * len(ids) * time),
        )
        for index, one in enumerate(perturbations)
    ]


def slope(
    model: LanguageModel, ids: Tensor, perturbations: Sequence[Perturbation], *, tick: Tick | None = None
) -> list[tuple[np.ndarray, np.ndarray]]:
    """(⟨∇L, ε⟩, its standard deviation under the noise model) of each perturbation, each [layers], nats per token.

    ∇L is the gradient of the mean loss on `ids` [windows, time] with their own labels.  Memory holds one gradient.
    """
    layers = tuple(model.linears())
    mean = mean_gradient(model, ids, tick=tick)
    return [_along(layers, mean, one) for one in perturbations]


def _along(layers: Sequence[str], mean: Mapping[str, Tensor], one: Perturbation) -> tuple[np.ndarray, np.ndarray]:
    first, spread = np.zeros(len(layers)), np.zeros(len(layers))
    for layer, name in enumerate(layers):
        if name in one.error:
            first[layer] = float((mean[name] * one.error[name]).sum())
            spread[layer] = float((mean[name].square() * one.variance[name]).sum()) ** 0.5
    return first, spread


def _count(moments: dict[str, _Moments], name: str, inputs: Tensor, outputs: Tensor, *, first: bool) -> None:
    own = moments.setdefault(name, _Moments(torch.zeros_like(inputs[0]), torch.zeros_like(outputs[0])))
    own.gradients += outputs.square().sum(0)
    if first:  # the inputs are the same for every draw
        own.inputs += inputs.square().sum(0)
        own.tokens += len(inputs)


def _factored(
    layers: Sequence[str], one: Perturbation, moments: Mapping[str, _Moments], samples: int
) -> tuple[np.ndarray, np.ndarray]:
    """(`kfac`, `output_error`) of a `Curvature`; `samples` is the number of labels drawn."""
    kfac, output = np.zeros(len(layers)), np.zeros(len(layers))
    for layer, name in enumerate(layers):
        if name in one.error and name in moments:
            own = moments[name]
            diagonal = own.inputs * (2 / own.tokens)  # of LayerStats.hessian, without its [in, in] entries
            output[layer] = output_damage(one.variance[name], diagonal)
            weighted = one.variance[name] * (own.gradients / samples)[:, None]
            kfac[layer] = 0.5 * output_damage(weighted, diagonal)
    return kfac, output
