"""Golden: values worked out by hand, and facts known of each method."""

import math

import pytest
import torch

from quantizers import LayerStats, QuantizationError, Scheme, ShapeError, get_quantizer
from quantizers.gptq.damping import damped_factor
from quantizers.testing import output_error, sample_layer


def rtn(rows, bits, size=None, symmetric=False, **options):
    weight = torch.tensor(rows)
    return get_quantizer("rtn", **options).quantize(weight, Scheme(bits, size, symmetric))


def test_asymmetric_grid_by_hand():
    """Range [-1, 2], three steps of 1, zero at code 1."""
    q = rtn([[-1.0, 0.4, 0.6, 2.0]], bits=2)
    assert q.scale.item() == 1.0
    assert q.zero.item() == 1.0
    assert q.codes.tolist() == [[0, 1, 2, 3]]
    assert q.dequantize().tolist() == [[-1.0, 0.0, 1.0, 2.0]]


def test_range_contains_zero():
    q = rtn([[2.0, 3.0], [-2.0, -3.0]], bits=2)
    assert q.scale.flatten().tolist() == [1.0, 1.0]
    assert q.zero.flatten().tolist() == [0.0, 3.0]
    assert q.codes.tolist() == [[2, 3], [1, 0]]


@pytest.mark.parametrize("bits", range(2, 9))
def test_symmetric_zero_point_and_scale(bits):
    q = rtn([[-0.75, 0.1, 0.5], [0.25, 0.5, 0.75]], bits, symmetric=True)
    assert q.zero.flatten().tolist() == [2 ** (bits - 1)] * 2
    expected = 2 * 0.75 / (2**bits - 1)
    assert q.scale.flatten().tolist() == pytest.approx([expected] * 2, rel=1e-6)


def test_group_of_zeros_has_the_unit_range():
    q = rtn([[0.0, 0.0, 1.0, 3.0]], bits=2, size=2)
    assert q.scale.tolist() == [[pytest.approx(2 / 3), 1.0]]
    assert q.dequantize().tolist() == [[0.0, 0.0, 1.0, 3.0]]


def test_ragged_last_group_has_a_scale_of_its_own():
    q = rtn([[0.0, 3.0, 0.0, 30.0, 3.0]], bits=2, size=2)
    assert q.scale.tolist() == [[1.0, 10.0, 1.0]]
    assert q.ragged
    assert q.dequantize().tolist() == [[0.0, 3.0, 0.0, 30.0, 3.0]]


def test_the_narrow_symmetric_grid_is_another_one():
    """At 2 bits, scale max|w|/(2^(b−1)−1) has about twice the squared error (normal weights, groups of 128)."""
    weight = torch.randn(512, 128, generator=torch.Generator().manual_seed(0))
    ours = get_quantizer("rtn").quantize(weight, Scheme(2, None, symmetric=True)).dequantize()
    top = weight.abs().amax(1, keepdim=True)
    narrow = (weight / top).round() * top
    ratio = ((narrow - weight) ** 2).sum() / ((ours - weight) ** 2).sum()
    assert 1.6 < ratio < 2.4


@pytest.mark.parametrize("mse", [False, True])
def test_finer_groups_are_better_on_average(mse):
    weight, _ = sample_layer(64, 256)
    quantizer = get_quantizer("rtn", mse=mse)
    errors = [
        ((quantizer.quantize(weight, Scheme(3, size)).dequantize() - weight) ** 2).mean().item()
        for size in (16, 32, 64, 128, None)
    ]
    assert errors == sorted(errors)


def test_bits_per_weight():
    weight, inputs = sample_layer(64, 256)
    stats = LayerStats.from_inputs(inputs)

    def bits(name, *scheme, **options):
        return get_quantizer(name, **options).quantize(weight, Scheme(*scheme), stats).bits_per_weight

    assert bits("rtn", 4, 128) == 4 + (16 + 4) / 128
    assert bits("rtn", 4, 128, True) == 4 + 16 / 128
    assert bits("rtn", 3, None) == 3 + (16 + 3) / 256
    assert bits("awq", 4, 128) == 4 + (16 + 4) / 128 + 16 / 64
    assert bits("gptq", 4, 32, act_order=True) == 4 + (16 + 4) / 32 + 3 / 64
    assert bits("gptq", 4, 32, act_order=True, static_groups=True) == 4 + (16 + 4) / 32


def test_groups_of_act_order_are_neighbours_in_order_of_activity():
    weight, inputs = sample_layer(8, 48)
    stats = LayerStats.from_inputs(inputs)
    q = get_quantizer("gptq", act_order=True).quantize(weight, Scheme(4, 16), stats)
    assert q.permutation is not None
    assert q.permutation.tolist() == stats.hessian.diagonal().argsort(descending=True).tolist()


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_gptq_and_awq_beat_rtn_on_the_output(bits):
    weight, inputs = sample_layer(64, 96, tokens=1024)
    stats, scheme = LayerStats.from_inputs(inputs), Scheme(bits, 32)
    error = {
        name: output_error(weight, get_quantizer(name).quantize(weight, scheme, stats), stats)
        for name in ("rtn", "gptq", "awq")
    }
    assert error["gptq"] < 0.95 * error["rtn"]
    assert error["awq"] < 0.95 * error["rtn"]


