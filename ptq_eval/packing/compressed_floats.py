"""Floating-point formats in compressed-tensors: FP8, MXFP8, MXFP4 and NVFP4, which vLLM and transformers read.

    fp8_e4m3           float-quantized       weight float8 [out, in], weight_scale float32 [out, groups]
    mxfp8_e4m3         mxfp8-quantized       weight float8 [out, in], weight_scale uint8 [out, in/32], E8M0
    mxfp4              mxfp4-pack-quantized  weight_packed uint8 [out, in/2], weight_scale uint8 [out, in/32], E8M0
    nvfp4, nvfp4_46    nvfp4-pack-quantized  weight_packed uint8 [out, in/2], weight_scale float8 [out, in/16],
                                             weight_global_scale float32 [1]

Two FP4 codes are in a byte, the even column in the low nibble.  The global scale divides: w = level·(scale/global), so
it is the inverse of ours, and weights may differ in the last bit of a float32.  compressed-tensors 0.20 unpacks FP4 in
bfloat16: exact for MXFP4, whose scales are powers of two, and a rounding of each weight to 8 bits for NVFP4.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from quantizers import QuantizedWeight, Scheme

FILES = {
    "fp8_e4m3": "float-quantized",
    "mxfp8_e4m3": "mxfp8-quantized",
    "mxfp4": "mxfp4-pack-quantized",
    "nvfp4": "nvfp4-pack-quantized",
    "nvfp4_46": "nvfp4-pack-quantized",
}
"""The package's name of the layout by our number format."""

_E2M1 = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])


def tensors(layer: QuantizedWeight) -> dict[str, Tensor]:
    """What a file holds in place of the layer's weight."""
    stored, name = layer.stored_scales(), layer.scheme.format
    scale = stored["scale"].contiguous()
    if name.endswith("fp8_e4m3"):
        return {"weight": layer.codes.view(torch.float8_e4m3fn).contiguous(), "weight_scale": scale}
    packed = layer.codes[:, ::2] | layer.codes[:, 1::2] << 4
    if name == "mxfp4":
        return {"weight_packed": packed, "weight_scale": scale}
    found = {"weight_packed": packed, "weight_scale": scale.view(torch.float8_e4m3fn)}
    return {**found, "weight_global_scale": 1 / stored["tensor_scale"].reshape(1)}


def weight(found: Mapping[str, Tensor], scheme: Scheme) -> Tensor:
    """The weight [out, in], float32, that such tensors represent."""
    scale = found["weight_scale"]
    factor = torch.exp2(scale.float() - 127) if scale.dtype == torch.uint8 else scale.float()
    if "weight_global_scale" in found:
        factor = factor / found["weight_global_scale"]
    if "weight" in found:
        values = found["weight"].float()
    else:
        both = torch.stack([found["weight_packed"] & 15, found["weight_packed"] >> 4], -1).flatten(1).long()
        values = _E2M1[both & 7] * (1 - 2 * (both >> 3))
    return values * factor.repeat_interleave(values.shape[1] // factor.shape[1], 1)


def arguments(scheme: Scheme, grouped: bool) -> dict[str, Any]:
    """The package's description of the weights; `grouped` where a row has several scales."""
    two_levels = scheme.format.startswith("nvfp4")
    found: dict[str, Any] = {"num_bits": scheme.bits, "type": "float", "symmetric": True, "dynamic": False}
    if scheme.format == "fp8_e4m3" and not grouped:
        return {**found, "strategy": "channel", "group_size": None}
    found |= {"strategy": "tensor_group" if two_levels else "group", "group_size": scheme.group_size}
    if two_levels:
        found["scale_dtype"] = "torch.float8_e4m3fn"
    elif scheme.format.startswith("mx"):
        found["scale_dtype"] = "torch.uint8"
    return found
