"""Oracle: the quantizers against the slow implementations of `tests/reference/`."""

import itertools

import numpy as np
import pytest
import torch

from quantizers import LayerStats, Scheme, get_quantizer
from quantizers.testing import sample_layer
from tests.reference.awq import awq, awq_clip
from tests.reference.gptq import gptq, hessian_of
from tests.reference.rtn import rtn

COLUMNS = 192  # more than one block of 128, and not a whole number of them
BITS = (2, 3, 4, 8)
SIZES = (16, 32, 80, None)  # 80 leaves a ragged rest of 32 and crosses the boundary between blocks


def layer(seed=0, rows=64, columns=COLUMNS):
    return sample_layer(rows, columns, tokens=1024, seed=seed)


def agreement(weight, inputs, scheme, **options):
    """Share of codes equal to those of Algorithm 1."""
    stats = LayerStats.from_inputs(inputs)
    ours = get_quantizer("gptq", **options).quantize(weight, scheme, stats).codes.numpy()
    if options.pop("group_scale_from", None) == "current":
        options["block_size"] = 1
    scheme = scheme.bits, scheme.group_size, scheme.symmetric
    theirs, _ = gptq(weight.numpy(), hessian_of(inputs.numpy()), *scheme, **options)
    return (ours == theirs).mean()


@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("bits", BITS)
def test_gptq_codes(bits, size, symmetric, act_order):
    weight, inputs = layer()
    assert agreement(weight, inputs, Scheme(bits, size, symmetric), act_order=act_order) >= 0.999


@pytest.mark.parametrize(
    "options",
    [
        {"static_groups": True, "act_order": True},
        {"static_groups": True},
        {"group_scale_from": "current"},
        {"group_scale_from": "current", "act_order": True},
        {"block_size": 50},
        {"block_size": 1},
        {"block_size": 48, "group_scale_from": "current"},
        {"damping": 0.1},
    ],
    ids=str,
)
@pytest.mark.parametrize("size", [32, 80])
def test_gptq_options(options, size):
    weight, inputs = layer(seed=1)
    assert agreement(weight, inputs, Scheme(3, size), **options) >= 0.999


@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("dead", ["zero", "round"])
@pytest.mark.parametrize("size", [32, None])
def test_gptq_dead_columns(dead, act_order, size):
    weight, inputs = layer(seed=2)
    inputs[:, ::7] = 0
    assert agreement(weight, inputs, Scheme(4, size), dead=dead, act_order=act_order) >= 0.999


def test_gptq_options_matter():
    """The agreement above means something: without the option, the codes are others."""
    weight, inputs = layer(seed=1)
    stats, scheme = LayerStats.from_inputs(inputs), Scheme(3, 32)
    plain = get_quantizer("gptq").quantize(weight, scheme, stats).codes
    for options in ({"act_order": True}, {"static_groups": True}, {"group_scale_from": "current"}):
        codes = get_quantizer("gptq", **options).quantize(weight, scheme, stats).codes
        assert (codes == plain).float().mean() < 0.95, options


@pytest.mark.parametrize(("bits", "size", "symmetric"), itertools.product(range(2, 9), SIZES, (False, True)))
def test_rtn_exactly(bits, size, symmetric):
    weight, _ = layer()
    ours = get_quantizer("rtn").quantize(weight, Scheme(bits, size, symmetric))
    codes, restored = rtn(weight.numpy(), bits, size, symmetric)
    np.testing.assert_array_equal(ours.codes.numpy(), codes)
    np.testing.assert_array_equal(ours.dequantize().numpy(), restored)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    ("bits", "size", "symmetric"),
    [(2, 16, False), (3, 32, True), (4, None, False), (4, 80, True), (8, 16, False)],
)
def test_awq_scales(bits, size, symmetric, seed):
    """Ratio and scales of a direct search on the activations, for three layers that share an input."""
    weight, inputs = layer(seed, rows=96, columns=96)
    weights = list(weight.split([48, 32, 16]))
    stats = LayerStats.from_inputs(inputs)
    mean_abs = stats.mean_abs.numpy() if symmetric else None
    ours = get_quantizer("awq").quantize_group(weights, Scheme(bits, size, symmetric), stats)
    ratio, scales, restored = awq([w.numpy() for w in weights], inputs.numpy(), bits, size, symmetric, mean_abs)
    for result, theirs in zip(ours, restored):
        assert result.report["ratio"] == ratio
        assert np.isclose(result.dequantize().numpy(), theirs, rtol=1e-4, atol=1e-6).mean() >= 0.999
        np.testing.assert_allclose(result.input_scale.numpy(), scales, rtol=1e-5)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("bits", [2, 3])
