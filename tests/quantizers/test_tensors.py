"""Rounding of activations, keys and values: oracles by definition, and what holds for every format."""

import pytest
import torch

from quantizers import FormatError, Scheme, ShapeError, get_quantizer, grid
from quantizers.formats import FORMATS
from quantizers.tensors import Bounds, rounded
from tests.reference.runtime import CACHE_DIMS, INPUT_DIMS, e4m3, integers

NAMES = ["int2", "int4", "int8", "int4_half", *FORMATS]
FREE = [name for name in NAMES if name not in FORMATS or not FORMATS[name].blocks]
"""Formats without blocks of their own."""


def some(*shape, seed=0):
    """Numbers with a few large ones."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    x[..., 0] *= 20
    return x


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("per", INPUT_DIMS)
def test_integers_are_those_of_the_definition(bits, per):
    x, kv = some(3, 7, 12), some(3, 2, 7, 12)
    assert torch.equal(rounded(x, Scheme.of(f"int{bits}"), per), integers(x, bits, INPUT_DIMS[per]))
    assert torch.equal(rounded(kv, Scheme.of(f"int{bits}"), per), integers(kv, bits, CACHE_DIMS[per]))


@pytest.mark.parametrize("per", INPUT_DIMS)
def test_eight_bit_floats_are_torchs_own(per):
    x = some(3, 7, 12)
    torch.testing.assert_close(rounded(x, Scheme.of("fp8_e4m3"), per), e4m3(x, INPUT_DIMS[per]), rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", [name for name in NAMES if "bnb" not in name])
def test_a_token_is_rounded_as_a_row_of_a_weight_is(name):
    """By RTN on the tokens of one window, whatever the format; rows of weights without blocks have one scale."""
    x = some(1, 5, 512)
    scheme = Scheme.of(name) if name in FORMATS and FORMATS[name].blocks else Scheme.of(name, None)
    weight = get_quantizer("rtn").quantize(x[0], scheme).dequantize()
    torch.testing.assert_close(rounded(x, Scheme.of(name), "token")[0], weight, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", NAMES)
def test_rounding_is_what_the_codes_represent(name):
    scheme, x = Scheme.of(name), some(6, 256)
    groups = grid.to_groups(x, scheme.group_size)
    params = grid.params_of(groups, scheme, grid.outer_of(x, scheme))
    through_codes = grid.weights_of(grid.codes_of(groups, params, scheme), params, scheme)
    assert torch.equal(grid.rounded(groups, params, scheme), through_codes)


@pytest.mark.parametrize("name", NAMES)
def test_a_window_does_not_depend_on_the_windows_beside_it(name):
    x = some(4, 6, 64)
    for per in ("token", "channel", "tensor") if name in FREE else ("token",):
        whole = rounded(x, Scheme.of(name), per)
        alone = torch.cat([rounded(window, Scheme.of(name), per) for window in x.split(1)])
        assert torch.equal(whole, alone), per


@pytest.mark.parametrize("name", FREE)
@pytest.mark.parametrize("per", ["channel", "tensor"])
def test_a_static_range_of_the_same_window_is_the_dynamic_one(name, per):
    x = some(1, 2, 6, 8)
    assert torch.equal(rounded(x, Scheme.of(name), per, Bounds.of(x, per)), rounded(x, Scheme.of(name), per))


def test_bounds_are_of_all_windows_and_values_beyond_them_saturate():
    x, more = some(3, 6, 8), some(2, 9, 8, seed=1)
    bounds = Bounds.of(x, "channel").including(Bounds.of(more, "channel"))
    both = torch.cat([x.flatten(0, 1), more.flatten(0, 1)])
    assert torch.equal(bounds.low, both.amin(0))
    assert torch.equal(bounds.high, both.amax(0))
    far = rounded(100 * x, Scheme.of("int8"), "channel", bounds)
    span = bounds.high.clamp(min=0) - bounds.low.clamp(max=0)
    assert ((far <= bounds.high + span / 255) & (far >= bounds.low - span / 255)).all()


def test_the_type_stays_and_rounding_is_done_in_float32():
    x = some(2, 5, 8)
    narrow = rounded(x.bfloat16(), Scheme.of("int4"), "token")
    assert narrow.dtype == torch.bfloat16
    assert torch.equal(narrow, rounded(x.bfloat16().float(), Scheme.of("int4"), "token").bfloat16())
    assert torch.equal(rounded(torch.zeros(1, 3, 4), Scheme.of("int4"), "token"), torch.zeros(1, 3, 4))


def test_a_scale_too_large_for_its_format_gives_nan():
    assert rounded(torch.full((1, 2, 32), 1e30), Scheme.of("q8_0"), "token").isnan().all()


def test_what_a_format_cannot_do_is_refused():
    x = some(1, 4, 64)
    with pytest.raises(FormatError, match="mxfp4 has blocks of channels: it is rounded per token, not per channel"):
        rounded(x, Scheme.of("mxfp4"), "channel")
    with pytest.raises(FormatError, match="a static range is per channel or per tensor"):
        rounded(x, Scheme.of("int8"), "token", Bounds.of(x, "token"))
    with pytest.raises(ShapeError, match=r"expected \[windows, tokens, channels\], got \[4, 64\]"):
        rounded(x[0], Scheme.of("int8"), "tensor")
    assert rounded(x[0], Scheme.of("int8"), "token").shape == (4, 64)
    with pytest.raises(ShapeError, match="bounds of 32 channels do not fit 64"):
        rounded(x, Scheme.of("int8"), "channel", Bounds.of(x[..., :32], "channel"))
