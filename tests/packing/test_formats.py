"""Every file format on single layers: read back it holds the weights, or it refuses with the reason."""

from dataclasses import replace

import pytest
import torch

from ptq_eval.models.refusal import Obstacle, refused
from ptq_eval.packing import FILE_FORMATS, Shape
from ptq_eval.packing.awq import ORDER
from ptq_eval.report.export.words import SENTENCES, reason
from quantizers import LayerStats, Scheme, get_quantizer

SHAPE = Shape(rows=64, columns=96)


def layer(scheme, quantizer="rtn", shape=SHAPE, **options):
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(shape.rows, shape.columns, generator=generator)
    stats = LayerStats.from_inputs(torch.randn(400, shape.columns, generator=generator) * torch.rand(shape.columns))
    return get_quantizer(quantizer, **options).quantize(weight, scheme, stats)


def cases():
    for name, file_format in FILE_FORMATS.items():
        for bits in range(2, 9):
            for symmetric in (False, True):
                for group_size in (None, 32):
                    scheme = Scheme(bits, group_size, symmetric)
                    if file_format.refusal(scheme, SHAPE) is None:
                        yield pytest.param(name, scheme, id=f"{name}-{scheme.name}-{group_size}")


@pytest.mark.parametrize(("name", "scheme"), cases())
def test_read_back_a_file_holds_the_weights(name, scheme):
    file_format, quantized = FILE_FORMATS[name], layer(scheme)
    assert file_format.refusal_of(quantized) is None
    read = file_format.weight(file_format.tensors(quantized, SHAPE), scheme, SHAPE)
    exact = quantized.dequantize()
    if file_format.rounds_scales:
        assert ((read - exact).abs() <= 2**-11 * exact.abs() + 1e-7).all()
        assert not torch.equal(read, exact)
    else:
        assert torch.equal(read, exact)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_reordered_columns_keep_their_groups_in_gptq_files(bits):
    quantized = layer(Scheme(bits, 32, symmetric=True), "gptq", act_order=True)
    assert quantized.permutation is not None
    file_format = FILE_FORMATS["gptq"]
    tensors = file_format.tensors(quantized, SHAPE)
    assert sorted(tensors["g_idx"].bincount().tolist()) == [32, 32, 32]
    read = file_format.weight(tensors, quantized.scheme, SHAPE)
    assert torch.allclose(read, quantized.dequantize(), rtol=2**-10)
    assert file_format.config({"x": quantized}, [])["desc_act"] is True


def test_the_first_version_of_gptq_files_stores_zeros_less_one():
    """Symmetric files load in whatever reads GPTQ: 4 bits have the zero 8, stored as 7 in each of eight places."""
    tensors = FILE_FORMATS["gptq"].tensors(layer(Scheme(4, 32, symmetric=True)), SHAPE)
    assert (tensors["qzeros"] == 0x77777777).all()


def test_awq_files_interleave_the_outputs_of_a_word():
    quantized = layer(Scheme(4, 32))
    word = int(FILE_FORMATS["awq"].tensors(quantized, SHAPE)["qweight"][5, 1]) & 0xFFFFFFFF
    codes = [(word >> (4 * place)) & 15 for place in range(8)]
    assert codes == quantized.codes[8:16, 5][ORDER].tolist()


@pytest.mark.parametrize(
    ("name", "scheme", "shape", "words"),
    [
        ("compressed-tensors", Scheme.of("nf4", 32), SHAPE, "no type for nf4, only for integers, fp8_e4m3"),
        ("compressed-tensors", Scheme(4, 40), SHAPE, "no multiple of the group size 40"),
        ("compressed-tensors", Scheme(4, 32), Shape(64, 96, transposed=True), "Conv1D"),
        ("gptq", Scheme(5, 32), SHAPE, "no codes of 5 bits"),
        ("gptq", Scheme(3, 4), Shape(64, 20), "20 inputs of 3 bits do not fill"),
        ("gptq", Scheme(4, 32), Shape(60, 96), "60 outputs of 4 bits do not fill"),
        ("awq", Scheme(3, 32), SHAPE, "no codes of 3 bits"),
        ("awq", Scheme(4, 32), Shape(60, 96), "60 outputs of 4 bits do not fill"),
    ],
)
def test_what_a_format_cannot_hold_is_refused_with_the_reason(name, scheme, shape, words):
    assert words in reason(FILE_FORMATS[name].refusal(scheme, shape))


