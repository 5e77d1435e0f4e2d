"""Scales of input channels, moved out of a layer into the one before it, so that formats without them can hold it.

The same function, up to float rounding; a quantized layer's rows are divided exactly, in its own scales.  Which layer
that is, and where none can take them, is in `models.predecessors`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from ptq_eval.models.predecessors import obstacle, source_of
from ptq_eval.models.refusal import Refusal
from quantizers import QuantizedWeight


def folded(
    layers: Mapping[str, QuantizedWeight], dense: Mapping[str, Tensor], model_type: str
) -> tuple[dict[str, QuantizedWeight], dict[str, Tensor]] | Refusal:
    """`layers` without input scales, and the other tensors that change with them, by name; or why that cannot be done.

    `dense` are the tensors of the model that are not quantized.  No argument is changed.
    """
    scales = {name: layer.input_scale for name, layer in layers.items() if layer.input_scale is not None}
    outputs = {name.removesuffix(".weight"): len(tensor) for name, tensor in dense.items() if tensor.ndim == 2}
    outputs |= {name: len(layer.codes) for name, layer in layers.items()}
    schemes = {name: layer.scheme for name, layer in layers.items()}
    for name in scales:
        if why := obstacle(name, scales, outputs, model_type, schemes.get):
            return why
    found = {name: replace(layer, input_scale=None) for name, layer in layers.items()}
    changed: dict[str, Tensor] = {}
    for source, scale in {source_of(name, model_type): scale for name, scale in scales.items()}.items():
        if source in found:
            found[source] = replace(found[source], scale=_divided(found[source].scale, scale))
        else:
            changed[f"{source}.weight"] = _divided(dense[f"{source}.weight"], scale)
        if f"{source}.bias" in dense:
            changed[f"{source}.bias"] = _divided(dense[f"{source}.bias"], scale)
    return found, changed


def _divided(tensor: Tensor, scale: Tensor) -> Tensor:
    """`tensor` [n, …] by `scale` [n], in float32."""
    return tensor.float() / scale.reshape(-1, *[1] * (tensor.ndim - 1))
