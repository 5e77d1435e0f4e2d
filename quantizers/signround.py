"""SignRound (Cheng et al. 2023, arXiv 2309.05516): learn which way to round, by the signs of gradients.

Codes are clamp(round(w/s + v) + z) with an offset v in [−½, ½] for each weight, and the range of each group is
[β·min w, α·max w] with α and β in [½, 1].  All three are moved against the sign of the gradient of the layer's output
error, tr(ΔW·H·ΔWᵀ), with a step that falls linearly from 1/steps to 0; rounding passes gradients through unchanged.
Rows do not depend on each other, and each keeps the best codes that it has seen.  The first come from plain
rounding, so no row is worse than RTN on the error that is minimised.

What differs from the paper: the paper minimises the output error of a whole decoder block over batches of activations
that are drawn anew at each step, so that its layers can correct each other.  Here it is each layer's own error over all
calibration tokens, which H holds exactly: a step costs one product, and gradients have no noise.  Shared calibration is
the default; with `--calibration sequential`, layers see the inputs that quantized layers leave, as in the paper.

With the option `mismatch`, layers see those too, and the error is that of the output that the layer has in the
full-precision model, ‖WX − ŴX̃‖² = tr(ΔW·H·ΔWᵀ) − 2 tr(W·M·ΔWᵀ) + a constant (`LayerStats.mismatch`): a layer corrects
what the layers before it did wrong, as the block's output does in the paper.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from quantizers import grid
from quantizers.base import QuantizedWeight, Quantizer
from quantizers.options import option
from quantizers.scheme import Scheme
from quantizers.stats import LayerStats, finite_hessian

MIN_RANGE = 0.5
"""The smallest share of a group's range."""


@dataclass(frozen=True)
class SignRound(Quantizer):
    """Rounding offsets and ranges learned by signed gradient descent on the layer's output error."""

    name = "signround"
    version = "1"
    needs_stats = True
    default_calibration = "shared"
    source = "Cheng et al. 2023 (arXiv 2309.05516)"

    steps: int = option(200, "Steps of signed gradient descent.", low=1, high=100_000)
    ranges: bool = option(True, "Learn the range of every group too, not only offsets of rounding.")
    mismatch: bool = option(
        False, "Aim at the outputs of the full-precision model, from the inputs of the quantized one.", added=True
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mismatch:
            object.__setattr__(self, "needs_mismatch", True)
            object.__setattr__(self, "default_calibration", "sequential")

    @torch.no_grad()
    def quantize(self, weight: Tensor, scheme: Scheme, stats: LayerStats | None = None) -> QuantizedWeight:
        """Quantize `weight` [out, in].  Raises QuantizationError if the statistics are not finite.

        The report has the error of the result (error) and of plain rounding (error_rounded), without the constant that
        `mismatch` adds, and n_tokens behind H.
        """
        weight = self.prepare(weight, scheme, stats)
        assert stats is not None  # checked by `prepare`
        hessian, columns = finite_hessian(stats, weight.device), weight.shape[1]
        aim = weight @ stats.mismatch.to(weight.device) if self.mismatch else torch.zeros_like(weight)
        size = scheme.columns_per_group(columns)
        groups = grid.to_groups(weight, size)
        low, high = groups.amin(-1), groups.amax(-1)
        offset, top, bottom = torch.zeros_like(groups), torch.ones_like(high), torch.ones_like(low)
        best = torch.full_like(weight[:, 0], torch.inf)
        kept: list[Tensor] = [torch.empty_like(groups), torch.empty_like(low), torch.empty_like(low)]
        first = best
        for step in range(self.steps + 1):
            scale, zero = grid.params_of_range(bottom * low, top * high, scheme.bits, scheme.symmetric)
            ratio = groups / scale.unsqueeze(-1)
            free = (ratio + offset).round_() + zero.unsqueeze(-1)
            codes = free.clamp(0, 2**scheme.bits - 1)
            delta = grid.from_groups(grid.decode(codes, scale, zero), columns) - weight
            slope = delta @ hessian - aim
            error = ((slope - aim) * delta).sum(1)
            first = error if step == 0 else first
            better = error < best
            best = torch.where(better, error, best)
            for old, new in zip(kept, (codes, scale, zero)):
                old[better] = new[better]
            rate = (1 - step / self.steps) / self.steps
            slope = grid.to_groups(slope, size)
            inside = free == codes
            offset.sub_(rate * slope.sign() * inside).clamp_(-0.5, 0.5)
            if self.ranges:
                # dŵ/ds is the rounding error in steps inside the range, and the code itself beyond it.
                by_scale = (slope * (codes - zero.unsqueeze(-1) - torch.where(inside, ratio, 0.0))).sum(-1)
                top.sub_(rate * by_scale.sign() * (high > 0)).clamp_(MIN_RANGE, 1)
                bottom.sub_(rate * by_scale.sign() * (low < 0)).clamp_(MIN_RANGE, 1)
        codes = grid.from_groups(kept[0], columns).to(torch.uint8).contiguous()
        report = {"error": float(best.sum()), "error_rounded": float(first.sum()), "n_tokens": stats.n_tokens}
        return QuantizedWeight(codes, kept[1], kept[2], scheme, size, report=report)
