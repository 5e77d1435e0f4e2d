"""Oracle and property: the weight side of SmoothQuant."""

import pytest
import torch

from quantizers import LayerStats, OptionValueError, QuantizationError, Scheme, get_quantizer
from quantizers.smoothquant import SmoothQuant, migration
from quantizers.testing import sample_layer


def test_the_largest_input_is_kept_over_updates_merges_and_types():
    _, inputs = sample_layer(4, 12, 60)
    stats, other = LayerStats.from_inputs(inputs[:20]), LayerStats.from_inputs(inputs[40:].half())
    stats.update(inputs[20:40].reshape(2, 10, 12))
    stats.update(inputs[:0])
    stats.merge(other)
    exact = torch.cat([inputs[:40], inputs[40:].half().float()]).abs().amax(0)
    assert torch.equal(stats.max_abs, exact)
    stats.max_abs.zero_()
    assert torch.equal(stats.max_abs, exact)  # each read gives a copy


def test_it_is_rounding_of_scaled_weights_with_one_scale_for_layers_that_share_an_input():
    weights, inputs = [sample_layer(rows, seed=rows)[0] for rows in (5, 9)], sample_layer()[1]
    stats, scheme = LayerStats.from_inputs(inputs), Scheme(3, 8)
    largest = torch.cat(weights).abs().amax(0)
    scales = (inputs.abs().amax(0) ** 0.5) / (largest**0.5)
    for weight, found in zip(weights, SmoothQuant().quantize_group(weights, scheme, stats)):
        plain = get_quantizer("rtn").quantize(weight * scales, scheme)
        assert torch.allclose(found.input_scale, scales)
        assert torch.equal(found.codes, plain.codes)
        assert torch.allclose(found.dequantize(), plain.dequantize() / scales)


def test_both_ranges_are_equal_at_half():
    """Their point: with α = ½, max|x/s| = max|w·s| in every channel."""
    weight, inputs = sample_layer()
    scales = migration(inputs.abs().amax(0), weight.abs().amax(0), 0.5)
    assert torch.allclose((inputs / scales).abs().amax(0), (weight * scales).abs().amax(0))


def test_channels_without_inputs_or_weights_keep_their_scale():
    assert migration(torch.tensor([0.0, 4.0, 4.0]), torch.tensor([1.0, 0.0, 1.0]), 0.5).tolist() == [1, 1, 2]


def test_unusable_options_and_statistics():
    with pytest.raises(OptionValueError, match="0 to 1"):
        get_quantizer("smoothquant", alpha=1.5)
    weight, inputs = sample_layer()
    with pytest.raises(QuantizationError):
        SmoothQuant().quantize(weight, Scheme(4, 8), LayerStats.from_inputs(inputs * torch.nan))
