"""`fake`: the quantized weights in full precision, as measured.  It saves nothing, and whatever reads the original
checkpoint reads it; every scheme of every quantizer can be handed over this way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from ptq_eval.models.refusal import Refusal
from ptq_eval.packing import base
from ptq_eval.packing.folder import FolderFormat
from quantizers import QuantizedWeight, Scheme


class Fake(FolderFormat):
    """The weights that the codes represent."""

    name = "fake"

    def refusal(self, scheme: Scheme, shape: base.Shape) -> Refusal | None:
        """Nothing is refused."""
        return None

    def refusal_of_mixture(self, schemes: Sequence[Scheme]) -> Refusal | None:
        """Nothing is refused."""
        return None

    def refusal_of(self, layer: QuantizedWeight) -> Refusal | None:
        """Nothing is refused."""
        return None

    def tensors(self, layer: QuantizedWeight, shape: base.Shape) -> dict[str, Tensor]:
        """The weight, laid out as the module keeps it."""
        weight = layer.dequantize()
        return {"weight": weight.T.contiguous() if shape.transposed else weight}

    def weight(self, tensors: Mapping[str, Tensor], scheme: Scheme, shape: base.Shape) -> Tensor:
        """The weight as it is."""
        return tensors["weight"].T if shape.transposed else tensors["weight"]

    def config(self, layers: Mapping[str, QuantizedWeight], excluded: Sequence[str]) -> dict[str, Any] | None:
        """None: the model is an ordinary one."""
        return None
