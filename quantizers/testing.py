"""The conformance kit: what every quantizer must do, whoever wrote it; and artificial layers to try one on.

In a package of your own, one test is enough:

    from quantizers.testing import check_quantizer

    def test_conformance():
        check_quantizer(lambda: MyQuantizer(my_option=3))

or one per check, for a finer report: `@pytest.mark.parametrize("check", CHECKS)` and `check(make, "cpu")`.
A check raises AssertionError with a sentence.  The kit needs no pytest, takes about a second for a fast
method, and does not judge how good a method is, except that more bits must mean less error.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from itertools import pairwise

import torch
from torch import Tensor

from quantizers.base import ALL_FORMATS, QuantizedWeight, Quantizer
from quantizers.errors import FormatError, GroupSizeRangeError, MissingStatsError, QuantizationError, ShapeError
from quantizers.formats import FORMATS
from quantizers.scheme import Scheme
from quantizers.stats import LayerStats

COLUMNS = 40  # not a multiple of 16, so that groups of 16 are ragged


def sample_layer(
    rows: int = 12, columns: int = COLUMNS, tokens: int = 256, seed: int = 0, device: str = "cpu"
) -> tuple[Tensor, Tensor]:
    """A random weight [rows, columns] and inputs [tokens, columns], realistic ones.

    Inputs are correlated, and some channels have large activations.
    """
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(columns, columns, generator=generator) / columns**0.5
    channel_scale = torch.randn(columns, generator=generator).exp()
    noise = torch.randn(2, tokens, columns, generator=generator)
    inputs = (noise[0] @ mixing + 0.5 * noise[1] + 0.2) * channel_scale
    weight = 0.05 * torch.randn(rows, columns, generator=generator)
    return weight.to(device), inputs.to(device)


def output_error(weight: Tensor, quantized: QuantizedWeight, stats: LayerStats) -> float:
    """tr(ΔW·H·ΔWᵀ): twice the mean squared error of the layer's output, summed over its features."""
    delta = quantized.dequantize() - weight
    return float(((delta @ stats.hessian) * delta).sum())


Make = Callable[[], Quantizer]


def check_result(quantized: QuantizedWeight, weight: Tensor, scheme: Scheme) -> None:
    """Shapes, types, devices and ranges of a result, and that `dequantize` agrees with codes and grids."""
    rows, columns = weight.shape
    q, groups = quantized, scheme.groups(columns)
    _require(q.codes.shape == (rows, columns) and q.codes.dtype == torch.uint8, "codes are not uint8 [out, in]")
    _require(int(q.codes.max()) < 2**scheme.bits, f"a code does not fit {scheme.bits} bits")
    for name, tensor in (("scale", q.scale), ("zero", q.zero)):
        _require(tensor.shape == (rows, groups), f"{name} is not [out, groups] = [{rows}, {groups}]")
        _require(tensor.dtype == torch.float32, f"{name} is not float32")
        _require(bool(tensor.isfinite().all()), f"{name} is not finite")
    signed = q.scheme.format != "int"  # other formats may have negative scales, and K-quants scales of 0
    _require(signed or bool((q.scale > 0).all()), "a scale is not positive")
    _require(q.outer is None or len(q.outer) == rows, "outer is not [out, blocks, …]")
    _require(q.scheme == scheme, "the scheme is not the one asked for")
    _require(q.group_size == scheme.columns_per_group(columns), "group_size differs from the scheme's")
    _require(q.ragged == (columns % q.group_size != 0), "ragged disagrees with the scheme")
    _require(q.bits_per_weight >= scheme.bits, "bits_per_weight is below the bits of the codes")
    plain = all(isinstance(value, (bool, int, float, str)) for value in q.report.values())
    _require(plain, "the report holds more than numbers and strings")

    order = torch.arange(columns)
    if q.permutation is not None:
        order = q.permutation.cpu()
        _require(torch.equal(order.sort().values, torch.arange(columns)), "permutation is not one")
    group = torch.empty_like(order)
    group[order] = torch.arange(columns) // q.group_size
    codes, step, zero = q.codes.cpu(), q.scale.cpu()[:, group], q.zero.cpu()[:, group]
    table = None if scheme.format == "int" else FORMATS[scheme.format].levels().table()
    expected = (codes - zero) * step if table is None else table[codes.long()] * step - zero
    if q.input_scale is not None:
        _require(q.input_scale.shape == (columns,), "input_scale is not [in]")
        _require(bool((q.input_scale > 0).all()), "an input scale is not positive")
        expected /= q.input_scale.cpu()
    if q.rotation is not None:
        rotation = q.rotation.apply(torch.eye(columns, device=weight.device))
        off = (rotation @ rotation.T - torch.eye(columns, device=weight.device)).abs().max().item()
        _require(off < 1e-5, "the rotation is not orthogonal")
        expected = expected @ rotation.T.cpu()
    slack = 1e-8 if q.rotation is None else 1e-5 * float(expected.abs().max())  # a rotation adds numbers of both signs
    restored = q.dequantize()
    _require(restored.device == weight.device, "the result is on another device than the weight")
    _require(bool(restored.isfinite().all()), "the dequantized weight is not finite")
    _require(
        torch.allclose(restored.cpu(), expected, rtol=1e-5, atol=slack), "dequantize is not what the codes represent"
    )
    _require(q.dequantize(torch.float16).dtype == torch.float16, "dequantize ignores its dtype")


