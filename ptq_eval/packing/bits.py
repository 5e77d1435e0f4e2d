"""Codes packed without gaps: code j takes bits j·b … j·b + b − 1 of a row, least significant first, in int32 words.

A code may lie across two words.  This is the layout of GPTQ's and of compressed-tensors' files at every width.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

WORD = 32


def packed(codes: Tensor, bits: int) -> Tensor:
    """Whole numbers 0 … 2^bits − 1, [rows, columns], as int32 [rows, ceil(columns·bits/32)]."""
    values = codes.to(torch.uint8).numpy()
    each = np.unpackbits(values[..., None], axis=-1, count=bits, bitorder="little").reshape(len(values), -1)
    filled = np.pad(each, ((0, 0), (0, -each.shape[1] % WORD)))
    return torch.from_numpy(np.packbits(filled, axis=-1, bitorder="little").view("<i4").astype(np.int32))


def unpacked(words: Tensor, bits: int, columns: int) -> Tensor:
    """The inverse of `packed`: uint8 [rows, columns]."""
    raw = words.contiguous().numpy().astype("<i4").view(np.uint8)
    each = np.unpackbits(raw, axis=-1, count=columns * bits, bitorder="little").reshape(len(raw), columns, bits)
    return torch.from_numpy(np.packbits(each, axis=-1, bitorder="little")[..., 0])
