"""Property and oracle: Hadamard rotations, and quantizers behind them."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from quantizers import LayerStats, Scheme, get_quantizer
from quantizers.hadamard import HadamardRTN
from quantizers.rotation import hadamard, order_for, rotation_of
from quantizers.testing import output_error, sample_layer
from tests.support import models as core_models
from tests.support.models import matrix

ORDERS = (1, 2, 4, 8, 12, 16, 20, 24, 28, 32, 36, 40, 44, 48, 60, 64, 96, 128, 352)


@pytest.mark.parametrize("order", ORDERS)
def test_hadamard_matrices_are_orthogonal_signs(order):
    found = hadamard(order)
    assert found.abs().eq(1).all()
    assert torch.equal(found @ found.T, order * torch.eye(order))


@pytest.mark.parametrize("order", [3, 6, 10, 14, 18, 22, 7, 92])
def test_where_no_construction_fits_there_is_none(order):
    """92 exists (Baumert, Golomb and Hall 1962), but by none of these constructions; orders 4k + 2 do not exist."""
    assert hadamard(order) is None


@pytest.mark.parametrize(
    ("columns", "most", "order"), [(96, 96, 96), (96, 32, 32), (40, 32, 20), (352, 352, 352), (30, 30, 2), (33, 33, 1)]
)
def test_the_largest_order_that_divides_a_row(columns, most, order):
    assert order_for(columns, most) == order


@given(st.sampled_from([8, 12, 30, 33, 40, 96]), st.integers(1, 128), st.integers(0, 5))
def test_a_rotation_changes_no_product_and_is_undone(columns, most, seed):
    rotation = rotation_of(columns, most, seed)
    weight, inputs = sample_layer(5, columns, 20)
    size = (weight.norm(dim=1)[:, None] * inputs.norm(dim=1)).T
    assert ((rotation.apply(inputs) @ rotation.apply(weight).T - inputs @ weight.T).abs() <= 1e-5 * size).all()
    assert torch.allclose(rotation.undo(rotation.apply(weight)), weight, atol=1e-6)


def test_the_loss_in_full_precision_is_unchanged():
    """To 1e-5: every layer's weight rotated, and its inputs rotated online."""
    module, ids = core_models.build("llama").requires_grad_(False), core_models.ids()
    plain = torch.nn.functional.cross_entropy(module(input_ids=ids).logits.flatten(0, 1), ids.flatten())
    for name, layer in list(module.named_modules()):
        if isinstance(layer, torch.nn.Linear) and name != "lm_head":
            rotation = rotation_of(layer.in_features, layer.in_features, seed=len(name))
            with torch.no_grad():
                matrix(layer).copy_(rotation.apply(matrix(layer).detach()))
            layer.register_forward_pre_hook(lambda _m, args, own=rotation: (own.apply(args[0]),))
    turned = torch.nn.functional.cross_entropy(module(input_ids=ids).logits.flatten(0, 1), ids.flatten())
    assert abs(float(turned - plain)) < 1e-5


@pytest.mark.parametrize("name", ["rtn", "gptq", "hqq", "gptq-noclip", "gptaq", "qronos", "signround"])
@pytest.mark.parametrize("scheme", [Scheme(3, 16), Scheme(3, None, symmetric=True), Scheme.of("mxfp4")], ids=str)
def test_it_is_the_method_on_inputs_that_are_rotated(name, scheme):
    """Oracle: rotate weights and activations by an explicit matrix, quantize, and turn the result back."""
    if scheme.format not in get_quantizer(name).formats:
        pytest.skip("not defined for this format")
    weight, inputs = sample_layer(16, 96, 300)
    full = inputs + 0.3 * sample_layer(16, 96, 300, seed=1)[1]
    most = 32 if scheme.format == "mxfp4" else 96
    explicit = rotation_of(96, most, 0).apply(torch.eye(96))
    stats = LayerStats.from_inputs(inputs @ explicit, full @ explicit)
    turned = get_quantizer(name).quantize(weight @ explicit, scheme, stats)
    found = get_quantizer(f"hadamard-{name}").quantize(weight, scheme, LayerStats.from_inputs(inputs, full))
    assert found.report["rotation_order"] == most
    same = (found.codes == turned.codes).float().mean()
    assert same > 0.995
    off = (found.dequantize() - turned.dequantize() @ explicit.T).abs() > 1e-4 * weight.abs().max()
    assert off.float().mean() < 0.01
    assert found.bits_per_weight == turned.bits_per_weight


def test_outliers_cost_less_after_a_rotation():
    weight, inputs = sample_layer(64, 128, 400)
    weight[:, ::16] *= 12
    stats, scheme = LayerStats.from_inputs(inputs / inputs.std(0)), Scheme(4, 32)
    plain, turned = (get_quantizer("rtn").quantize(weight, scheme), HadamardRTN().quantize(weight, scheme))
    assert output_error(weight, turned, stats) < 0.5 * output_error(weight, plain, stats)


def test_blocks_and_seeds_are_options():
    weight, _ = sample_layer(8, 64)
    one = HadamardRTN(rotation_block=16).quantize(weight, Scheme(4, 16))
    other = HadamardRTN(rotation_block=16, rotation_seed=1).quantize(weight, Scheme(4, 16))
    assert one.report["rotation_order"] == 16
    assert not torch.equal(one.codes, other.codes)
    assert not torch.equal(one.rotation.signs, other.rotation.signs)


def test_what_does_not_follow_from_h_is_not_invented():
    _, inputs = sample_layer(4, 32)
    turned = LayerStats.from_inputs(inputs).rotated(rotation_of(32, 32, 0))
    exact = LayerStats.from_inputs(rotation_of(32, 32, 0).apply(inputs)).hessian
    assert torch.allclose(turned.hessian, exact, atol=1e-5 * float(exact.abs().max()))
    assert turned.mean_abs.isnan().all()
    assert turned.max_abs.isnan().all()
