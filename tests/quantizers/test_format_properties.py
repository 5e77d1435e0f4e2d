"""Property: what every format must do with any weights; oracle: the compiled loop over levels against torch's."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quantizers import LayerStats, QuantizationError, Scheme, get_quantizer
from quantizers.formats import FORMATS
from quantizers.kernels import LevelBlock, cpu, plain
from quantizers.testing import output_error, sample_layer

FEW = settings(max_examples=30, deadline=None, derandomize=True)
SEARCHED = {name for name, known in FORMATS.items() if known.whole_rows}
PLAIN = sorted(name for name, known in FORMATS.items() if not known.affine)
EXACT_MAXIMUM = [name for name in PLAIN if name not in SEARCHED and not name.endswith("_full") and name[0] != "q"]
"""Formats that represent the largest weight of a group, so that a dequantized weight has the same scales."""


@st.composite
def weights(draw, limit=1e4):
    """Matrices of any finite number that float16 scales can hold, many of them zero, with ragged groups."""
    rows, columns = draw(st.integers(1, 3)), draw(st.integers(32, 72))
    value = st.floats(-limit, limit, width=32).map(lambda v: 0.0 if abs(v) < 1e-2 else v)
    return torch.tensor(draw(st.lists(value, min_size=rows * columns, max_size=rows * columns))).view(rows, columns)


def scheme_of(name):
    return Scheme.of(name, min(FORMATS[name].blocks, default=16))


def rtn(name, weight):
    return get_quantizer("rtn").quantize(weight, scheme_of(name))


@FEW
@given(weights(), st.sampled_from(sorted(FORMATS)))
def test_every_weight_gets_the_nearest_level(weight, name):
    q = rtn(name, weight)
    columns = weight.shape[1]
    scale, zero = (t.repeat_interleave(q.group_size, 1)[:, :columns, None] for t in (q.scale, q.zero))
    all_levels = FORMATS[name].levels().values.double() * scale.double() - zero.double()
    least = (all_levels - weight[..., None].double()).abs().amin(-1)
    error = (q.dequantize().double() - weight.double()).abs()
    assert (error <= least + 1e-6 * (weight.abs() + zero[..., 0].abs())).all()


@FEW
@given(weights(), st.sampled_from(EXACT_MAXIMUM))
def test_quantizing_again_changes_nothing(weight, name):
    once = rtn(name, weight).dequantize()
    again = rtn(name, once).dequantize()
    torch.testing.assert_close(again, once, rtol=1e-5, atol=0)


@FEW
@given(weights(), st.sampled_from(PLAIN))
def test_zero_stays_zero(weight, name):
    assert not rtn(name, weight).dequantize()[weight == 0].any()


@FEW
@given(weights(), st.sampled_from(sorted(FORMATS)))
def test_order_is_kept_within_a_group(weight, name):
    q = rtn(name, weight)
    for start in range(0, weight.shape[1], q.group_size):
        group = weight[:, start : start + q.group_size]
        restored = q.dequantize()[:, start : start + q.group_size]
        assert (restored.gather(1, group.argsort(1)).diff() >= 0).all()


@FEW
@given(weights(1e2), st.integers(-8, 8), st.sampled_from(sorted(set(FORMATS) - set(SEARCHED))))
def test_units_do_not_matter(weight, power, name):
    """Powers of two, within the range of a float16 scale without subnormals."""
    if FORMATS[name].stored == "float16":
        weight = torch.where(weight.abs() < 1, 0.0, weight) + (weight == 0)  # no subnormal scale or minimum
        power = max(power, -4)
    plain_codes = rtn(name, weight).codes
    assert torch.equal(rtn(name, weight * 2.0**power).codes, plain_codes)


@pytest.mark.parametrize("name", sorted(FORMATS))
@pytest.mark.parametrize("factor", [1e-42, 1e-30, 1e30, 3e38])
def test_tiny_and_huge_weights(name, factor):
    weight = sample_layer(4, 64)[0].clamp(-1, 1) * factor
    float16 = FORMATS[name].stored in ("float16", "multiple")
    if float16 and factor > 1:
        with pytest.raises(QuantizationError, match="float16"):
            rtn(name, weight)
        return
    restored = rtn(name, weight).dequantize()
    assert restored.isfinite().all()
    if factor > 1e-40 and not float16:
        relative = (restored.double() - weight.double()).norm() / weight.double().norm()
        assert relative < 0.6


@pytest.mark.parametrize("name", sorted(FORMATS))
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_weights_that_are_not_finite_are_refused(name, bad):
    weight = sample_layer(4, 64)[0]
    weight[1, 3] = bad
    with pytest.raises(QuantizationError, match="NaN or infinite"):
        rtn(name, weight)


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_gptq_and_awq_do_not_lose_to_rtn_on_the_output(name):
    weight, inputs = sample_layer(32, 96, tokens=1024)
    stats, scheme = LayerStats.from_inputs(inputs), scheme_of(name)
    error = {
        method: output_error(weight, get_quantizer(method).quantize(weight, scheme, stats), stats)
        for method in ("rtn", "gptq", "awq")
    }
    assert error["gptq"] < error["rtn"]
    assert error["awq"] <= error["rtn"] * 1.0001


@pytest.mark.parametrize("name", ["nvfp4", "fp8_e4m3", "int4_signed", "q4_1"])
@pytest.mark.parametrize(
    "options", [{"act_order": True}, {"act_order": True, "static_groups": True}, {"block_size": 7}]
)
def test_gptq_of_formats_in_any_order(name, options):
    weight, inputs = sample_layer(16, 96, tokens=1024)
    stats, scheme = LayerStats.from_inputs(inputs), scheme_of(name)
    q = get_quantizer("gptq", **options).quantize(weight, scheme, stats)
    rounded = get_quantizer("rtn").quantize(weight, scheme)
    assert output_error(weight, q, stats) < output_error(weight, rounded, stats)


@pytest.mark.parametrize("name", ["nvfp4", "mxfp4", "nf4", "int3_full"])
def test_a_shrunken_range_has_no_larger_error(name):
    weight = sample_layer(16, 64)[0]
    scheme = scheme_of(name)
    errors = [
        (get_quantizer("rtn", mse=mse).quantize(weight, scheme).dequantize() - weight).abs().pow(2.4).sum()
        for mse in (True, False)
    ]
    assert errors[0] <= errors[1]


def block(name, columns=33, rows=70):
    generator = torch.Generator().manual_seed(0)
    original = torch.randn(columns, rows, generator=generator)
    state = original + 0.1 * torch.randn(columns, rows, generator=generator)
    feedback = torch.eye(columns) + 0.2 * torch.randn(columns, columns, generator=generator).triu(1)
    own = FORMATS[name].levels()
    scale = (0.5 + torch.rand(3, rows, generator=generator)) / own.highest
    scale[0, :5], scale[1, :5] = 0, -scale[1, :5]
    zero = torch.rand(3, rows, generator=generator) if FORMATS[name].affine else torch.zeros(3, rows)
    group_of = torch.randint(3, (columns,), generator=generator)
    codes = torch.full((columns, rows), 255, dtype=torch.uint8)
    return LevelBlock(state, original, feedback, scale, zero, group_of, own, codes, torch.full_like(state, torch.nan))


def copy_of(arguments):
    return LevelBlock(*(t.clone() if isinstance(t, torch.Tensor) else t for t in arguments))


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_numba_gives_the_codes_of_torch(name):
    ours = block(name)
    theirs = copy_of(ours)
    cpu.solve_levels(ours)
    plain.solve_levels(theirs)
    same = ours.codes == theirs.codes
    assert same.float().mean() >= 0.999
    torch.testing.assert_close(ours.delta[same], theirs.delta[same], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("solve", [cpu.solve_levels, plain.solve_levels])
def test_infinite_weights_stay_visible(solve):
    arguments = block("nf4")
    arguments.state[0, 0] = torch.inf
    solve(arguments)
    assert not arguments.delta.isfinite().all()