def check_identity(make: Make, device: str = "cpu") -> None:
    """Name, version, calibration and options exist, are documented, and can be stored in a record."""
    quantizer = make()
    _require(isinstance(quantizer, Quantizer), "not a subclass of quantizers.Quantizer")
    _require(all(isinstance(s, str) and s for s in (quantizer.name, quantizer.version)), "no name or version")
    _require(isinstance(quantizer.needs_stats, bool), "needs_stats is not a bool")
    known = quantizer.default_calibration in ("shared", "sequential", "none")
    _require(known, "default_calibration is not shared, sequential or none")
    options, explained = quantizer.options(), quantizer.option_help()
    _require(json.loads(json.dumps(options)) == options, "options do not survive JSON")
    _require(options.keys() <= explained.keys() and all(explained.values()), "an option has no sentence of help")
    _require(make() == quantizer, "two quantizers of the same options differ")


def check_schemes(make: Make, device: str = "cpu") -> None:
    """Every bit-width and both symmetries, with groups that divide a row, are ragged, single columns or whole rows."""
    weight, inputs = sample_layer(device=device)
    stats = LayerStats.from_inputs(inputs)
    for scheme in _schemes():
        check_result(make().quantize(weight, scheme, stats), weight, scheme)


def check_formats(make: Make, device: str = "cpu") -> None:
    """Every format that the method declares, with its smallest groups; every other format is refused."""
    quantizer = make()
    known = set(quantizer.formats) <= set(ALL_FORMATS) and len(quantizer.formats) > 0
    _require(known, f"formats are not some of {', '.join(ALL_FORMATS)}")
    weight, inputs = sample_layer(device=device)
    stats = LayerStats.from_inputs(inputs)
    for name, known in FORMATS.items():
        scheme = Scheme.of(name, min(known.blocks, default=16))
        if name in quantizer.formats:
            check_result(quantizer.quantize(weight, scheme, stats), weight, scheme)
        else:
            _refuses(FormatError, lambda scheme=scheme: quantizer.check_format(scheme))


