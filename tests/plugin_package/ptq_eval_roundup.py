"""Round to nearest on grids whose scale is a power of two, so that dequantizing is a shift.

The scale that covers the group's range is rounded up to the next power of two, hence nothing is clipped.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from quantizers import LayerStats, QuantizedWeight, Quantizer, Scheme, grid, option


@dataclass(frozen=True)
class PowerOfTwo(Quantizer):
    """Round to nearest on a grid whose scale is a power of two."""

    name = "power-of-two"
    version = "1"
    needs_stats = False
    default_calibration = "none"

    smallest: int = option(-60, "Exponent below which no scale goes.", low=-120)

    @torch.no_grad()
    def quantize(self, weight: Tensor, scheme: Scheme, stats: LayerStats | None = None) -> QuantizedWeight:
        """Quantize `weight` [out, in]; `stats` are not used."""
        weight = self.prepare(weight, scheme, stats)
        size = scheme.columns_per_group(weight.shape[1])
        groups = grid.to_groups(weight, size)
        scale, _ = grid.find_params(groups, scheme.bits, scheme.symmetric)
        scale = torch.exp2(scale.log2().ceil().clamp(min=self.smallest))
        zero = torch.full_like(scale, 2 ** (scheme.bits - 1))
        if not scheme.symmetric:
            zero = (-groups.amin(-1).clamp(max=0) / scale).round().clamp(max=2**scheme.bits - 1)
        codes = grid.encode(groups, scale, zero, scheme.bits)
        codes = grid.from_groups(codes, weight.shape[1]).to(torch.uint8)
        return QuantizedWeight(codes, scale, zero, scheme, size)
