"""Input scales moved into the layers before: the same function, or a reason why not."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from ptq_eval.models.predecessors import SOURCES
from ptq_eval.models.refusal import Obstacle
from ptq_eval.packing.folding import folded
from ptq_eval.report.export.words import reason
from quantizers import LayerStats, Scheme, get_quantizer
from tests.support.models import build


def quantized(model, scheme):
    """Every layer of a Llama by AWQ, those that share an input together, with statistics of random inputs."""
    layers, awq = {}, get_quantizer("awq")
    for block in (f"model.layers.{i}." for i in range(model.config.num_hidden_layers)):
        for source in dict.fromkeys(SOURCES.values()):
            group = [block + part for part, before in SOURCES.items() if before == source]
            weights = [model.get_submodule(name).weight.detach() for name in group]
            width = weights[0].shape[1]
            inputs = torch.randn(200, width) * torch.rand(width) ** 3
            layers |= dict(zip(group, awq.quantize_group(weights, scheme, LayerStats.from_inputs(inputs))))
    return layers


def logits(model, layers, changed):
    state = {**model.state_dict(), **changed, **{f"{n}.weight": layer.dequantize() for n, layer in layers.items()}}
    other = build(model.config)
    other.load_state_dict(state)
    with torch.inference_mode():
        return other(torch.arange(40)[None]).logits


def dense_of(model, layers):
    return {k: v for k, v in model.state_dict().items() if k.removesuffix(".weight") not in layers}


def test_a_folded_model_computes_the_same():
    model = build("llama", num_key_value_heads=4)
    layers = quantized(model, Scheme(4, 16))
    assert len(layers) == 14
    assert any((layer.input_scale != 1).any() for layer in layers.values())
    without, changed = folded(layers, dense_of(model, layers), "llama")
    assert all(layer.input_scale is None for layer in without.values())
    before, after = logits(model, layers, {}), logits(model, without, changed)
    assert torch.allclose(before, after, rtol=1e-4, atol=1e-5 * float(before.abs().max()))
    assert not torch.allclose(before, logits(model, without, {}), rtol=1e-2)


def test_shared_heads_are_refused():
    model = build("llama", num_key_value_heads=2)
    layers = quantized(model, Scheme(4, 16))
    refusal = folded(layers, dense_of(model, layers), "llama")
    assert refusal.kind == Obstacle.SHARED_OUTPUTS
    assert "16 outputs, which several of 32 inputs share" in reason(refusal)


def test_an_unknown_architecture_is_refused():
    model = build("llama", num_key_value_heads=4)
    layers = quantized(model, Scheme(4, 16))
    refusal = folded(layers, dense_of(model, layers), "gemma")
    assert refusal.kind == Obstacle.UNKNOWN_SOURCE
    assert "a model of type 'gemma'" in reason(refusal)


@pytest.mark.parametrize("change", ["other", "missing", "unscaled"])
def test_layers_after_one_norm_must_agree(change):
    model = build("llama", num_key_value_heads=4)
    layers = quantized(model, Scheme(4, 16))
    name = "model.layers.1.self_attn.k_proj"
    scale = layers[name].input_scale
    if change == "missing":
        layers.pop(name)
    else:
        layers[name] = replace(layers[name], input_scale=None if change == "unscaled" else 2 * scale)
    refusal = folded(layers, dense_of(model, layers), "llama")
    assert refusal.kind == Obstacle.UNEQUAL_SCALES
    assert "not the same scales" in reason(refusal)


def test_nothing_is_changed_without_input_scales():
    model = build("llama", num_key_value_heads=4)
    rtn = {n: get_quantizer("rtn").quantize(m.weight.detach(), Scheme(4, 16)) for n, m in model.named_modules()
           if isinstance(m, nn.Linear) and n != "lm_head"}  # fmt: skip
    without, changed = folded(rtn, dense_of(model, rtn), "anything")
    assert changed == {}
    assert all(torch.equal(without[n].scale, rtn[n].scale) for n in rtn)