@pytest.mark.parametrize("name", ["compressed-tensors", "gptq", "awq"])
def test_input_scales_are_refused(name):
    assert FILE_FORMATS[name].refusal_of(layer(Scheme(4, 32), "awq")) == refused(Obstacle.INPUT_SCALES)


@pytest.mark.parametrize("name", ["compressed-tensors", "gptq", "awq"])
def test_zero_points_between_codes_are_refused(name):
    assert FILE_FORMATS[name].refusal_of(layer(Scheme(4, 32), "hqq")) == refused(Obstacle.FREE_ZEROS)
    assert FILE_FORMATS[name].refusal_of(layer(Scheme(4, 32, symmetric=True), "hqq")) is None


def test_groups_of_reordered_columns_are_refused_where_there_is_no_place_for_them():
    reordered = layer(Scheme(4, 32), "gptq", act_order=True)
    whole_rows = layer(Scheme(4, None), "gptq", act_order=True)
    for name in ("compressed-tensors", "awq"):
        assert FILE_FORMATS[name].refusal_of(reordered) == refused(Obstacle.REORDERED_GROUPS)
        assert FILE_FORMATS[name].refusal_of(whole_rows) is None
    read = FILE_FORMATS["compressed-tensors"]
    assert torch.equal(read.weight(read.tensors(whole_rows, SHAPE), whole_rows.scheme, SHAPE), whole_rows.dequantize())


def test_scales_beyond_float16_are_refused_where_they_are_rounded_to_it():
    large = replace(layer(Scheme(4, 32)), scale=torch.full((64, 3), 7e4))
    assert "a scale of 7e+04" in reason(FILE_FORMATS["gptq"].refusal_of(large))
    assert FILE_FORMATS["compressed-tensors"].refusal_of(large) is None


def test_every_obstacle_has_a_sentence():
    assert SENTENCES.keys() == set(Obstacle)


FLOATS = {"fp8_e4m3": (32, None), "mxfp8_e4m3": (32,), "mxfp4": (32,), "nvfp4": (16,), "nvfp4_46": (16,)}


@pytest.mark.parametrize(("name", "size"), [(name, size) for name, sizes in FLOATS.items() for size in sizes])
@pytest.mark.parametrize("quantizer", ["rtn", "gptq"])
def test_floats_of_compressed_tensors_are_those_that_the_package_reads(name, size, quantizer):
    """Bit for bit, but for NVFP4: its tensor scale is stored inverted, and the package unpacks it in bfloat16."""
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

    scheme, file_format = Scheme.of(name, size), FILE_FORMATS["compressed-tensors"]
    quantized = layer(scheme, quantizer)
    assert file_format.refusal(scheme, SHAPE) is None
    assert file_format.refusal_of(quantized) is None
    tensors, exact = file_format.tensors(quantized, SHAPE), quantized.dequantize()
    read = file_format.weight(tensors, scheme, SHAPE)
    config = file_format.config({"x": quantized}, [])
    weights = QuantizationArgs(**config["config_groups"]["group_0"]["weights"])
    package = BaseCompressor.get_value_from_registry(config["format"])
    theirs = package.decompress(tensors, QuantizationScheme(targets=["Linear"], weights=weights))["weight"].float()
    rounding = 2**-22 if name.startswith("nvfp4") else 0
    assert ((read - exact).abs() <= rounding * exact.abs()).all()
    assert ((theirs - exact).abs() <= (2**-7 if rounding else 0) * exact.abs()).all()


def test_floats_in_groups_that_do_not_fill_a_row_are_refused():
    found = FILE_FORMATS["compressed-tensors"].refusal(Scheme.of("mxfp4"), Shape(64, 40))
    assert reason(found) == "a row of 40 weights is no multiple of the group size 32"
