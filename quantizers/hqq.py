"""HQQ, half-quadratic quantization: zero points under which few weights are far from their codes, without data.

Badri & Shaji 2023, https://mobiusml.github.io/hqq_blog/.  With a fixed scale s per group, the zero point z minimises
the sparsity-promoting norm, p < 1, of the weights' own errors,

    argmin_z φ(W − Q_z⁻¹(Q_z(W))),   φ = ‖·‖_p^p,   Q_z(W) = clamp(round(W/s + z)),   Q_z⁻¹(C) = s·(C − z).

An extra variable E for the error, with half-quadratic splitting, gives two steps that have closed forms:

    E ← argmin_E φ(E) + β/2·‖E − (W − Q⁻¹(Q(W)))‖²  =  shrink(W − Q⁻¹(Q(W)), β)           (sp1)
    z ← argmin_z ½·‖Q_z⁻¹(Q(W)) − (W − E)‖²         =  mean over the group of Q(W) − (W − E)/s     (sp2)
    β ← κ·β

where shrink(x, β) = sign(x)·max(0, |x| − |x|^(p−1)/β), the generalised soft-thresholding operator.  As in the authors'
package, all groups of a layer stop together, after the step before which the layer's mean |W − Q⁻¹(Q(W))| did not
fall.

Zero points are real numbers here, not codes: they take 16 bits, and integer files cannot hold them.  Ranges are not
widened to contain 0.  What differs from the package (hqq 0.2.8, axis 1): it gives groups whose range is below 1e-4 the
scale 1, and no scale is below 5e-5, so that layers of small weights are lost; and it refuses ragged groups.

The authors define no symmetric grid.  Under a symmetric scheme the zero point stays 2^(b−1), and the same splitting is
used for the scale, as torchao does: s ← Σ(C − z)(W − E) / Σ(C − z)².
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from quantizers import grid
from quantizers.base import QuantizedWeight, Quantizer
from quantizers.options import option
from quantizers.scheme import Scheme
from quantizers.stats import LayerStats


@dataclass(frozen=True)
class HQQ(Quantizer):
    """Zero points of least p-norm error, p < 1, without data."""

    name = "hqq"
    version = "1"
    needs_stats = False
    default_calibration = "none"
    source = "Badri & Shaji 2023 (mobiusml.github.io/hqq_blog)"

    norm: float = option(0.7, "The power p of the norm of the errors, at most 1.", low=0, high=1)
    beta: float = option(10.0, "β of the first step: errors shrink by |error|^(p − 1)/β.", low=1e-3, high=1e6)
    kappa: float = option(1.01, "Factor of β from step to step.", low=1, high=10)
    steps: int = option(20, "Steps at most; all groups stop when the mean |error| no longer falls.", low=1, high=10_000)
    round_zero: bool = option(False, "Begin with rounded zero points, as the authors' package does at 4 bits.")

    @torch.no_grad()
    def quantize(self, weight: Tensor, scheme: Scheme, stats: LayerStats | None = None) -> QuantizedWeight:
        """Quantize `weight` [out, in]; `stats` are not used.  The report has the steps taken."""
        weight = self.prepare(weight, scheme, stats)
        columns = weight.shape[1]
        size = scheme.columns_per_group(columns)
        fill = -columns % size
        padded = functional.pad(weight.unsqueeze(0), (0, fill), mode="replicate")[0] if fill else weight
        groups = padded.unflatten(1, (-1, size))  # [out, groups, size]; a repeated weight changes no range
        real = grid.to_groups(weight.new_ones(1, columns), size)
        inverse, zero = self._start(groups, scheme)
        step, error = 0, float("inf")
        for step in range(self.steps):
            codes = _nearest(groups, inverse, zero, scheme.bits)
            off = groups - (codes - zero) / inverse
            target = groups - _shrunk(off, self.beta * self.kappa**step, self.norm)  # W − E of (sp1)
            inverse, zero = _fitted(codes, target, inverse, zero, real, scheme.symmetric)  # (sp2)
            now = float((off.abs() * real).sum() / weight.numel())
            if not now < error:
                break
            error = now
        codes = grid.from_groups(_nearest(groups, inverse, zero, scheme.bits), columns)
        params = (1 / inverse).squeeze(-1), zero.squeeze(-1)
        codes = codes.to(torch.uint8).contiguous()
        return QuantizedWeight(codes, *params, scheme, size, report={"steps": step + 1})

    def _start(self, groups: Tensor, scheme: Scheme) -> tuple[Tensor, Tensor]:
        """1/s and z of the full range, each [out, groups, 1]."""
        if scheme.symmetric:
            scale, zero = grid.find_params(groups, scheme.bits, symmetric=True)
            inverse = 1 / scale.unsqueeze(-1)
            return torch.where(inverse.isfinite(), inverse, 1.0), zero.unsqueeze(-1)
        low, high = groups.amin(-1, keepdim=True), groups.amax(-1, keepdim=True)
        inverse = (2**scheme.bits - 1) / (high - low)
        inverse = torch.where(inverse.isfinite(), inverse, 1.0)  # one value only: it has the code 0
        zero = -low * inverse
        return inverse, zero.round() if self.round_zero else zero


def _nearest(groups: Tensor, inverse: Tensor, zero: Tensor, bits: int) -> Tensor:
    return (groups * inverse + zero).round_().clamp_(0, 2**bits - 1)


def _shrunk(error: Tensor, beta: float, norm: float) -> Tensor:
    """The proximal operator of φ/β at `error`; the power of an error of 0 is infinite, and so it stays 0."""
    size = error.abs()
    return (size - size.pow(norm - 1) / beta).clamp_(min=0) * error.sign()


def _fitted(
    codes: Tensor, target: Tensor, inverse: Tensor, zero: Tensor, real: Tensor, symmetric: bool
) -> tuple[Tensor, Tensor]:
    """1/s and z of least squared error for these `codes`; `real` is 0 in columns that only fill a group."""
    if not symmetric:
        return inverse, ((codes - target * inverse) * real).sum(-1, keepdim=True) / real.sum(-1, keepdim=True)
    offset = (codes - zero) * real
    fitted = offset.square().sum(-1, keepdim=True) / (offset * target).sum(-1, keepdim=True)
    usable = (fitted > 0) & fitted.isfinite() & (1 / fitted).isfinite()
    return torch.where(usable, fitted, inverse), zero
