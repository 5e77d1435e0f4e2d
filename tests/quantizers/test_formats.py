"""Oracle: formats against the bits of ml_dtypes, torch, gguf; golden: published numbers of each."""

import gguf
import ml_dtypes
import numpy as np
import pytest
import torch

from ptq_eval.backends.packages.gguf_blocks import as_bytes
from quantizers import (
    ALL_FORMATS,
    LayerStats,
    QuantizationError,
    Scheme,
    gaussian_mse,
    get_quantizer,
    grid,
    levels,
    scales,
)
from quantizers.formats import FORMATS
from quantizers.testing import sample_layer
from tests.reference import kquants

FLOATS = {
    "fp8_e4m3": ml_dtypes.float8_e4m3fn,
    "fp8_e5m2": ml_dtypes.float8_e5m2,
    "fp6_e2m3": ml_dtypes.float6_e2m3fn,
    "fp6_e3m2": ml_dtypes.float6_e3m2fn,
    "fp4_e2m1": ml_dtypes.float4_e2m1fn,
}
GGUF = [name for name, known in FORMATS.items() if "llama.cpp, ggml" in known.source]


def weights(rows=8, columns=512, seed=0):
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) * 0.05


def rtn(name, weight, size="default", **options):
    return get_quantizer("rtn", **options).quantize(weight, Scheme.of(name, size))


@pytest.mark.parametrize("name", FLOATS)
def test_levels_are_those_of_ml_dtypes(name):
    bits = FORMATS[name].bits
    patterns = np.arange(2**bits, dtype=np.uint8)
    theirs = patterns.view(FLOATS[name]).astype(np.float32)
    ours = FORMATS[name].levels().table().numpy()[: 2**bits]
    negative_zero = patterns == 2 ** (bits - 1)  # we write +0
    finite = np.isfinite(theirs) & ~negative_zero
    assert np.array_equal(ours[finite], theirs[finite])
    assert np.isnan(ours[~finite]).all()


@pytest.mark.parametrize("name", FLOATS)
def test_rounding_is_that_of_ml_dtypes(name):
    """Random numbers of every magnitude, all levels, and all numbers halfway between two."""
    own = FORMATS[name].levels()
    values = own.values.double()
    generator = torch.Generator().manual_seed(1)
    anything = torch.randn(20_000, generator=generator) * torch.exp(4 * torch.randn(20_000, generator=generator))
    x = torch.cat([anything, own.values, ((values[1:] + values[:-1]) / 2).float()])
    x = x[x.abs() <= own.highest]
    theirs = x.numpy().astype(FLOATS[name])
    ours = own.nearest(x).numpy()
    assert np.array_equal(own.of_codes(torch.tensor(ours)).numpy(), theirs.astype(np.float32) + 0.0)
    nonzero = theirs.astype(np.float32) != 0
    assert np.array_equal(ours[nonzero], theirs.view(np.uint8)[nonzero])


@pytest.mark.parametrize(("name", "dtype"), [("fp8_e4m3", torch.float8_e4m3fn), ("fp8_e5m2", torch.float8_e5m2)])
def test_rounding_is_that_of_torch(name, dtype):
    own, x = FORMATS[name].levels(), 10 * torch.randn(10_000, generator=torch.Generator().manual_seed(0))
    assert torch.equal(own.of_codes(own.nearest(x)), x.to(dtype).float() + 0.0)


def test_numbers_beyond_the_last_level_saturate():
    for known in FORMATS.values():
        own = known.levels()
        assert own.of_codes(own.nearest(torch.tensor([-1e30, 1e30]))).tolist() == [own.lowest, own.highest]


def test_e2m1_by_hand():
    assert levels.floating(2, 1).values[7:].tolist() == [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]


def test_nf4_and_fp4_of_bitsandbytes():
    """Codes and absmax that bitsandbytes 0.50.2 gives on a CPU for 64 numbers, quantize_4bit, block size 64."""
    weight = torch.linspace(-1, 1, 64).pow(3).view(1, 64)
    for name, theirs in BITSANDBYTES.items():
        expected = theirs if name == "nf4" else theirs.replace("8", "0")  # its -0, our +0
        q = rtn(name, weight)
        assert "".join(f"{code:x}" for code in q.codes[0].tolist()) == expected
        assert q.scale.item() == 1.0


