"""Oracle: the one calibrating pass against naive code that stores activations and starts over for every layer."""

import pytest
import torch

from ptq_eval.measure import calibration
from ptq_eval.measure.calibration import input_groups, quantize
from ptq_eval.measure.variants import Variant
from ptq_eval.models.language_model import LanguageModel
from quantizers import LayerStats, Scheme, get_quantizer
from tests.reference.gptq import gptq, hessian_of
from tests.support import models as core_models
from tests.support.models import LAYERS, matrix
from tests.support.moe import ExpertsConfig
from tests.support.quantizers import Spy

SCHEME = Scheme(3, 16)
LLAMA = (("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), ("self_attn.o_proj",))
LLAMA += (("mlp.gate_proj", "mlp.up_proj"), ("mlp.down_proj",))
GROUPS = {
    "llama": ("model.layers", LLAMA),
    "olmo2": ("model.layers", LLAMA),
    "qwen3": ("model.layers", LLAMA),
    "gpt2": ("transformer.h", (("attn.c_attn",), ("attn.c_proj",), ("mlp.c_fc",), ("mlp.c_proj",))),
    "opt": (
        "model.decoder.layers",
        (("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), ("self_attn.out_proj",), ("fc1",), ("fc2",)),
    ),
    # Parallel blocks: each branch has a norm of its own, so nothing is shared between them.
    "gpt-neox": (
        "gpt_neox.layers",
        (("attention.query_key_value",), ("attention.dense",), ("mlp.dense_h_to_4h",), ("mlp.dense_4h_to_h",)),
    ),
    # Parallel blocks with one norm: the feed-forward shares the attention's input, although it runs after it.
    "gptj": (
        "transformer.h",
        (("attn.q_proj", "attn.k_proj", "attn.v_proj", "mlp.fc_in"), ("attn.out_proj",), ("mlp.fc_out",)),
    ),
}


def expected_groups(architecture):
    prefix, groups = GROUPS[architecture]
    return [{f"{prefix}.{layer}.{name}" for name in group} for layer in range(LAYERS) for group in groups]


@torch.no_grad()
def inputs_of(module, ids):
    """What each linear module is fed in one forward pass, flattened to tokens, stored in float64."""
    stored, handles = {}, []
    for name, child in module.named_modules():
        if isinstance(child, torch.nn.Linear) or type(child).__name__ == "Conv1D":
            keep = lambda _m, args, name=name: stored.__setitem__(name, args[0].detach().double().flatten(0, -2))
            handles.append(child.register_forward_pre_hook(keep))
    module(input_ids=ids)
    for handle in handles:
        handle.remove()
    return stored


@pytest.mark.parametrize("architecture", GROUPS)
def test_layers_fed_by_one_tensor_are_one_group(architecture):
    model = LanguageModel(core_models.build(architecture))
    groups = input_groups(model, core_models.ids())
    assert [set(group) for group in groups] == expected_groups(architecture)
    assert sorted(name for group in groups for name in group) == sorted(model.linears())


def test_experts_share_their_own_inputs():
    model = LanguageModel(core_models.build(ExpertsConfig(cold=1, layers=1)))
    groups = [set(group) for group in input_groups(model, core_models.ids())]
    prefix = "model.layers.0"
    assert groups[0] == {f"{prefix}.mix"}
    for expert in range(2):
        assert {f"{prefix}.experts.{expert}.w1", f"{prefix}.experts.{expert}.w3"} in groups
    assert groups[-3:] == [{f"{prefix}.experts.2.{w}"} for w in ("w1", "w3", "w2")]


@pytest.mark.parametrize("architecture", GROUPS)
def test_shared_statistics_equal_stored_activations(architecture):
    module, ids = core_models.build(architecture), core_models.ids()
    stored = inputs_of(module, ids)
    model = LanguageModel(module)
    Spy.seen.clear()
    quantize(model, [Variant(Spy(), SCHEME)], ids)
    groups = expected_groups(architecture)
    assert len(Spy.seen) == len(groups), "an input's statistics were taken twice, or not at all"
    for group, (size, hessian, mean_abs, n_tokens) in zip(groups, Spy.seen):
        assert size == len(group)
        assert n_tokens == ids.numel()
        for name in group:
            x = stored[name]
            exact = 2 / len(x) * x.T @ x
            assert torch.allclose(hessian.double(), exact, rtol=1e-4, atol=1e-5 * exact.abs().max())
            assert torch.allclose(mean_abs.double(), x.abs().mean(0), rtol=1e-4)


def test_the_head_is_calibrated_on_its_own_input():
    module, ids = core_models.build("llama"), core_models.ids()
    x = inputs_of(module, ids)["lm_head"]
    Spy.seen.clear()
    variant = Variant(Spy(), SCHEME)
    quantize(LanguageModel(module, include_head=True), [variant], ids)
    exact = 2 / len(x) * x.T @ x
    assert torch.allclose(Spy.seen[-1][1].double(), exact, rtol=1e-4, atol=1e-5 * exact.abs().max())
    assert "lm_head" in variant.weights


def naive_sequential(architecture, ids, solve):
    """Published GPTQ without any bookkeeping: for every group, run the whole model as it is then, and solve.

    `solve(weight [out, in], inputs [tokens, in])` answers with the new weight.
    """
    module = core_models.build(architecture)
    for group in expected_groups(architecture):
        stored = inputs_of(module, ids)
        with torch.no_grad():
            for name in group:
                weight = matrix(module.get_submodule(name))
                weight.copy_(solve(weight.detach().clone(), stored[name]))
    return {
        name: matrix(module.get_submodule(name)).detach() for group in expected_groups(architecture) for name in group
    }


@pytest.mark.parametrize("architecture", GROUPS)
def test_sequential_equals_starting_over_for_every_layer(architecture):
    """The same solver, fed by naive code: any difference is the pass's."""
    ids, gptq = core_models.ids(), get_quantizer("gptq")

    def solve(weight, x):
        return gptq.quantize(weight, SCHEME, LayerStats.from_inputs(x.float())).dequantize()

    variant = Variant(gptq, SCHEME)
    quantize(LanguageModel(core_models.build(architecture)), [variant], ids, sequential=True)
    for name, weight in naive_sequential(architecture, ids, solve).items():
        off = (variant.weights[name] - weight).abs()
        assert (off > 1e-5).float().mean() < 0.001, name


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_sequential_gptq_equals_the_paper_written_naively(architecture):
    """Nothing of the package: float64, H inverted, a whole forward pass per layer."""
    ids = core_models.ids()

    def solve(weight, x):
        return torch.from_numpy(gptq(weight.numpy(), hessian_of(x.numpy()), SCHEME.bits, SCHEME.group_size)[1])

    variant = Variant(get_quantizer("gptq"), SCHEME)
    quantize(LanguageModel(core_models.build(architecture)), [variant], ids, sequential=True)
    expected = naive_sequential(architecture, ids, solve)
    same = sum(((variant.weights[name] - weight).abs() < 1e-4).sum().item() for name, weight in expected.items())
    assert same / sum(weight.numel() for weight in expected.values()) > 0.999


def test_sequential_differs_from_shared_where_it_should():
    ids, variants = core_models.ids(), [Variant(get_quantizer("gptq"), Scheme(2, 16)) for _ in range(2)]
    model = LanguageModel(core_models.build("llama"))
    quantize(model, variants[:1], ids)
    quantize(model, variants[1:], ids, sequential=True)
    first, last = "model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj"
    assert torch.equal(variants[0].weights[first], variants[1].weights[first])
    assert not torch.allclose(variants[0].weights[last], variants[1].weights[last])


class BesideSpy(Spy):
    """As `Spy`, of what differs from the full-precision model: rounding to nearest, so that no tie of one spreads."""

    needs_mismatch = True
    seen = []

    def quantize_group(self, weights, scheme, stats=None):
        self.seen.append((stats.hessian, stats.mismatch))
        return [self.quantize(weight, scheme) for weight in weights]


@pytest.mark.parametrize("tokens", [10_000, 48])  # as one batch, and as chunks of two windows
@pytest.mark.parametrize("architecture", GROUPS)
def test_two_models_beside_each_other_equal_two_modules(architecture, tokens, monkeypatch):
    """The full-precision model kept as a second module, and everything run again for every group."""
    monkeypatch.setattr(calibration, "_CHUNK_TOKENS", {"cpu": tokens})
    BesideSpy.seen.clear()
    ids, used, module = core_models.ids(7, 24), core_models.build(architecture), core_models.build(architecture)
    quantize(LanguageModel(used), [Variant(BesideSpy(), SCHEME)], ids, sequential=True)
    full = inputs_of(core_models.build(architecture), ids)
    groups = expected_groups(architecture)
    assert len(BesideSpy.seen) == len(groups)
    for index, (group, (hessian, mismatch)) in enumerate(zip(groups, BesideSpy.seen)):
        inputs, name = inputs_of(module, ids), next(iter(group))
        exact = 2 / len(inputs[name]) * inputs[name].T @ inputs[name]
        moved = 2 / len(inputs[name]) * (full[name] - inputs[name]).T @ inputs[name]
        assert torch.allclose(hessian.double(), exact, rtol=1e-3, atol=1e-5 * exact.abs().max())
        assert torch.allclose(mismatch.double(), moved, rtol=1e-3, atol=1e-5 * exact.abs().max())
        differ = moved.abs().max() > 1e-3 * exact.abs().max()
        assert differ or index < len(groups) / LAYERS  # the first layers of a model have the same input in both
        for name in group:
            weight = matrix(module.get_submodule(name))
            with torch.no_grad():
                weight.copy_(get_quantizer("rtn").quantize(weight.detach().clone(), SCHEME).dequantize())
    untouched = core_models.build(architecture).state_dict()
    assert all(torch.equal(value, untouched[key]) for key, value in used.state_dict().items())
