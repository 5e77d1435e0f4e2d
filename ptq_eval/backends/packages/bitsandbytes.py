"""bitsandbytes: NF4 and FP4 in blocks, and the row-wise int8 of LLM.int8() for weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ptq_eval.backends.base import Cell, Method, WeightBackend

if TYPE_CHECKING:
    from torch import Tensor


class BitsAndBytes(WeightBackend):
    """The functions that `Linear4bit` and `Linear8bitLt` call for their weights.

    Of int8 only the weights are measured: its layers also round activations, and keep columns with outliers in 16 bits.
    """

    name = "bitsandbytes"
    requirements = ("bitsandbytes==0.50.2",)
    imports = "bitsandbytes"
    source = "https://github.com/bitsandbytes-foundation/bitsandbytes"
    extra = "bitsandbytes"
    methods = {
        "nf4": Method("quantile table of the normal distribution (QLoRA)", scheme="nf4", blocks=(64, 32)),
        "fp4": Method("its own FP4 table", scheme="fp4_bnb", blocks=(64, 32)),
        "int8": Method("one scale per row (LLM.int8(), weights alone)", scheme="int8_narrow"),
    }

    def quantize_weight(self, weight: Tensor, cell: Cell) -> Tensor:
        """One weight, in float32."""
        from bitsandbytes import functional

        if cell.method == "int8":
            codes, scale, _ = functional.int8_vectorwise_quant(weight.half())
            return codes.float() * scale[:, None].float() / 127
        packed, state = functional.quantize_4bit(weight, blocksize=cell.group_size, quant_type=cell.method)
        return functional.dequantize_4bit(packed, state)
