"""Property: what must hold for any weights, found by hypothesis."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quantizers import LayerStats, Scheme, get_quantizer, grid
from quantizers.testing import output_error, sample_layer

FEW = settings(max_examples=40, deadline=None, derandomize=True)
schemes = st.builds(
    Scheme,
    bits=st.integers(2, 8),
    group_size=st.sampled_from([None, 1, 3, 8, 16]),
    symmetric=st.booleans(),
)
layers = st.builds(
    sample_layer,
    rows=st.integers(1, 8),
    columns=st.integers(16, 40),
    tokens=st.integers(50, 80),
    seed=st.integers(0, 1000),
)


@st.composite
def weights(draw):
    """Matrices of any finite float32 that is neither huge nor denormal."""
    rows, columns = draw(st.integers(1, 4)), draw(st.integers(16, 24))
    value = st.floats(-1e6, 1e6, width=32).map(lambda v: 0.0 if abs(v) < 1e-6 else v)
    values = draw(st.lists(value, min_size=rows * columns, max_size=rows * columns))
    return torch.tensor(values, dtype=torch.float32).view(rows, columns)


@FEW
@given(weights(), schemes)
def test_rtn_error_is_at_most_half_a_step(weight, scheme):
    q = get_quantizer("rtn").quantize(weight, scheme)
    step = q.scale.repeat_interleave(q.group_size, 1)[:, : weight.shape[1]]
    assert ((q.dequantize() - weight).abs() <= 0.5001 * step).all()


@FEW
@given(weights(), schemes)
def test_zero_weights_stay_zero(weight, scheme):
    q = get_quantizer("rtn").quantize(weight, scheme)
    assert not q.dequantize()[weight == 0].any()


@FEW
@given(weights(), st.integers(1, 30))
def test_groups_round_trip(weight, size):
    columns = weight.shape[1]
    groups = grid.to_groups(weight, size)
    assert groups.shape == (len(weight), -(-columns // size), size)
    assert torch.equal(grid.from_groups(groups, columns), weight)


@FEW
@given(layers, schemes, st.integers(-6, 6), st.sampled_from(["rtn", "gptq"]))
def test_units_do_not_matter(layer, scheme, power, name):
    """Weights and inputs in other units (powers of two, so without rounding) give the same codes."""
    weight, inputs = layer
    quantizer = get_quantizer(name)
    plain = quantizer.quantize(weight, scheme, LayerStats.from_inputs(inputs))
    other = quantizer.quantize(weight * 2.0**power, scheme, LayerStats.from_inputs(inputs * 2.0**-power))
    assert torch.equal(plain.codes, other.codes)
    assert torch.equal(plain.scale * 2.0**power, other.scale) or not weight.any(1).all()


@FEW
@given(layers, schemes)
def test_awq_is_never_worse_than_rtn_on_the_error_it_sees(layer, scheme):
    weight, inputs = layer
    stats = LayerStats.from_inputs(inputs)
    awq = output_error(weight, get_quantizer("awq").quantize(weight, scheme, stats), stats)
    rtn = output_error(weight, get_quantizer("rtn").quantize(weight, scheme), stats)
    assert awq <= rtn * 1.0001


@FEW
@given(layers, st.integers(1, 49))
def test_statistics_do_not_depend_on_how_tokens_come(layer, cut):
    _, inputs = layer
    whole = LayerStats.from_inputs(inputs)
    parts = LayerStats.from_inputs(inputs[:cut])
    parts.merge(LayerStats.from_inputs(inputs[cut:].view(1, -1, inputs.shape[1])))
    assert parts.n_tokens == whole.n_tokens == len(inputs)
    torch.testing.assert_close(parts.hessian, whole.hessian, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(parts.mean_abs, whole.mean_abs)
