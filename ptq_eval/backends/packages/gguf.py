"""gguf: the K- and legacy types of llama.cpp, as the package's numpy tables quantize and dequantize them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ptq_eval.backends.base import Cell, Method, WeightBackend

if TYPE_CHECKING:
    from torch import Tensor

_LEGACY = {
    "q4_0": ("4 bits, blocks of 32", 32),
    "q4_1": ("4 bits with a minimum, blocks of 32", 32),
    "q5_0": ("5 bits, blocks of 32", 32),
    "q5_1": ("5 bits with a minimum, blocks of 32", 32),
    "q8_0": ("8 bits, blocks of 32", 32),
}
_KQUANTS = {
    "q2_k": ("2 bits, scales searched by this package", 16),
    "q3_k": ("3 bits, scales searched by this package", 16),
    "q4_k": ("4 bits, scales searched by this package", 32),
    "q5_k": ("5 bits, scales searched by this package", 32),
    "q6_k": ("6 bits, scales searched by this package", 16),
}
_SUPERBLOCK = 256


class GGUF(WeightBackend):
    """The Python package of llama.cpp: rounding to nearest, without an importance matrix.

    It writes the legacy types and reads all.  K-types have the scales of llama.cpp's search as `quantizers` has it, are
    packed here, and are what the package reads in those bytes.
    """

    name = "gguf"
    requirements = ("gguf==0.19.0",)
    imports = "gguf"
    source = "https://github.com/ggml-org/llama.cpp, gguf-py"
    extra = "gguf"
    methods = {
        name: Method(summary, scheme=name, blocks=(block,)) for name, (summary, block) in (_LEGACY | _KQUANTS).items()
    }

    no_reload = "what is measured is read from the packed blocks already, by the package's tables"

    def quantize_weight(self, weight: Tensor, cell: Cell) -> Tensor:
        """One weight.  Raises ValueError for rows that are no multiple of a block."""
        import torch
        from gguf import GGMLQuantizationType, quants

        kind = GGMLQuantizationType[cell.method.upper()]
        block = 32 if cell.method in _LEGACY else _SUPERBLOCK
        if weight.shape[1] % block:
            raise ValueError(f"rows of {weight.shape[1]} columns are no multiple of {block}")
        if cell.method in _LEGACY:
            packed = quants.quantize(weight.cpu().numpy(), kind)
        else:
            packed = _searched(weight.cpu(), cell.format)
        return torch.from_numpy(quants.dequantize(packed, kind)).reshape(weight.shape)


def _searched(weight: Tensor, name: str) -> Any:
    """The bytes of a K-type, uint8 [out, bytes]."""
    from ptq_eval.backends.packages.gguf_blocks import as_bytes
    from quantizers import Scheme, get_quantizer

    return as_bytes(get_quantizer("rtn").quantize(weight, Scheme.of(name)))