BITSANDBYTES = {
    "nf4": "001112223344455566666777777777777777777777788888999aabbccddeeeff",
    "fp4_bnb": "bbaaaaddcccffeeeee9999999999000088881111111111666667744455222233",
}


@pytest.mark.parametrize("name", ["mxfp4", "mxfp6_e2m3", "mxfp6_e3m2", "mxfp8_e4m3", "mxfp8_e5m2"])
def test_the_scale_of_mx_is_that_of_the_specification(name):
    """X = 2^(floor(log2 max) − emax), then the elements rounded to nearest and saturated, by ml_dtypes."""
    emax = {"mxfp4": 2, "mxfp6_e2m3": 2, "mxfp6_e3m2": 4, "mxfp8_e4m3": 8, "mxfp8_e5m2": 15}[name]
    weight = weights()
    q = rtn(name, weight)
    blocks = weight.numpy().astype(np.float64).reshape(8, -1, 32)
    scale = 2.0 ** (np.floor(np.log2(np.abs(blocks).max(-1))) - emax)
    assert np.array_equal(q.scale.numpy(), scale)
    stored = q.stored_scales()["scale"].numpy()
    assert np.array_equal(stored.view(ml_dtypes.float8_e8m0fnu).astype(np.float64), scale)
    dtype = FLOATS[name[2:] if "_" in name else "fp4_e2m1"]
    top = float(ml_dtypes.finfo(dtype).max)
    elements = np.clip(blocks / scale[..., None], -top, top).astype(dtype).astype(np.float64)
    assert np.array_equal(q.dequantize().numpy(), (elements * scale[..., None]).reshape(8, -1))


def test_nvfp4_by_its_two_scales():
    weight = weights()
    q = rtn("nvfp4", weight)
    blocks, tensor = weight.numpy().reshape(8, -1, 16), np.float32(weight.abs().max()) / np.float32(448 * 6)
    scale = (np.abs(blocks).max(-1) / np.float32(6) / tensor).astype(ml_dtypes.float8_e4m3fn)
    stored = q.stored_scales()
    assert stored["tensor_scale"].item() == tensor
    assert np.array_equal(stored["scale"].numpy(), scale.view(np.uint8))
    both = scale.astype(np.float32) * tensor
    elements = (blocks / both[..., None]).astype(ml_dtypes.float4_e2m1fn).astype(np.float32)
    assert np.array_equal(q.dequantize().numpy(), (elements * both[..., None]).reshape(8, -1))


def test_four_over_six_takes_the_better_of_two():
    """5 and 6 in one block: with 6 at level 6 the 5 is off by 1; with 6 at level 4 it is at 3⅓, off by ½."""
    weight = torch.zeros(1, 32)
    weight[0, :2] = torch.tensor([6.0, 5.0])
    weight[0, 16:18] = torch.tensor([6.0, 3.0])  # exact with 6 at level 6
    ours, plain = rtn("nvfp4_46", weight), rtn("nvfp4", weight)
    ratio = (ours.scale / ours.outer[..., 0]).tolist()[0]
    assert ratio == [pytest.approx(6 / 4 / (6 / 1536), rel=0.04), pytest.approx(256)]
    assert (ours.dequantize() - weight).abs().sum() < (plain.dequantize() - weight).abs().sum()


@pytest.mark.parametrize("rows", [1, 64])
def test_four_over_six_never_has_the_larger_error_in_a_block(rows):
    weight = weights(rows, 256)
    q = rtn("nvfp4_46", weight)
    errors = (q.dequantize() - weight).square().view(rows, -1, 16).sum(-1)
    groups = grid.to_groups(weight, 16)
    for top in (6.0, 4.0):
        params = scales.two_level(groups.amin(-1), groups.amax(-1), levels.floating(2, 1), q.outer, top=top)
        fixed = scales.squared_error(groups, levels.floating(2, 1), params).sum(-1)
        assert (errors <= fixed + 1e-12).all()


@pytest.mark.parametrize("name", [*GGUF, "mxfp4"])
def test_gguf_reads_what_we_measured(name):
    """Packed into GGUF's blocks and read by the `gguf` package, the weights are the same to the last bit."""
    q = rtn(name, weights(4, 1024))
    kind = getattr(gguf.GGMLQuantizationType, name.upper())
    assert np.array_equal(gguf.quants.dequantize(as_bytes(q), kind), q.dequantize().numpy())


