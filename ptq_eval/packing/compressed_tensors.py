"""compressed-tensors, read by transformers and vLLM: integers of 2 to 8 bits in `pack-quantized`, described here, and
floating-point formats, in `compressed_floats`.

    weight_packed      int32 [out, ceil(in·b/32)]     codes, packed along a row
    weight_scale       float32 [out, groups]
    weight_zero_point  int32 [ceil(out·b/32), groups]  asymmetric grids only, packed along a column
    weight_shape       int64 [2]

In this format codes are signed, w = scale·(q − z) with q and z from −2^(b−1), but both are stored with 2^(b−1) added,
which is the code and the zero of our grid.  Checked with transformers 5.23: asymmetric layers load with
compressed-tensors 0.15 to 0.17 and not with 0.18 to 0.20, which expect zeros of another shape; widths of 3, 5, 6 and 7
bits need 0.18, before which they were packed otherwise.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ptq_eval.models.refusal import Obstacle, Refusal, refused
from ptq_eval.packing import base
from ptq_eval.packing import compressed_floats as floats
from ptq_eval.packing.bits import packed, unpacked
from ptq_eval.packing.folder import FolderFormat
from quantizers import QuantizedWeight, Scheme

WIDTHS = (2, 3, 4, 5, 6, 7, 8)


class CompressedTensors(FolderFormat):
    """Scales of integers stay in float32, so the weights are those measured, bit for bit."""

    name = "compressed-tensors"
    packages = ("compressed_tensors",)

    def refusal(self, scheme: Scheme, shape: base.Shape) -> Refusal | None:
        """Integers of 2 to 8 bits, FP8 E4M3, MXFP8, MXFP4 and NVFP4 in nn.Linear layers, in whole groups."""
        if shape.transposed:
            return refused(Obstacle.CONV1D)
        if scheme.format not in ("int", *floats.FILES):
            return refused(Obstacle.NO_SUCH_TYPE, format=scheme.name, types=("integers", *floats.FILES))
        why = base.integers_only(scheme, WIDTHS) if scheme.format == "int" else None
        return why or base.whole_groups(scheme, shape)

    def refusal_of(self, layer: QuantizedWeight) -> Refusal | None:
        """Groups of reordered columns, scales of input channels, and zeros between codes."""
        return base.in_order(layer) or base.without_input_scale(layer) or base.whole_zeros(layer)

    def refusal_of_mixture(self, schemes: Sequence[Scheme]) -> Refusal | None:
        """Nothing: each layer can have settings of its own."""
        return None

    def load_options(self, schemes: Sequence[Scheme]) -> dict[str, Any]:
        """Unpacked at once: left for later, the package makes floats bfloat16 in whatever model, and since its version
        0.18 transformers expects zeros of another shape than the package packs."""
        if all(scheme.format == "int" and scheme.symmetric for scheme in schemes):
            return {}
        from transformers import CompressedTensorsConfig

        known = inspect.signature(CompressedTensorsConfig).parameters
        option: dict[str, Any] = {"dequantize": True} if "dequantize" in known else {"run_compressed": False}
        return {"quantization_config": CompressedTensorsConfig(**option)}

    def tensors(self, layer: QuantizedWeight, shape: base.Shape) -> dict[str, Tensor]:
        """See the top of this file."""
        if layer.scheme.format != "int":
            return floats.tensors(layer)
        bits = layer.scheme.bits
        found = {
            "weight_packed": packed(layer.codes, bits),
            "weight_scale": layer.scale.contiguous(),
            "weight_shape": torch.tensor(layer.codes.shape),
        }
        if not layer.scheme.symmetric:
            found["weight_zero_point"] = packed(layer.zero.T, bits).T.contiguous()
        return found

    def weight(self, tensors: Mapping[str, Tensor], scheme: Scheme, shape: base.Shape) -> Tensor:
        """scale·(q − z), with the signed q and z of this format."""
        if scheme.format != "int":
            return floats.weight(tensors, scheme)
        half = 2 ** (scheme.bits - 1)
        signed = unpacked(tensors["weight_packed"], scheme.bits, shape.columns).float() - half
        scale = tensors["weight_scale"]
        zero = torch.zeros_like(scale)
        if "weight_zero_point" in tensors:
            zero = unpacked(tensors["weight_zero_point"].T, scheme.bits, shape.rows).T.float() - half
        size = shape.columns // scale.shape[1]
        return (signed - zero.repeat_interleave(size, 1)) * scale.repeat_interleave(size, 1)

    def config(self, layers: Mapping[str, QuantizedWeight], excluded: Sequence[str]) -> dict[str, Any] | None:
        """One group of settings for all nn.Linear layers but the excluded ones; in mixed precision one per scheme."""
        by_scheme: dict[Scheme, list[str]] = {}
        for name, layer in layers.items():
            by_scheme.setdefault(layer.scheme, []).append(name)
        files = [floats.FILES.get(scheme.format, "pack-quantized") for scheme in by_scheme]
        groups = {}
        for number, (scheme, names) in enumerate(by_scheme.items()):
            grouped = any(layers[name].scale.shape[1] > 1 for name in names)
            groups[f"group_{number}"] = {
                "targets": names if len(by_scheme) > 1 else ["Linear"],
                "weights": _arguments(scheme, grouped),
                **({"format": files[number]} if len(set(files)) > 1 else {}),
            }
        return {
            "quant_method": "compressed-tensors",
            "format": files[0] if len(set(files)) == 1 else "mixed-precision",
            "quantization_status": "compressed",
            "config_groups": groups,
            "ignore": list(excluded),
        }


def _arguments(scheme: Scheme, grouped: bool) -> dict[str, Any]:
    """The settings of the layers of one scheme."""
    if scheme.format != "int":
        return floats.arguments(scheme, grouped)
    return {
        "num_bits": scheme.bits,
        "type": "int",
        "symmetric": scheme.symmetric,
        "strategy": "group" if grouped else "channel",
        "group_size": scheme.group_size if grouped else None,
        "dynamic": False,
    }
