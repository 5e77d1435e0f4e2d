"""Scales of input channels, moved out of a layer into the one before it, so that formats without them can hold it.

A layer computes Ŵ·diag(1/s)·x.  Where x comes from a norm's weight or from the rows of another linear layer, these can
be divided by s instead: the same function, up to float rounding.  A quantized layer's rows are divided exactly, in its
own scales.  Which layer that is depends on the architecture: here the blocks of Llama and those built alike.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from ptq_eval.errors import Obstacle, Refusal, refused
from quantizers import QuantizedWeight

LLAMA_LIKE = ("llama", "mistral", "qwen2", "smollm3", "olmo", "helium", "granite")
"""Values of `model_type` whose blocks have these names, and norms that multiply by their weight."""

SOURCES = {
    "self_attn.q_proj": "input_layernorm",
    "self_attn.k_proj": "input_layernorm",
    "self_attn.v_proj": "input_layernorm",
    "self_attn.o_proj": "self_attn.v_proj",
    "mlp.gate_proj": "post_attention_layernorm",
    "mlp.up_proj": "post_attention_layernorm",
    "mlp.down_proj": "mlp.up_proj",
}
"""Where the input of a layer comes from, within a block."""


def folded(
    layers: Mapping[str, QuantizedWeight], dense: Mapping[str, Tensor], model_type: str
) -> tuple[dict[str, QuantizedWeight], dict[str, Tensor]] | Refusal:
    """`layers` without input scales, and the other tensors that change with them, by name; or why that cannot be done.

    `dense` are the tensors of the model that are not quantized.  No argument is changed.
    """
    scales = _by_source(layers, model_type)
    if isinstance(scales, Refusal):
        return scales
    found = {name: replace(layer, input_scale=None) for name, layer in layers.items()}
    changed: dict[str, Tensor] = {}
    for source, scale in scales.items():
        outputs = len(found[source].codes if source in found else dense[f"{source}.weight"])
        if outputs != len(scale):
            return refused(Obstacle.SHARED_OUTPUTS, source=source, outputs=outputs, inputs=len(scale))
        if source not in found:
            changed[f"{source}.weight"] = _divided(dense[f"{source}.weight"], scale)
        elif found[source].scheme.format == "int":
            found[source] = replace(found[source], scale=_divided(found[source].scale, scale))
        else:
            return refused(Obstacle.INDIVISIBLE_SCALES, source=source, format=found[source].scheme.name)
        if f"{source}.bias" in dense:
            changed[f"{source}.bias"] = _divided(dense[f"{source}.bias"], scale)
    return found, changed


def _by_source(layers: Mapping[str, QuantizedWeight], model_type: str) -> dict[str, Tensor] | Refusal:
    """The scale by which each preceding layer is to be divided, or why that is not known."""
    found: dict[str, Tensor] = {}
    for name, layer in layers.items():
        if layer.input_scale is None:
            continue
        part = next((part for part in SOURCES if name.endswith("." + part)), None)
        if model_type not in LLAMA_LIKE or part is None:
            return refused(Obstacle.UNKNOWN_SOURCE, layer=name, model_type=model_type)
        block = name.removesuffix(part)
        for sibling in (block + other for other, source in SOURCES.items() if source == SOURCES[part]):
            scale = layers[sibling].input_scale if sibling in layers else None
            if scale is None or not torch.equal(scale, layer.input_scale):
                return refused(Obstacle.UNEQUAL_SCALES, layer=name, sibling=sibling)
        found[block + SOURCES[part]] = layer.input_scale
    return found


def _divided(tensor: Tensor, scale: Tensor) -> Tensor:
    """`tensor` [n, …] by `scale` [n], in float32."""
    return tensor.float() / scale.reshape(-1, *[1] * (tensor.ndim - 1))