def test_a_dead_column_does_not_touch_the_others():
    """With its weights at zero, the rest is coded as if the column were not there."""
    weight, inputs = sample_layer(16, 40)
    inputs[:, 7] = 0
    live = [j for j in range(40) if j != 7]
    q = get_quantizer("gptq").quantize(weight, Scheme(4, None), LayerStats.from_inputs(inputs))
    rest = get_quantizer("gptq").quantize(weight[:, live], Scheme(4, None), LayerStats.from_inputs(inputs[:, live]))
    assert q.report["dead_columns"] == 1
    assert not q.dequantize()[:, 7].any()
    assert torch.equal(q.codes[:, live], rest.codes)


def test_dead_round_keeps_the_weights():
    weight, inputs = sample_layer(16, 40)
    inputs[:, 7] = 0
    stats = LayerStats.from_inputs(inputs)
    q = get_quantizer("gptq", dead="round").quantize(weight, Scheme(8, None), stats)
    assert (q.dequantize()[:, 7] - weight[:, 7]).abs().max() <= q.scale.max() / 2 * 1.001


def test_damping_ladder():
    """Ten times as much until it works, the first step 0.01 if none was asked for."""
    unit = torch.tensor(1.0)
    weak = torch.diag(torch.tensor([1.0, 1.0, -0.05]))
    factor, damping, retries = damped_factor(weak.clone(), 0.01, unit)
    assert (damping, retries) == (pytest.approx(0.1), 1)
    torch.testing.assert_close(factor.triu() @ factor.triu().T, weak + 0.1 * torch.eye(3))
    assert damped_factor(weak.clone(), 0.0, unit)[1:] == (pytest.approx(0.1), 2)
    assert damped_factor(torch.eye(3), 0.0, unit)[1:] == (0.0, 0)


@pytest.mark.parametrize("block", [3, 4, 11, 64])
@pytest.mark.parametrize("shift", [0.0, -0.3], ids=["at once", "after retries"])
def test_factor_in_place(block, shift, monkeypatch):
    """The upper half becomes R, of whatever number of blocks and after a failure too; H stays below the diagonal."""
    monkeypatch.setattr("quantizers.gptq.damping._BLOCK", block)
    x = torch.randn(40, 11, generator=torch.Generator().manual_seed(0))
    h = x.T @ x / 40 + shift * torch.eye(11)
    changed = h.clone()
    factor, damping, retries = damped_factor(changed, 0.01, torch.tensor(1.0))
    assert factor is changed
    assert (retries > 0) == (shift < 0)
    reversed_factor = torch.linalg.cholesky((h + damping * torch.eye(11)).double().flip(0, 1))
    torch.testing.assert_close(factor.triu(), reversed_factor.flip(0, 1).float(), rtol=1e-4, atol=1e-5)
    assert torch.equal(factor.tril(-1), h.tril(-1))


def test_hopeless_hessian_is_an_error():
    with pytest.raises(QuantizationError, match=r"2 inputs .* damping up to 1"):
        damped_factor(-2 * torch.eye(2), 0.01, torch.tensor(1.0))


def test_the_ladder_is_reported():
    """Two equal inputs make H singular: without damping it cannot be factored."""
    weight, _ = sample_layer(8, 2)
    inputs = torch.tensor([[2.0, 2.0], [0.0, 0.0]])  # H is 4 everywhere, and its pivots are exact
    q = get_quantizer("gptq", damping=0).quantize(weight, Scheme(4, None), LayerStats.from_inputs(inputs))
    assert q.report["damping_retries"] == 1
    assert q.report["damping"] == 0.01


def test_awq_protects_the_channel_with_large_activations():
    weight, inputs = sample_layer(32, 32, tokens=512)
    inputs[:, 5] *= 50
    stats = LayerStats.from_inputs(inputs)
    q = get_quantizer("awq").quantize(weight, Scheme(3, None), stats)
    assert q.report["ratio"] > 0
    assert q.input_scale is not None
    assert q.input_scale.argmax() == 5
    assert q.input_scale.max() * q.input_scale.min() == pytest.approx(1, rel=1e-4)


def test_layers_of_one_input_share_the_awq_scale():
    inputs = sample_layer()[1]
    weights = [sample_layer(rows, seed=rows)[0] for rows in (4, 8)]
    results = get_quantizer("awq").quantize_group(weights, Scheme(3, 8), LayerStats.from_inputs(inputs))
    assert torch.equal(results[0].input_scale, results[1].input_scale)


def test_statistics_by_hand():
    stats = LayerStats.from_inputs(torch.tensor([[[1.0, -2.0]], [[3.0, 0.0]]], dtype=torch.float16))
    assert stats.hessian.tolist() == [[10.0, -2.0], [-2.0, 4.0]]
    assert stats.mean_abs.tolist() == [2.0, 1.0]
    assert stats.n_tokens == 2
    with pytest.raises(ShapeError):
        stats.update(torch.ones(3, 3))
    with pytest.raises(ShapeError):
        stats.merge(LayerStats(3))


def test_statistics_cannot_be_changed_through_what_is_read():
    stats = LayerStats.from_inputs(torch.ones(4, 3))
    stats.hessian.diagonal().add_(math.pi)
    stats.mean_abs.zero_()
    assert torch.equal(stats.hessian, torch.full((3, 3), 2.0))
    assert torch.equal(stats.mean_abs, torch.ones(3))
