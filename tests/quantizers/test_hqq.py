"""HQQ: against the authors' description in slow form, and what it promises."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from quantizers import FormatError, Scheme, get_quantizer
from quantizers.testing import sample_layer
from tests.quantizers.test_property import FEW
from tests.reference.hqq import hqq


@pytest.mark.parametrize(
    "options", [{}, {"norm": 0.4, "beta": 3.0}, {"kappa": 1.2, "steps": 3}, {"norm": 1.0}], ids=str
)
@pytest.mark.parametrize("size", [16, 20, None])  # 20 leaves a rest of 8 columns
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_oracle(bits, size, options):
    weight, _ = sample_layer(24, 48)
    ours = get_quantizer("hqq", **options).quantize(weight, Scheme(bits, size)).dequantize().numpy()
    theirs = {"p" if name == "norm" else name: value for name, value in options.items()}
    assert np.isclose(ours, hqq(weight.numpy(), bits, size, **theirs), rtol=1e-4, atol=1e-6).mean() >= 0.999


@FEW
@given(st.integers(0, 10_000), st.integers(2, 8), st.sampled_from([8, 12, None]), st.booleans())
def test_the_mean_error_is_below_that_of_the_grid_it_begins_with(seed, bits, size, symmetric):
    """p < 1 asks for many small errors: their mean absolute value falls."""
    weight, _ = sample_layer(16, 40, seed=seed)
    scheme = Scheme(bits, size, symmetric)
    first, last = (
        (get_quantizer("hqq", steps=steps, beta=beta).quantize(weight, scheme).dequantize() - weight).abs().mean()
        for steps, beta in ((1, 1e6), (20, 10.0))
    )
    assert last <= first * 1.02


@pytest.mark.parametrize("symmetric", [False, True])
def test_zero_points_are_free_only_where_the_grid_is_asymmetric(symmetric):
    quantized = get_quantizer("hqq").quantize(sample_layer()[0], Scheme(3, 8, symmetric))
    assert quantized.whole_zeros == symmetric
    assert quantized.bits_per_weight == 3 + (16 if symmetric else 32) / 8


def test_layers_of_small_weights_keep_their_shape():
    """A range below 1e-4 is a range like any other; the authors' package gives such groups the scale 1."""
    weight, _ = sample_layer()
    small = get_quantizer("hqq").quantize(weight * 1e-6, Scheme(8, 8)).dequantize()
    torch.testing.assert_close(small * 1e6, weight, rtol=0, atol=2e-3)


def test_number_formats_are_refused():
    with pytest.raises(FormatError, match="hqq is not defined for format nf4, only for int"):
        get_quantizer("hqq").quantize(torch.zeros(4, 64), Scheme.of("nf4"))
