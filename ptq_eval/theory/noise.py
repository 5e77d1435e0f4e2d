"""The uniform model of quantization noise: an error of mean 0 and variance Δ²/12, independent for every weight.

A weight that is rounded to a grid of step Δ, and that lies anywhere between two grid points with equal probability,
is off by a uniform variable on [−Δ/2, Δ/2].  Its variance is Δ²/12 (Bennett 1948, "Spectra of quantized signals",
section III).  Here Δ is the scale of the weight's group, as `quantizers.grid` defines it: (max − min)/(2^b − 1), so
Δ² falls as 4^−b up to the grid's own factor 4^b/(2^b − 1)², which is 1.78 at 2 bits, 1.14 at 4 and 1.01 at 8.

What the model leaves out: the weights that set a group's range lie on or near the grid; a zero weight is exact; errors
of a method that shifts one weight to make up for another (GPTQ), scales columns (AWQ) or clips its range are neither
independent nor of this variance.  For those, `curvature` takes the error itself.
"""

from __future__ import annotations

import torch
from torch import Tensor

from quantizers import Scheme, grid


def step(weight: Tensor, scheme: Scheme) -> Tensor:
    """Δ of every group of `weight` [out, in]: [out, groups], float32; 0 for a group of zeros, which is coded exactly.

    Raises GroupSizeRangeError for a group that is larger than a row.
    """
    groups = grid.to_groups(weight.detach().float(), scheme.columns_per_group(weight.shape[1]))
    scale, _ = grid.find_params(groups, scheme.bits, scheme.symmetric)
    return torch.where(groups.abs().amax(-1) > 0, scale, 0.0)


def variance(weight: Tensor, scheme: Scheme) -> Tensor:
    """E[ε²] = Δ²/12 of every entry of `weight`: [out, in], float32."""
    size, columns = scheme.columns_per_group(weight.shape[1]), weight.shape[1]
    return (step(weight, scheme).square() / 12).repeat_interleave(size, dim=1)[:, :columns]


def output_damage(variance: Tensor, diagonal: Tensor) -> float:
    """½·tr(H·E[εᵀε]), H = 2/n Σ xxᵀ: the mean squared error of the layer's output, summed over its features.

    `variance` [out, in]; `diagonal` [in] of `LayerStats.hessian`.  Independent errors of mean 0 meet no other entry of
    H.  The unit is that of the output squared: this is no loss, and layers cannot be compared by it.
    """
    return 0.5 * float((variance.double() * diagonal.double()).sum())
