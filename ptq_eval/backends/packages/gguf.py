"""gguf: the K- and legacy types of llama.cpp, as the package's numpy tables quantize and dequantize them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ptq_eval.backends.base import Cell, Method, WeightBackend

if TYPE_CHECKING:
    from torch import Tensor

_TYPES = {
    "q4_0": ("4 bits, blocks of 32", 32),
    "q4_1": ("4 bits with a minimum, blocks of 32", 32),
    "q5_0": ("5 bits, blocks of 32", 32),
    "q5_1": ("5 bits with a minimum, blocks of 32", 32),
    "q8_0": ("8 bits, blocks of 32", 32),
}


class GGUF(WeightBackend):
    """The Python package of llama.cpp: rounding to nearest, without an importance matrix.

    Its K-types are only read, not written, by this package: `--formats q4_k` measures them by our own search.
    """

    name = "gguf"
    requirements = ("gguf==0.19.0",)
    imports = "gguf"
    source = "https://github.com/ggml-org/llama.cpp, gguf-py"
    extra = "gguf"
    methods = {name: Method(summary, scheme=name, blocks=(block,)) for name, (summary, block) in _TYPES.items()}

    def quantize_weight(self, weight: Tensor, cell: Cell) -> Tensor:
        """One weight.  Raises ValueError for rows that are no multiple of a block."""
        import torch
        from gguf import GGMLQuantizationType, quants

        if weight.shape[1] % (cell.group_size or 1):
            raise ValueError(f"rows of {weight.shape[1]} columns are no multiple of {cell.group_size}")
        kind = GGMLQuantizationType[cell.method.upper()]
        packed = quants.quantize(weight.cpu().numpy(), kind)
        return torch.from_numpy(quants.dequantize(packed, kind)).reshape(weight.shape)
