"""SmoothQuant (Xiao et al. 2022, arXiv 2211.10438), its weight side: move the range of activations into the weights.

Each input channel is divided by s_j = max|x_j|^α / max|w_j|^(1 − α), its weights are multiplied by it before rounding
(their equation 4).  Layers that share an input share s, with max|w_j| over all of them.  A channel that was always
zero, or that no weight uses, keeps s = 1.

What is measured is the migration alone: activations stay in full precision, so that there is only its price for the
weights, and none of the gain for 8-bit activations that it is made for.  The scales stay in the layer as `input_scale`
and are counted in `bits_per_weight`; the paper folds 1/s into the layer before.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from quantizers import grid
from quantizers.base import ALL_FORMATS, QuantizedWeight, Quantizer
from quantizers.errors import OptionValueError
from quantizers.options import option
from quantizers.scheme import Scheme
from quantizers.stats import LayerStats, finite_hessian

LEAST, MOST = 1e-5, 1e5
"""Limits of a channel's scale."""


@dataclass(frozen=True)
class SmoothQuant(Quantizer):
    """Range of activations moved into the weights before rounding; weights only."""

    name = "smoothquant"
    version = "1"
    needs_stats = True
    default_calibration = "shared"
    source = "Xiao et al. 2022 (arXiv 2211.10438)"
    formats = ALL_FORMATS

    alpha: float = option(0.5, "Share of the activations' range that moves into the weights, 0 to 1.", low=0, high=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.alpha > 1:
            raise OptionValueError(f"smoothquant option 'alpha': allowed is 0 to 1, got {self.alpha!r}")

    def quantize(self, weight: Tensor, scheme: Scheme, stats: LayerStats | None = None) -> QuantizedWeight:
        """Quantize `weight` [out, in].  Raises QuantizationError if the statistics are not finite."""
        return self.quantize_group([weight], scheme, stats)[0]

    @torch.no_grad()
    def quantize_group(
        self, weights: Sequence[Tensor], scheme: Scheme, stats: LayerStats | None = None
    ) -> list[QuantizedWeight]:
        """Quantize layers that share one input, `weights[i]` [out_i, in], with one scale per input channel."""
        prepared = self.prepare_grid(weights, [scheme], stats)
        if not prepared or stats is None:
            return []
        finite_hessian(stats, prepared[0].device)
        largest = torch.stack([weight.abs().amax(0) for weight in prepared]).amax(0)
        scales = migration(stats.max_abs.to(largest), largest, self.alpha)
        return [self._rounded(weight, scales, scheme, stats.n_tokens) for weight in prepared]

    def _rounded(self, weight: Tensor, scales: Tensor, scheme: Scheme, n_tokens: int) -> QuantizedWeight:
        size, scaled = scheme.columns_per_group(weight.shape[1]), weight * scales
        groups = grid.to_groups(scaled, size)
        params = grid.params_of(groups, scheme, grid.outer_of(scaled, scheme))
        codes = grid.from_groups(grid.codes_of(groups, params, scheme), weight.shape[1]).contiguous()
        extra = {"input_scale": scales.clone(), "outer": params.outer, "report": {"n_tokens": n_tokens}}
        return QuantizedWeight(codes, params.scale, params.zero, scheme, size, **extra)


def migration(inputs: Tensor, weights: Tensor, alpha: float) -> Tensor:
    """s [in] = max|x|^α / max|w|^(1 − α) from max|x| `inputs` [in] and max|w| `weights` [in]; 1 where either is 0."""
    scales = inputs.pow(alpha) / weights.pow(1 - alpha)
    return torch.where((inputs > 0) & (weights > 0), scales.clamp(LEAST, MOST), 1.0)
