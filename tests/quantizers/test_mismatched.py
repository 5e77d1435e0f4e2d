"""GPTAQ and Qronos: against their steps as least-squares problems, and what they promise."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from quantizers import LayerStats, Scheme, ShapeError, get_quantizer
from quantizers.testing import sample_layer
from tests.quantizers.test_property import FEW
from tests.reference import mismatched

METHODS = ("gptaq", "qronos")


def two_inputs(seed=0, rows=12, columns=32, noise=0.3):
    """A weight, its inputs in the full-precision model, and those that earlier layers' errors have changed."""
    weight, full = sample_layer(rows, columns, tokens=400, seed=seed)
    generator = torch.Generator().manual_seed(seed + 1)
    mixing = torch.eye(columns) + noise * torch.randn(columns, columns, generator=generator) / columns**0.5
    return weight, full, full @ mixing


def output_gap(weight, result, full, quantized):
    return float((full @ weight.T - quantized @ result.dequantize().T).square().mean())


@pytest.mark.parametrize("size", [8, 16, 32])
@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("name", METHODS)
def test_oracle(name, bits, size):
    weight, full, inputs = two_inputs()
    stats = LayerStats.from_inputs(inputs, full)
    options = {"act_order": False, "block_size": 1}
    ours = get_quantizer(name, **options).quantize(weight, Scheme(bits, size), stats).dequantize().numpy()
    theirs = getattr(mismatched, name)(weight.numpy(), full.numpy(), inputs.numpy(), bits, size)
    assert np.isclose(ours, theirs, rtol=1e-3, atol=1e-5).mean() >= 0.995


@pytest.mark.parametrize("size", [16, None])
@pytest.mark.parametrize("name", METHODS)
def test_blocks_change_only_where_scales_are_taken(name, size):
    """With static scales (one block holds every group's first column) lazy updates give what eager ones give."""
    weight, full, inputs = two_inputs(columns=64)
    stats, scheme = LayerStats.from_inputs(inputs, full), Scheme(4, None if size is None else 64)
    one, other = (
        get_quantizer(name, block_size=block).quantize(weight, scheme, stats).dequantize() for block in (size or 7, 64)
    )
    assert torch.isclose(one, other, atol=1e-5).float().mean() > 0.99


@FEW
@given(st.integers(0, 1000), st.integers(2, 8), st.sampled_from([8, 20, None]), st.booleans(), st.booleans())
def test_with_equal_inputs_both_are_gptq(seed, bits, size, symmetric, order):
    weight, inputs = sample_layer(8, 40, seed=seed)
    scheme = Scheme(bits, size, symmetric)
    stats = LayerStats.from_inputs(inputs, inputs)
    gptq = get_quantizer("gptq", act_order=order).quantize(weight, scheme, stats)
    for name in METHODS:
        ours = get_quantizer(name, act_order=order).quantize(weight, scheme, stats)
        assert ours.report["mismatch"] == 0
        assert (ours.codes == gptq.codes).float().mean() >= 0.98


@pytest.mark.parametrize("bits", [3, 4])
def test_the_outputs_of_the_full_precision_model_are_matched_better_than_by_gptq(bits):
    gaps = {name: 0.0 for name in ("gptq", "gptaq", "full gptaq", "qronos")}
    for seed in range(5):
        weight, full, inputs = two_inputs(seed, rows=32, columns=64)
        stats, scheme = LayerStats.from_inputs(inputs, full), Scheme(bits, 16)
        for name in gaps:
            options = {"alpha": 1.0} if name.startswith("full") else {}
            result = get_quantizer(name.split()[-1], **options).quantize(weight, scheme, stats)
            gaps[name] += output_gap(weight, result, full, inputs)
    assert gaps["qronos"] < 0.7 * gaps["gptq"]
    assert gaps["gptaq"] < 0.95 * gaps["gptq"]


def test_mismatch_does_not_depend_on_how_tokens_come():
    _, full, inputs = two_inputs()
    whole, parts = LayerStats.from_inputs(inputs, full), LayerStats.from_inputs(inputs[:150], full[:150])
    parts.merge(LayerStats.from_inputs(inputs[150:], full[150:]))
    exact = 2 / len(full) * ((full - inputs).double().T @ inputs.double())
    for stats in (whole, parts):
        torch.testing.assert_close(stats.mismatch.double(), exact, rtol=1e-4, atol=1e-4)
    assert not LayerStats.from_inputs(inputs).mismatch.any()
    with pytest.raises(ShapeError, match="not of the same tokens"):
        whole.update(inputs, full[1:])
