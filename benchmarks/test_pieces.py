"""Single functions, timed with pytest-benchmark: `python -m pytest benchmarks/test_pieces.py`.

For finding out what a change of one function does; no claim rests on these.
"""

from __future__ import annotations

import math

import pytest
import torch

from benchmarks import published_gptq
from benchmarks.subjects import PEER
from ptq_eval.measure.evaluate import evaluate
from ptq_eval.models.language_model import LanguageModel
from quantizers import LayerStats, Scheme, get_quantizer
from quantizers.testing import sample_layer

SHAPES = [(256, 256), (768, 256)]


@pytest.fixture(scope="module")
def model():
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(**{**PEER, "hidden_size": 64, "intermediate_size": 192, "num_hidden_layers": 3})
    return LanguageModel(LlamaForCausalLM(config))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("bits", [2, 4])
@pytest.mark.parametrize("name", ["rtn", "gptq", "awq"])
def test_quantizer(benchmark, name, bits, shape):
    weight, inputs = sample_layer(*shape, tokens=2048)
    stats, quantizer, scheme = LayerStats.from_inputs(inputs), get_quantizer(name), Scheme(bits, 32)
    result = benchmark(quantizer.quantize, weight, scheme, stats)
    assert result.codes.shape == shape


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("count", [1, 4])
@pytest.mark.parametrize("name", ["gptq", "awq"])
def test_grid(benchmark, name, count, shape):
    weight, inputs = sample_layer(*shape, tokens=2048)
    stats, schemes = LayerStats.from_inputs(inputs), [Scheme(bits, 32) for bits in (4, 3, 2, 8)[:count]]
    results = benchmark(get_quantizer(name).quantize_grid, [weight], schemes, stats)
    assert [result.scheme for (result,) in results] == schemes


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_published_gptq(benchmark, shape):
    weight, inputs = sample_layer(*shape, tokens=2048)
    hessian = LayerStats.from_inputs(inputs).hessian
    codes, _ = benchmark(lambda: published_gptq.gptq(weight, published_gptq.upper_factor(hessian), 4, 32))
    assert codes.shape == shape


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_dequantize(benchmark, shape):
    weight, _ = sample_layer(*shape)
    quantized = get_quantizer("rtn").quantize(weight, Scheme(4, 32))
    assert benchmark(quantized.dequantize).shape == shape


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_statistics(benchmark, shape):
    _, inputs = sample_layer(*shape, tokens=8192)
    assert benchmark(LayerStats.from_inputs, inputs).n_tokens == 8192


@pytest.mark.parametrize("variants", [0, 3])
def test_evaluator(benchmark, model, variants):
    ids = torch.randint(model.vocab_size, (32, 128), generator=torch.Generator().manual_seed(0))
    weights = {name: model.weight(name) + 0.01 for name in model.linears()}
    full, scores = benchmark(evaluate, model, ids, [weights] * variants)
    assert len(full.nll) == 32
    assert len(scores) == variants
    assert all(math.isfinite(value) for value in full.nll)
