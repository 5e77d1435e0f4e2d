"""GPTQ's format, as AutoGPTQ defined it and GPTQModel, transformers and vLLM read it: 2, 3, 4 or 8 bits.

    qweight  int32 [in·b/32, out]     codes, packed along the inputs
    qzeros   int32 [groups, out·b/32]  zeros, packed along the outputs
    scales   float16 [groups, out]
    g_idx    int32 [in]               the group of each input

The first version of the format (`gptq`) stores zeros less 1, and so cannot hold a zero of 0; the second (`gptq_v2`)
stores them as they are.  Symmetric layers, whose zero is 2^(b−1), are written in the first, which everything reads,
asymmetric ones in the second.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ptq_eval.models.refusal import Obstacle, Refusal, refused
from ptq_eval.packing import base
from ptq_eval.packing.bits import WORD, packed, unpacked
from ptq_eval.packing.folder import FolderFormat
from quantizers import QuantizedWeight, Scheme

WIDTHS = (2, 3, 4, 8)


class GPTQFormat(FolderFormat):
    """Scales are rounded to float16."""

    name = "gptq"
    packages = ("gptqmodel", "optimum")
    rounds_scales = True

    def refusal(self, scheme: Scheme, shape: base.Shape) -> Refusal | None:
        """Integers of 2, 3, 4 or 8 bits that fill whole words, in whole groups."""
        if why := base.integers_only(scheme, WIDTHS):
            return why
        for what, count in (("inputs", shape.columns), ("outputs", shape.rows)):
            if count * scheme.bits % WORD:
                return refused(Obstacle.PARTIAL_WORD, count=count, what=what, bits=scheme.bits, word=WORD)
        return base.whole_groups(scheme, shape)

    def refusal_of(self, layer: QuantizedWeight) -> Refusal | None:
        """Scales beyond float16, scales of input channels, and zeros between codes."""
        return base.fits_half(layer) or base.without_input_scale(layer) or base.whole_zeros(layer)

    def tensors(self, layer: QuantizedWeight, shape: base.Shape) -> dict[str, Tensor]:
        """See the top of this file."""
        bits = layer.scheme.bits
        return {
            "qweight": packed(layer.codes, bits).T.contiguous(),
            "qzeros": packed((layer.zero - _offset(layer.scheme)).T, bits),
            "scales": layer.scale.T.contiguous().half(),
            "g_idx": _group_of_column(layer),
        }

    def weight(self, tensors: Mapping[str, Tensor], scheme: Scheme, shape: base.Shape) -> Tensor:
        """scale·(q − z), each column with the scale and zero of its group."""
        group = tensors["g_idx"].long()
        codes = unpacked(tensors["qweight"].T, scheme.bits, shape.columns).float()
        zeros = unpacked(tensors["qzeros"], scheme.bits, shape.rows).float() + _offset(scheme)
        return (codes - zeros[group].T) * tensors["scales"].float()[group].T

    def config(self, layers: Mapping[str, QuantizedWeight], excluded: Sequence[str]) -> dict[str, Any] | None:
        """The settings of AutoGPTQ, with the format's version."""
        scheme = next(iter(layers.values())).scheme
        return {
            "quant_method": "gptq",
            "checkpoint_format": "gptq" if scheme.symmetric else "gptq_v2",
            "bits": scheme.bits,
            "group_size": -1 if scheme.group_size is None else scheme.group_size,
            "sym": scheme.symmetric,
            "desc_act": any(layer.permutation is not None for layer in layers.values()),
            "lm_head": "lm_head" in layers,
            "pack_dtype": "int32",
        }


def _offset(scheme: Scheme) -> int:
    return 1 if scheme.symmetric else 0


def _group_of_column(layer: QuantizedWeight) -> Tensor:
    """The group [in] of each column, int32."""
    groups = torch.arange(layer.codes.shape[1], dtype=torch.int32) // layer.group_size
    if layer.permutation is None:
        return groups
    return torch.empty_like(groups).index_copy_(0, layer.permutation, groups)