def check_shapes(make: Make, device: str = "cpu") -> None:
    """One row, one column, fewer tokens than inputs, and inputs that were always zero."""
    for rows, columns, tokens in ((1, 24, 64), (6, 1, 64), (5, 200, 300), (6, 48, 7)):
        weight, inputs = sample_layer(rows, columns, tokens, device=device)
        inputs[:, columns // 2] = 0
        scheme = Scheme(4, None)
        check_result(make().quantize(weight, scheme, LayerStats.from_inputs(inputs)), weight, scheme)


def check_purity(make: Make, device: str = "cpu") -> None:
    """No argument is changed, the global random generator is not used, and results repeat."""
    weight, inputs = sample_layer(device=device)
    weight = torch.nn.Parameter(weight)
    stats = LayerStats.from_inputs(inputs)
    before = [t.clone() for t in (weight.detach(), stats.hessian, stats.mean_abs, torch.get_rng_state())]
    results = [make().quantize(weight, Scheme(3, 16), stats) for _ in range(2)]
    after = [weight.detach(), stats.hessian, stats.mean_abs, torch.get_rng_state()]
    names = ("the weight", "the Hessian", "mean |x|", "the state of the global generator")
    for name, old, new in zip(names, before, after):
        _require(torch.equal(old, new), f"{name} was changed")
    _require(stats.n_tokens == len(inputs), "the number of tokens was changed")
    for field in ("codes", "scale", "zero"):
        same = torch.equal(getattr(results[0], field), getattr(results[1], field))
        _require(same, f"two calls give different {field}")
    _require(not results[0].dequantize().requires_grad, "the result carries gradients")


def check_dtypes(make: Make, device: str = "cpu") -> None:
    """A transposed, half or bfloat16 weight gives the codes of its contiguous float32 copy."""
    weight, inputs = sample_layer(device=device)
    stats, scheme = LayerStats.from_inputs(inputs), Scheme(4, 16)
    for variant in (weight.T.contiguous().T, weight.half(), weight.bfloat16()):
        plain = make().quantize(variant.float().contiguous(), scheme, stats)
        codes = make().quantize(variant, scheme, stats).codes
        same = (codes == plain.codes).float().mean().item()
        kind = f"{variant.dtype}, strides {variant.stride()}"
        _require(same > 0.99, f"a weight of {kind} has other codes than its contiguous float32 copy")


def check_more_bits(make: Make, device: str = "cpu") -> None:
    """The error of the layer's output falls from 2 to 3, 4, 6 and 8 bits."""
    weight, inputs = sample_layer(32, 64, device=device)
    stats = LayerStats.from_inputs(inputs)
    for size in (16, None):
        for symmetric in (False, True):
            schemes = [Scheme(bits, size, symmetric) for bits in (2, 3, 4, 6, 8)]
            errors = [output_error(weight, make().quantize(weight, s, stats), stats) for s in schemes]
            falling = all(low < high for high, low in pairwise(errors))
            _require(falling, f"errors at 2, 3, 4, 6, 8 bits (group size {size}) do not fall: {errors}")


def check_degenerate(make: Make, device: str = "cpu") -> None:
    """Zeros stay exact zeros, constant rows of either sign are accurate, tiny weights give finite results."""
    weight, inputs = sample_layer(device=device)
    stats = LayerStats.from_inputs(inputs)
    sign = torch.where(torch.arange(len(weight), device=device) % 2 == 0, 1.0, -1.0)
    constant = (0.3 * sign).unsqueeze(1).expand_as(weight)
    for scheme in (Scheme(8, 16), Scheme(8, 16, symmetric=True)):
        zeros = make().quantize(torch.zeros_like(weight), scheme, stats)
        _require(not zeros.dequantize().any(), "a weight of zeros does not stay zero")
        quantized = make().quantize(constant, scheme, stats)
        off = (quantized.dequantize() - constant).abs().max().item()
        _require(off < 0.02, f"constant rows of ±0.3 are off by {off:.3g} at 8 bits")
        tiny = weight * 1e-40
        check_result(make().quantize(tiny, scheme, stats), tiny, scheme)


def check_group(make: Make, device: str = "cpu") -> None:
    """Layers that share an input are returned in order, each complete; no layers give no results."""
    stats = LayerStats.from_inputs(sample_layer(device=device)[1])
    weights = [sample_layer(rows, seed=rows, device=device)[0] for rows in (4, 9, 2)]
    scheme = Scheme(8, 16)
    results = make().quantize_group(weights, scheme, stats)
    _require(len(results) == len(weights), "quantize_group loses layers")
    for weight, result in zip(weights, results):
        check_result(result, weight, scheme)
        off = (result.dequantize() - weight).norm() / weight.norm()
        _require(off.item() < 0.05, f"quantize_group mixes layers up: off by {off.item():.3g} at 8 bits")
    _require(make().quantize_group([], scheme, stats) == [], "quantize_group of nothing is not an empty list")


def check_grid(make: Make, device: str = "cpu") -> None:
    """A grid of schemes gives the same codes as each scheme alone."""
    stats = LayerStats.from_inputs(sample_layer(device=device)[1])
    weights = [sample_layer(rows, seed=rows, device=device)[0] for rows in (4, 9)]
    schemes = [Scheme(4, 16), Scheme(2, None), Scheme(8, 16), Scheme(3, 16, symmetric=True), Scheme(2, COLUMNS)]
    results = make().quantize_grid(weights, schemes, stats)
    _require([len(result) for result in results] == [2] * len(schemes), "quantize_grid loses schemes or layers")
    for scheme, result in zip(schemes, results):
        for weight, quantized, alone in zip(weights, result, make().quantize_group(weights, scheme, stats)):
            check_result(quantized, weight, scheme)
            same = (quantized.codes == alone.codes).float().mean().item()
            _require(same > 0.99, f"{scheme} has other codes in a grid than alone")
    _require(make().quantize_grid(weights, [], stats) == [], "quantize_grid of no scheme is not an empty list")
    _require(make().quantize_grid([], schemes[:2], stats) == [[], []], "quantize_grid of no layers is not empty")


def check_errors(make: Make, device: str = "cpu") -> None:
    """Wrong arguments and unusable numbers raise the errors of `quantizers.errors`."""
    weight, inputs = sample_layer(device=device)
    stats, scheme = LayerStats.from_inputs(inputs), Scheme(4, 16)
    quantizer = make()
    _refuses(GroupSizeRangeError, lambda: quantizer.quantize(weight, Scheme(4, COLUMNS + 1), stats))
    _refuses(ShapeError, lambda: quantizer.quantize(weight[0], scheme, stats))
    _refuses(QuantizationError, lambda: quantizer.quantize(weight * torch.nan, scheme, stats))
    if quantizer.needs_stats:
        narrow = LayerStats.from_inputs(inputs[:, 1:])
        poisoned = LayerStats.from_inputs(inputs * torch.nan)
        unseen = LayerStats(COLUMNS, device=device)
        _refuses(MissingStatsError, lambda: quantizer.quantize(weight, scheme, None))
        _refuses(ShapeError, lambda: quantizer.quantize(weight, scheme, narrow))
        _refuses(QuantizationError, lambda: quantizer.quantize(weight, scheme, poisoned))
        _refuses(QuantizationError, lambda: quantizer.quantize(weight, scheme, unseen))
    else:
        check_result(quantizer.quantize(weight, scheme, None), weight, scheme)


CHECKS: tuple[Callable[[Make, str], None], ...] = (
    check_identity,
    check_schemes,
    check_formats,
    check_shapes,
    check_purity,
    check_dtypes,
    check_more_bits,
    check_degenerate,
    check_group,
    check_grid,
    check_errors,
)


def check_quantizer(make: Make, device: str = "cpu") -> None:
    """Run every check on quantizers that `make()` builds.  Raises AssertionError at the first that fails."""
    for check in CHECKS:
        check(make, device)


def _schemes() -> Iterator[Scheme]:
    for bits in range(2, 9):
        for symmetric in (False, True):
            for size in (None, 8, 16, COLUMNS, 1):
                yield Scheme(bits, size, symmetric)


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise AssertionError(message)


def _refuses(error: type[Exception], call: Callable[[], object]) -> None:
    try:
        call()
    except error:
        return
    raise AssertionError(f"{error.__name__} was not raised")
