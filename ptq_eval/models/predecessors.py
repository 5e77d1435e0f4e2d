"""Which layer comes before another, and whether it can take the scales of the other's input channels.

A layer computes Ŵ·diag(1/s)·x.  Where x comes from a norm's weight or from the rows of another linear layer, these can
be divided by s instead.  Which layer that is depends on the architecture: here the blocks of Llama and those built
alike.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from ptq_eval.models.refusal import Obstacle, Refusal, refused
from quantizers import Scheme

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


def source_of(name: str, model_type: str) -> str:
    """The norm or layer before a layer; empty where that is not known."""
    part = next((part for part in SOURCES if name.endswith("." + part)), None)
    if part is None or model_type not in LLAMA_LIKE:
        return ""
    return name.removesuffix(part) + SOURCES[part]


def obstacle(
    name: str,
    scales: Mapping[str, Tensor],
    outputs: Mapping[str, int],
    model_type: str,
    scheme_of: Callable[[str], Scheme | None],
) -> Refusal | None:
    """Why the layer before `name` cannot take the scales of its input channels; None where it can.

    `scales` [in] of every layer that has any, `outputs` of every linear layer, both by name; `scheme_of` gives the
    scheme of a quantized layer, None for others.
    """
    source, own = source_of(name, model_type), scales[name]
    if not source:
        return refused(Obstacle.UNKNOWN_SOURCE, layer=name, model_type=model_type)
    for sibling in outputs:
        other = scales.get(sibling)
        if source_of(sibling, model_type) == source and (other is None or not torch.equal(other, own)):
            return refused(Obstacle.UNEQUAL_SCALES, layer=name, sibling=sibling)
    if outputs.get(source, len(own)) != len(own):
        return refused(Obstacle.SHARED_OUTPUTS, source=source, outputs=outputs[source], inputs=len(own))
    scheme = scheme_of(source)
    if scheme is not None and scheme.format != "int":
        return refused(Obstacle.INDIVISIBLE_SCALES, source=source, format=scheme.name)
    return None
