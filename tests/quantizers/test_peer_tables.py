"""Golden: tables that torchao and bitsandbytes publish, as numbers; where installed, the packages themselves.

The packages are no dependencies of the tests.  `make test` compares with the numbers below; the tests marked `backends`
compare whole weights with the packages and say so where they are absent.
"""

import pytest
import torch

from quantizers import Scheme, get_quantizer
from quantizers.formats import FORMATS

NF4 = [
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
]  # fmt: skip
"""`get_4bit_type("nf4")` of bitsandbytes 0.50.2, by code."""
FP4 = [0.0, 0.005208333333, 0.66666667, 1.0, 0.33333333, 0.5, 0.16666667, 0.25]
"""`get_4bit_type("fp4")` of bitsandbytes 0.50.2, by code; the sign is the fourth bit."""
E2M1 = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]
"""`kernels.f4_unpacked_to_f32` of torchao 0.18, by code; the sign is the fourth bit."""


def weights(rows=16, columns=256):
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(3)) * 0.02


def rounded(name, weight):
    return get_quantizer("rtn").quantize(weight, Scheme.of(name)).dequantize()


def test_the_published_tables():
    table = {name: FORMATS[name].levels().table()[:16] for name in ("nf4", "fp4_bnb", "fp4_e2m1")}
    assert table["nf4"].tolist() == NF4
    for name, positive in (("fp4_bnb", FP4), ("fp4_e2m1", E2M1)):
        assert table[name][:8].tolist() == pytest.approx(positive, abs=1e-7)
        assert table[name][9:].tolist() == pytest.approx([-value for value in positive[1:]], abs=1e-7)


@pytest.mark.backends
@pytest.mark.parametrize(("name", "kind"), [("nf4", "nf4"), ("fp4_bnb", "fp4")])
def test_bitsandbytes_itself(name, kind):
    functional = pytest.importorskip("bitsandbytes.functional", reason="bitsandbytes is not installed")
    weight = weights()
    packed, state = functional.quantize_4bit(weight, blocksize=64, quant_type=kind)
    theirs = functional.dequantize_4bit(packed, state)
    torch.testing.assert_close(rounded(name, weight), theirs, rtol=1e-6, atol=1e-9)


@pytest.mark.backends
@pytest.mark.parametrize("name", ["mxfp4", "mxfp8_e4m3", "mxfp8_e5m2"])
def test_torchao_mx_itself(name):
    mx = pytest.importorskip("torchao.prototype.mx_formats.mx_tensor", reason="torchao is not installed")
    weight = weights()
    dtype = {"mxfp4": torch.float4_e2m1fn_x2, "mxfp8_e4m3": torch.float8_e4m3fn, "mxfp8_e5m2": torch.float8_e5m2}[name]
    theirs = mx.MXTensor.to_mx(weight, dtype, block_size=32).dequantize(torch.float32)
    assert torch.equal(rounded(name, weight), theirs)


@pytest.mark.backends
def test_torchao_nvfp4_itself():
    nvfp4 = pytest.importorskip("torchao.prototype.mx_formats.nvfp4_tensor", reason="torchao is not installed")
    weight = weights()
    scale = nvfp4.per_tensor_amax_to_scale(weight.abs().max())
    theirs = nvfp4.NVFP4Tensor.to_nvfp4(weight, per_tensor_scale=scale).dequantize(torch.float32)
    torch.testing.assert_close(rounded("nvfp4", weight), theirs, rtol=1e-6, atol=1e-9)


def graded(*exponents):
    """One row of blocks of 16, each 2^exponent times the first."""
    block = torch.linspace(-1, 1, 16)
    return torch.cat([block * 2.0**exponent for exponent in exponents])[None]


def block_errors(weight, quantized):
    return (quantized - weight).square().unflatten(1, (-1, 16)).sum(-1)[0]


def test_nvfp4_scales_below_e4m3_are_its_smallest_and_no_worse_than_in_compressed_tensors():
    """The smallest normal E4M3 is 2^-6, the smallest 2^-9; the scale of the largest block is 448 = 2^8.8.

    There a scale that rounds to 0 makes the block 0 (compressed-tensors 0.20); ours keeps what the smallest can hold.
    """
    from compressed_tensors.quantization import QuantizationArgs
    from compressed_tensors.quantization.lifecycle.forward import fake_quantize
    from compressed_tensors.quantization.utils import calculate_qparams, generate_gparam

    weight = graded(0, -10, -15, -17, -18, -19, -20)
    e4m3 = torch.float8_e4m3fn
    settings = {"num_bits": 4, "type": "float", "symmetric": True, "strategy": "tensor_group", "group_size": 16}
    args = QuantizationArgs(**settings, scale_dtype=e4m3, zp_dtype=e4m3)
    tensor_scale = generate_gparam(weight.min(), weight.max())
    blocks = weight.unflatten(1, (-1, 16))
    scale, zero = calculate_qparams(blocks.amin(-1), blocks.amax(-1), args, global_scale=tensor_scale)
    theirs = fake_quantize(weight, scale, zero, args, global_scale=tensor_scale)
    ours = rounded("nvfp4", weight)
    torch.testing.assert_close(ours[:, :80], theirs[:, :80], rtol=1e-6, atol=0)
    assert not theirs[:, 80:].any()
    assert torch.all(block_errors(weight, ours)[5:] < block_errors(weight, theirs)[5:])


@pytest.mark.backends
def test_torchao_nvfp4_takes_the_smallest_normal_for_smaller_scales():
    nvfp4 = pytest.importorskip("torchao.prototype.mx_formats.nvfp4_tensor", reason="torchao is not installed")
    weight = graded(0, -10, -14, -16, -17, -18, -20)
    scale = nvfp4.per_tensor_amax_to_scale(weight.abs().max())
    theirs = nvfp4.NVFP4Tensor.to_nvfp4(weight, per_tensor_scale=scale).dequantize(torch.float32)
    ours = rounded("nvfp4", weight)
    torch.testing.assert_close(ours[:, :48], theirs[:, :48], rtol=1e-6, atol=0)
    assert torch.all(block_errors(weight, ours)[3:] < block_errors(weight, theirs)[3:])
