"""AWQ's format (`gemm`), as AutoAWQ defined it and transformers and vLLM read it: 4 bits.

    qweight  int32 [in, out/8]      eight outputs in a word
    qzeros   int32 [groups, out/8]  the same
    scales   float16 [groups, out]

A word holds the codes of eight outputs, in the order 0, 2, 4, 6, 1, 3, 5, 7, lowest bits first.
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

BITS = 4
PER_WORD = WORD // BITS
ORDER = torch.tensor([0, 2, 4, 6, 1, 3, 5, 7])


class AWQFormat(FolderFormat):
    """Scales are rounded to float16."""

    name = "awq"
    packages = ("gptqmodel", "optimum")
    rounds_scales = True

    def refusal(self, scheme: Scheme, shape: base.Shape) -> Refusal | None:
        """Integers of 4 bits in nn.Linear layers whose outputs fill whole words, in whole groups."""
        if shape.transposed:
            return refused(Obstacle.CONV1D)
        if shape.rows % PER_WORD:
            return refused(Obstacle.PARTIAL_WORD, count=shape.rows, what="outputs", bits=BITS, word=WORD)
        return base.integers_only(scheme, (BITS,)) or base.whole_groups(scheme, shape)

    def refusal_of(self, layer: QuantizedWeight) -> Refusal | None:
        """Groups of reordered columns, scales beyond float16, scales of input channels, and zeros between codes."""
        return (
            base.in_order(layer) or base.fits_half(layer) or base.without_input_scale(layer) or base.whole_zeros(layer)
        )

    def tensors(self, layer: QuantizedWeight, shape: base.Shape) -> dict[str, Tensor]:
        """See the top of this file."""
        return {
            "qweight": packed(_interleaved(layer.codes.T), BITS),
            "qzeros": packed(_interleaved(layer.zero.T), BITS),
            "scales": layer.scale.T.contiguous().half(),
        }

    def weight(self, tensors: Mapping[str, Tensor], scheme: Scheme, shape: base.Shape) -> Tensor:
        """scale·(q − z), with the outputs of each word in order again."""
        codes, zeros = (
            _interleaved(unpacked(tensors[name], BITS, shape.rows), inverse=True).float()
            for name in ("qweight", "qzeros")
        )
        group = torch.arange(shape.columns) // (shape.columns // len(zeros))
        return ((codes - zeros[group]) * tensors["scales"].float()[group]).T

    def config(self, layers: Mapping[str, QuantizedWeight], excluded: Sequence[str]) -> dict[str, Any] | None:
        """The settings of AutoAWQ."""
        scheme = next(iter(layers.values())).scheme
        return {
            "quant_method": "awq",
            "version": "gemm",
            "bits": BITS,
            "group_size": -1 if scheme.group_size is None else scheme.group_size,
            "zero_point": True,
            "modules_to_not_convert": list(excluded),
        }


def _interleaved(values: Tensor, inverse: bool = False) -> Tensor:
    """`values` [rows, outputs] with each eight outputs in the order of a word, or back."""
    order = ORDER.argsort() if inverse else ORDER
    return values.reshape(len(values), -1, PER_WORD)[..., order].flatten(1)
