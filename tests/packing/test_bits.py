"""Packing without gaps, against a slow packing one bit at a time, and against compressed-tensors' own."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ptq_eval.packing.bits import WORD, packed, unpacked

WIDTHS = range(2, 9)


def slowly(codes, bits):
    """Bit by bit, as the definition says."""
    rows = []
    for row in codes.tolist():
        number = sum(code << (i * bits) for i, code in enumerate(row))
        words = -(-len(row) * bits // WORD)
        unsigned = [(number >> (WORD * word)) & (2**WORD - 1) for word in range(words)]
        rows.append([word - 2**WORD if word >= 2 ** (WORD - 1) else word for word in unsigned])
    return torch.tensor(rows, dtype=torch.int32)


def drawn(rows, columns, bits, seed):
    return torch.randint(0, 2**bits, (rows, columns), generator=torch.Generator().manual_seed(seed))


@settings(deadline=None)
@given(st.integers(1, 5), st.integers(1, 80), st.sampled_from(WIDTHS), st.integers(0, 2**31))
def test_packing_follows_its_definition_and_is_undone(rows, columns, bits, seed):
    codes = drawn(rows, columns, bits, seed)
    words = packed(codes, bits)
    assert torch.equal(words, slowly(codes, bits))
    assert torch.equal(unpacked(words, bits, columns), codes.to(torch.uint8))


@pytest.mark.parametrize("bits", WIDTHS)
def test_compressed_tensors_packs_alike(bits):
    from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32

    codes = drawn(7, 45, bits, 0)
    assert torch.equal(packed(codes, bits), pack_to_int32((codes - 2 ** (bits - 1)).to(torch.int8), bits))
