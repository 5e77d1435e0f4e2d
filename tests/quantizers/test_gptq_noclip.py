"""GPTQ without clipping: the bound of arXiv 2507.18553, recomputed in float64 from the result alone."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from quantizers import FormatError, LayerStats, Scheme, get_quantizer
from quantizers.testing import output_error, sample_layer
from tests.quantizers.test_property import FEW
from tests.reference.gptq import hessian_of


def errors_and_steps(weight, inputs, name, scheme, act_order, damping=0.01):
    """(e, s, D): the error of each column when it was rounded, in steps of its group, and the D of H = LDLᵀ.

    Columns are in the order of rounding.  L is lower triangular in the reversed order, as in the paper.
    """
    options = {"act_order": act_order, "damping": damping}
    quantized = get_quantizer(name, **options).quantize(weight, scheme, LayerStats.from_inputs(inputs))
    H = hessian_of(inputs.numpy())
    H += quantized.report["damping"] * np.diag(H).mean() * np.eye(len(H))
    order = np.argsort(-np.diag(H), kind="stable") if act_order else np.arange(len(H))
    delta = (weight.double() - quantized.dequantize().double()).numpy()[:, order]
    step = quantized.scale.double().numpy().repeat(quantized.group_size, 1)[:, : len(H)][:, order]
    reverse = np.linalg.cholesky(H[np.ix_(order, order)][::-1, ::-1])  # of the columns from back to front
    R = reverse[::-1, ::-1]
    e = delta @ R / np.diag(R)
    assert np.allclose((e**2 * np.diag(R) ** 2).sum(1), np.einsum("ij,jk,ik->i", delta, R @ R.T, delta))
    return quantized, e, step, np.diag(R) ** 2


@FEW
@given(
    st.integers(0, 10_000), st.integers(2, 6), st.sampled_from([8, 12, None]), st.booleans(), st.booleans(),
    st.sampled_from([1e-4, 0.01, 0.3]),
)  # fmt: skip
def test_no_error_exceeds_half_a_step_and_the_bound_holds_for_every_row(seed, bits, size, symmetric, order, damping):
    weight, inputs = sample_layer(6, 32, tokens=200, seed=seed)
    quantized, e, step, D = errors_and_steps(
        weight, inputs, "gptq-noclip", Scheme(bits, size, symmetric), order, damping
    )
    assert (np.abs(e) <= 0.502 * step).all()
    bound = 0.25 * (step**2 * D).sum(1)
    assert ((e**2 * D).sum(1) <= 1.01 * bound).all()
    used = (e**2 * D).sum() / bound.sum()
    assert quantized.report["bound_used"] == pytest.approx(used, rel=1e-2)


def test_gptq_itself_breaks_the_half_step_at_two_bits():
    """The property above can fail: error feedback leaves the range of the original weights."""
    weight, inputs = sample_layer(32, 64, tokens=400)
    _, e, step, _ = errors_and_steps(weight, inputs, "gptq", Scheme(2, 16), act_order=False)
    assert (np.abs(e) > 0.6 * step).any()


def test_where_nothing_is_clipped_it_is_gptq():
    weight, _ = sample_layer(32, 64, tokens=400)
    stats, scheme = LayerStats.from_inputs(torch.randn(4096, 64, generator=torch.manual_seed(0))), Scheme(8, 16)
    ours = get_quantizer("gptq-noclip").quantize(weight, scheme, stats)
    plain = get_quantizer("gptq", act_order=True, static_groups=True).quantize(weight, scheme, stats)
    same = ours.scale == plain.scale
    assert same.float().mean() > 0.5
    rows = same.all(1)
    assert rows.any()
    assert torch.equal(ours.codes[rows], plain.codes[rows])


@pytest.mark.parametrize("bits", [3, 4])
def test_better_than_rounding(bits):
    weight, inputs = sample_layer(48, 96, tokens=1000)
    stats, scheme = LayerStats.from_inputs(inputs), Scheme(bits, 16)
    ours, rtn = (
        output_error(weight, get_quantizer(name).quantize(weight, scheme, stats), stats)
        for name in ("gptq-noclip", "rtn")
    )
    assert ours < 0.8 * rtn


def test_number_formats_are_refused():
    weight, inputs = sample_layer(8, 64)
    with pytest.raises(FormatError, match="gptq-noclip is not defined for format mxfp4"):
        get_quantizer("gptq-noclip").quantize(weight, Scheme.of("mxfp4"), LayerStats.from_inputs(inputs))