def test_awq_scales_by_relative_errors(bits, seed):
    """The search weighs layers alike, whatever the size of their outputs."""
    weight, inputs = layer(seed, rows=96, columns=96)
    one, other = weight.split([64, 32])
    stats, errors = LayerStats.from_inputs(inputs), []
    for factor in (1, 32):
        weights = [factor * one, other * torch.linspace(3, 0.1, 96)]
        results = get_quantizer("awq", relative=True).quantize_group(weights, Scheme(bits, 16), stats)
        ratio, _, restored = awq([w.numpy() for w in weights], inputs.numpy(), bits, 16, relative=True)
        assert {result.report["ratio"] for result in results} == {ratio}
        for result, theirs in zip(results, restored):
            assert np.isclose(result.dequantize().numpy(), theirs, rtol=1e-4, atol=1e-6 * factor).mean() >= 0.999
        errors.append(results[0].report["error"])
    assert errors[0] == pytest.approx(errors[1], rel=1e-5)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("size", [16, 20])
def test_awq_clip(size, symmetric):
    """The clip search from blocks of H chooses what a search on the activations chooses."""
    weight, inputs = sample_layer(12, 48, tokens=256, seed=3)
    quantizer = get_quantizer("awq", clip=True)
    ours = quantizer.quantize(weight, Scheme(3, size, symmetric), LayerStats.from_inputs(inputs))
    assert ours.input_scale is not None
    expected = awq_clip(weight.numpy(), inputs.numpy(), ours.input_scale.numpy(), 3, size, symmetric)
    same = np.isclose(ours.dequantize().numpy(), expected, rtol=1e-4, atol=1e-6)
    assert same.mean() >= 0.999


def test_mse_range_is_the_best_of_the_search():
    """A group's clipped range has the least Σ|Δw|^2.4 among the 80 that are tried."""
    weight, _ = sample_layer(8, 32, seed=5)
    ours = get_quantizer("rtn", mse=True).quantize(weight, Scheme(3, 32))
    rows = weight.double().numpy()
    low, high = np.minimum(rows.min(1), 0), np.maximum(rows.max(1), 0)
    errors = []
    for step in range(80):
        scale = (1 - step / 100) * (high - low) / 7
        zero = np.rint(-(1 - step / 100) * low / scale)
        codes = np.clip(np.rint(rows / scale[:, None]) + zero[:, None], 0, 7)
        errors.append((np.abs((codes - zero[:, None]) * scale[:, None] - rows) ** 2.4).sum(1))
    reached = (np.abs(ours.dequantize().double().numpy() - rows) ** 2.4).sum(1)
    np.testing.assert_allclose(reached, np.min(errors, axis=0), rtol=1e-4)
    assert torch.unique(ours.scale / ((torch.tensor(high - low) / 7).unsqueeze(1))).numel() > 1


OPTIONS = [
    {},
    {"act_order": True},
    {"act_order": True, "static_groups": True},
    {"group_scale_from": "current"},
    {"block_size": 24},
    {"mse": True},
    {"dead": "round", "act_order": True},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize(("rows", "columns"), [(256, 64), (1024, 512)])
def test_schemes_of_one_group_size_are_alone_what_they_are_together_to_the_last_bit(options, rows, columns):
    """As promised where rows and columns are multiples of 16: a trial must not depend on which others are missing."""
    weight, inputs = sample_layer(rows, columns, tokens=1024, seed=1)
    stats, quantizer = LayerStats.from_inputs(inputs), get_quantizer("gptq", **options)
    schemes = [Scheme(bits, 32, True) for bits in (2, 3, 4)]
    for scheme, (together,) in zip(schemes, quantizer.quantize_grid([weight], schemes, stats)):
        alone = quantizer.quantize(weight, scheme, stats)
        assert torch.equal(together.codes, alone.codes)
        assert torch.equal(together.scale, alone.scale)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_a_grid_gives_what_each_scheme_gives_alone(options):
    """Groups inside a block, across blocks, ragged, of whole rows; both symmetries; several layers; dead columns."""
    weights = [layer(seed, rows)[0] for seed, rows in ((0, 20), (1, 33))]
    inputs = layer(0)[1].clone()
    inputs[:, 5] = 0
    stats = LayerStats.from_inputs(inputs)
    schemes = [Scheme(b, g, s) for g in (None, 16, 48, 20) for b, s in ((2, False), (3, False), (4, True), (8, True))]
    quantizer = get_quantizer("gptq", **options)
    for scheme, together in zip(schemes, quantizer.quantize_grid(weights, schemes, stats)):
        for one, alone in zip(together, quantizer.quantize_group(weights, scheme, stats)):
            assert (one.codes == alone.codes).float().mean() >= 0.999
            torch.testing.assert_close(one.scale, alone.scale, rtol=1e-4, atol=1e-6)
            assert one.scheme == scheme
            assert dict(one.report) == dict(alone.report)
