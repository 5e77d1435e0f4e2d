"""Oracle and property: learned rounding against autograd, exhaustive search and plain rounding."""

import itertools

import pytest
import torch

from quantizers import LayerStats, Scheme, get_quantizer, grid
from quantizers.signround import SignRound
from quantizers.testing import output_error, sample_layer


def reference(weight, hessian, scheme, steps):
    """The same descent with autograd and a straight-through round; the error per row, least over the steps."""
    size = scheme.columns_per_group(weight.shape[1])
    groups = grid.to_groups(weight, size)
    low, high = groups.amin(-1), groups.amax(-1)
    offset = torch.zeros_like(groups, requires_grad=True)
    top, bottom = (torch.ones_like(low, requires_grad=True) for _ in range(2))
    best = torch.full_like(weight[:, 0], torch.inf)
    for step in range(steps + 1):
        scale, _ = grid.params_of_range(bottom * low, top * high, scheme.bits, scheme.symmetric)
        zero = grid.params_of_range((bottom * low).detach(), (top * high).detach(), scheme.bits, scheme.symmetric)[1]
        x = groups / scale.unsqueeze(-1) + offset
        x = x + (x.round() - x).detach()
        codes = (x + zero.unsqueeze(-1)).clamp(0, 2**scheme.bits - 1)
        delta = grid.from_groups((codes - zero.unsqueeze(-1)) * scale.unsqueeze(-1), weight.shape[1]) - weight
        error = ((delta @ hessian) * delta).sum(1)
        best = torch.minimum(best, error.detach())
        slopes = torch.autograd.grad(error.sum(), (offset, top, bottom))
        rate = (1 - step / steps) / steps
        with torch.no_grad():
            for value, slope, ends in zip((offset, top, bottom), slopes, ((-0.5, 0.5), (0.5, 1), (0.5, 1))):
                value.sub_(rate * slope.sign()).clamp_(*ends)
    return best


@pytest.mark.parametrize("scheme", [Scheme(3, 16), Scheme(2, 8)], ids=str)
def test_it_is_signed_descent_by_autograd(scheme):
    weight, inputs = sample_layer(24, 32, 300)
    stats = LayerStats.from_inputs(inputs)
    found = SignRound(steps=40).quantize(weight, scheme, stats)
    delta = found.dequantize() - weight
    error = ((delta @ stats.hessian) * delta).sum(1)
    wanted = reference(weight, stats.hessian, scheme, 40)
    assert error.sum() == pytest.approx(float(wanted.sum()), rel=0.03)
    assert found.report["error"] == pytest.approx(float(error.sum()), rel=1e-4)


@pytest.mark.parametrize("ranges", [True, False])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [2, 4])
def test_no_row_is_worse_than_rounding(bits, symmetric, ranges):
    weight, inputs = sample_layer(32, 48, 300)
    stats, scheme = LayerStats.from_inputs(inputs), Scheme(bits, 16, symmetric)
    errors = []
    for quantizer in (SignRound(steps=30, ranges=ranges), get_quantizer("rtn")):
        delta = quantizer.quantize(weight, scheme, stats).dequantize() - weight
        errors.append(((delta @ stats.hessian) * delta).sum(1))
    assert (errors[0] <= errors[1] * (1 + 1e-4)).all()
    assert errors[0].sum() < (0.8 if ranges else 0.95) * errors[1].sum()


def test_it_comes_close_to_the_best_of_all_roundings():
    """Eight weights of one row: every choice of up and down on RTN's own grid."""
    weight, inputs = sample_layer(6, 8, 200)
    stats, scheme = LayerStats.from_inputs(inputs), Scheme(3, None)
    groups = grid.to_groups(weight, 8)
    scale, zero = grid.find_params(groups, 3, False)
    below = (groups / scale[..., None]).floor() + zero[..., None]
    choices = torch.tensor(list(itertools.product((0.0, 1.0), repeat=8)))
    delta = grid.decode((below + choices[:, None, None]).clamp(0, 7), scale, zero).squeeze(2) - weight
    least = torch.einsum("cri,ij,crj->cr", delta, stats.hessian, delta).amin(0).sum()
    plain = output_error(weight, get_quantizer("rtn").quantize(weight, scheme), stats)
    learned = output_error(weight, SignRound(ranges=False).quantize(weight, scheme, stats), stats)
    assert least <= learned * (1 + 1e-5)
    assert learned - least < 0.5 * (plain - least)


def test_with_mismatch_the_error_is_that_of_the_output_in_full_precision():
    """Against outputs computed from the inputs of both models; without it, the same codes as before the option."""
    weight, inputs = sample_layer(24, 32, 400)
    full = inputs + 0.5 * inputs.roll(1, 1)
    stats, scheme = LayerStats.from_inputs(inputs, full), Scheme(2, 16)
    plain, aware = (SignRound(steps=60, mismatch=own).quantize(weight, scheme, stats) for own in (False, True))

    def distance(found):
        return float((full @ weight.T - inputs @ found.dequantize().T).square().sum()) * 2 / len(inputs)

    assert distance(aware) < 0.95 * distance(plain)
    constant = float((full @ weight.T - inputs @ weight.T).square().sum()) * 2 / len(inputs)
    assert aware.report["error"] + constant == pytest.approx(distance(aware), rel=1e-3)
    same = SignRound(steps=60, mismatch=True).quantize(weight, scheme, LayerStats.from_inputs(inputs))
    assert torch.equal(same.codes, plain.codes)
    assert SignRound().options() == {"steps": 200, "ranges": True}
    assert not SignRound().needs_mismatch
    assert SignRound(mismatch=True).needs_mismatch
