"""RTN, round to nearest: every weight is rounded to the nearest point of its group's grid.

The baseline that needs no data.  Its only choice is the range of a group: from the smallest to the largest weight, or
with `mse` a shrunken range with the least sum of |Δw|^2.4, found by the search of the GPTQ authors' code.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from quantizers import grid
from quantizers.base import ALL_FORMATS, QuantizedWeight, Quantizer
from quantizers.options import option
from quantizers.scheme import Scheme
from quantizers.stats import LayerStats


@dataclass(frozen=True)
class RTN(Quantizer):
    """Round to nearest on a min-max grid."""

    name = "rtn"
    version = "1"
    needs_stats = False
    default_calibration = "none"
    source = "the grid of Frantar et al. 2022 (arXiv 2210.17323)"
    formats = ALL_FORMATS

    mse: bool = option(False, "Shrink each group's range to where the sum of |error|^2.4 is least.")

    @torch.no_grad()
    def quantize(self, weight: Tensor, scheme: Scheme, stats: LayerStats | None = None) -> QuantizedWeight:
        """Quantize `weight` [out, in]; `stats` are not used."""
        weight = self.prepare(weight, scheme, stats)
        size = scheme.columns_per_group(weight.shape[1])
        groups = grid.to_groups(weight, size)
        params = grid.params_of(groups, scheme, grid.outer_of(weight, scheme), self.mse)
        codes = grid.from_groups(grid.codes_of(groups, params, scheme), weight.shape[1]).contiguous()
        return QuantizedWeight(codes, params.scale, params.zero, scheme, size, outer=params.outer)