def test_gguf_reads_nvfp4_up_to_its_tensor_scale():
    q = rtn("nvfp4", weights(4, 1024))
    theirs = gguf.quants.dequantize(as_bytes(q), gguf.GGMLQuantizationType.NVFP4)
    np.testing.assert_allclose(theirs * q.outer[0, 0, 0].item(), q.dequantize().numpy(), rtol=3e-7)


@pytest.mark.parametrize("name", ["q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "mxfp4"])
def test_our_rounding_is_that_of_gguf_or_nearer(name):
    """gguf finds codes for a scale before it is rounded to float16, we for the one that is read back."""
    weight = weights(32, 1024)
    kind = getattr(gguf.GGMLQuantizationType, name.upper())
    theirs = torch.tensor(gguf.quants.dequantize(gguf.quants.quantize(weight.numpy(), kind), kind))
    ours = rtn(name, weight).dequantize()
    assert ((ours - weight).abs() <= (theirs - weight).abs() + 1e-7).all()
    assert (ours == theirs).float().mean() > 0.99


@pytest.mark.parametrize(("name", "size"), [("q4_k", 32), ("q5_k", 32), ("q2_k", 16)])
def test_the_affine_search_by_hand(name, size):
    groups = weights(3, 4 * size).view(3, 4, size)
    search = FORMATS[name].search.__self__
    top = 2 ** FORMATS[name].bits - 1
    scale, minimum = search._affine_search(groups, top)
    for ours, x in zip(torch.stack([scale, minimum], -1).flatten(0, 1).tolist(), groups.flatten(0, 1).tolist()):
        assert ours == pytest.approx(kquants.affine(x, top, search.first, search.count), rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("half", [4, 32])
def test_the_symmetric_search_by_hand(half):
    """Some candidates put the largest weight halfway between two codes, where float32 and float64 may disagree."""
    groups = weights(3, 64).view(3, 4, 16)
    for ours, x in zip(scales._symmetric_search(groups, half).flatten().tolist(), groups.flatten(0, 1).tolist()):
        assert ours == pytest.approx(kquants.symmetric(x, half), rel=3e-3)


def test_blocks_of_k_quants_share_their_scales():
    q = rtn("q4_k", weights(2, 512))
    stored = q.stored_scales()
    assert stored["scale"].shape == (2, 16)
    assert stored["block_scale"].shape == (2, 2)
    assert int(stored["scale"].max()) == int(stored["minimum"].max()) == 63
    assert isinstance(FORMATS["q4_k"].search.__self__, scales.KQuant)


@pytest.mark.parametrize(
    ("kind", "w", "restored"),
    [
        ("narrow", [1.0, -0.5, 0.2], [1.0, -3 / 7, 1 / 7]),
        ("full", [1.0, -0.5, 0.2], [7 / 8, -0.5, 0.25]),
        ("signed", [1.0, -0.5, 0.2], [1.0, -0.5, 0.25]),
        ("signed", [-1.0, 0.95, 0.2], [-1.0, 7 / 8, 0.25]),
    ],
)
def test_symmetric_grids_by_hand(kind, w, restored):
    q = rtn(f"int4_{kind}", torch.tensor([w]), None)
    assert q.dequantize()[0].tolist() == pytest.approx(restored)


def test_the_half_step_grid_is_the_symmetric_one():
    assert Scheme.of("int4_half", 32) == Scheme(4, 32, symmetric=True)


def test_grids_at_2_bits_rank_as_measured_elsewhere():
    """RTN at 2 bits on a language model: narrow 78.09, half-step 53.40, full 50.05, signed 49.38 (perplexity)."""
    errors = [gaussian_mse(Scheme.of(f"int2_{kind}", 64)) for kind in ("narrow", "half", "full", "signed")]
    assert errors == sorted(errors, reverse=True)


EFFECTIVE = {
    "int4": 4 + 20 / 128, "int4_half": 4.125, "int4_narrow": 4.125, "fp8_e4m3": 8.125, "mxfp4": 4.25,
    "mxfp6_e2m3": 6.25, "mxfp8_e4m3": 8.25, "nf4": 4.5, "q4_0": 4.5, "q4_1": 5.0, "q5_0": 5.5, "q5_1": 6.0,
    "q8_0": 8.5, "q2_k": 2.625, "q3_k": 3.4375, "q4_k": 4.5, "q5_k": 5.5, "q6_k": 6.5625,
}  # fmt: skip


def test_effective_bits():
    for name, bits in EFFECTIVE.items():
        assert Scheme.of(name).effective_bits() == bits
    assert Scheme.of("nvfp4").effective_bits(64, 128) == 4.5 + 32 / (64 * 128)
    assert rtn("nvfp4", weights(8, 64)).bits_per_weight == 4.5 + 32 / 512


@pytest.mark.parametrize("name", [*GGUF, "mxfp4"])
def test_effective_bits_are_those_of_gguf(name):
    q = rtn(name, weights(4, 1024))
    assert as_bytes(q).size * 8 == q.bits_per_weight * q.codes.numel()


@pytest.mark.parametrize(
    ("name", "columns", "blocks", "size"), [("q4_k", 32, 1, 256), ("q6_k", 320, 2, 256), ("q4_0", 40, 2, 32)]
)
def test_a_row_that_ends_within_a_block_of_gguf_takes_the_whole(name, columns, blocks, size):
    whole = Scheme.of(name).bits_stored(3, blocks * size)
    assert (
        Scheme.of(name).bits_stored(3, columns) == whole == rtn(name, weights(3, columns)).bits_per_weight * 3 * columns
    )


def test_the_error_on_a_gaussian_of_a_whole_row_by_quadrature():
    """Without the effect of a range that varies: E4M3 of a wide row is rounding with a fixed scale."""
    own = FORMATS["fp4_e2m1"].levels()
    top = 4.0  # the largest of 4,096 Gaussians is about 3.7 ± 0.3
    x = torch.linspace(-top, top, 200_001, dtype=torch.float64)
    density = torch.exp(-x.square() / 2) / (2 * np.pi) ** 0.5
    rounded = own.of_codes(own.nearest((x * 6 / top).float())).double() * top / 6
    expected = torch.trapezoid((rounded - x).square() * density, x).item()
    assert gaussian_mse(Scheme.of("fp4_e2m1", None)) == pytest.approx(expected, rel=0.15)


GAUSSIAN = {"mxfp4": 0.01315, "nvfp4": 0.00905, "nvfp4_46": 0.00756, "nf4": 0.00846, "q4_k": 0.00516}


@pytest.mark.parametrize("name", GAUSSIAN)
def test_the_error_on_a_gaussian(name):
    assert gaussian_mse(Scheme.of(name)) == pytest.approx(GAUSSIAN[name], rel=0.01)


def test_a_scale_too_large_for_float16_is_refused():
    with pytest.raises(QuantizationError, match="too large for the float16"):
        rtn("q4_0", torch.full((2, 32), 1e7))


@pytest.mark.parametrize("name", ALL_FORMATS[1:])
def test_methods_agree_on_one_group_of_independent_inputs(name):
    """With H a multiple of the identity nothing is fed back, and GPTQ is RTN."""
    weight, size = weights(4, 256), FORMATS[name].blocks[:1] or (64,)
    stats = LayerStats.from_inputs(torch.eye(256))
    scheme = Scheme.of(name, size[0])
    ours = get_quantizer("gptq").quantize(weight, scheme, stats)
    plain = get_quantizer("rtn").quantize(weight, scheme)
    for field in ("codes", "scale", "zero"):
        assert torch.equal(getattr(ours, field), getattr(plain, field))
    assert (ours.outer is None) == (plain.outer is None)


def test_layers_of_one_input_have_tensor_scales_of_their_own():
    inputs = sample_layer(columns=64)[1]
    stats = LayerStats.from_inputs(inputs)
    first, second = sample_layer(4, 64)[0], 10 * sample_layer(8, 64, seed=1)[0]
    for name in ("gptq", "awq"):
        both = get_quantizer(name).quantize_group([first, second], Scheme.of("nvfp4"), stats)
        assert both[0].outer[0, 0, 0] < 0.5 * both[1].outer[0, 0, 0]
        assert [len(q.outer) for q in both] == [4, 8]
