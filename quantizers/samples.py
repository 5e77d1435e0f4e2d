"""Artificial layers to try a quantizer on, and the error of its result."""

from __future__ import annotations

import torch
from torch import Tensor

from quantizers.base import QuantizedWeight
from quantizers.stats import LayerStats

COLUMNS = 40  # not a multiple of 16, so that groups of 16 are ragged


def sample_layer(
    rows: int = 12, columns: int = COLUMNS, tokens: int = 256, seed: int = 0, device: str = "cpu"
) -> tuple[Tensor, Tensor]:
    """A random weight [rows, columns] and inputs [tokens, columns], realistic ones.

    Inputs are correlated, and some channels have large activations.
    """
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(columns, columns, generator=generator) / columns**0.5
    channel_scale = torch.randn(columns, generator=generator).exp()
    noise = torch.randn(2, tokens, columns, generator=generator)
    inputs = (noise[0] @ mixing + 0.5 * noise[1] + 0.2) * channel_scale
    weight = 0.05 * torch.randn(rows, columns, generator=generator)
    return weight.to(device), inputs.to(device)


def output_error(weight: Tensor, quantized: QuantizedWeight, stats: LayerStats) -> float:
    """tr(ΔW·H·ΔWᵀ): twice the mean squared error of the layer's output, summed over its features."""
    delta = quantized.dequantize() - weight
    return float(((delta @ stats.hessian) * delta).sum())
