"""Oracle: the one calibrating pass against naive code that stores activations and starts over for every layer."""

import sys
import weakref
from pathlib import Path

import core_models
import pytest
import torch
from core_models import LAYERS, matrix
from core_moe import ExpertsConfig
from core_quantizers import Refuser, Spy, Vandal

from ptq_eval import calibration
from ptq_eval.calibration import Lane, input_groups, quantize
from ptq_eval.models import LanguageModel
from quantizers import LayerStats, Scheme, get_quantizer

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
    Spy.told.clear()
    quantize(model, [Lane(Spy(), SCHEME)], ids)
    groups = expected_groups(architecture)
    assert len(Spy.told) == len(groups), "an input's statistics were taken twice, or not at all"
    for group, (size, hessian, mean_abs, n_tokens) in zip(groups, Spy.told):
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
    Spy.told.clear()
    lane = Lane(Spy(), SCHEME)
    quantize(LanguageModel(module, include_head=True), [lane], ids)
    exact = 2 / len(x) * x.T @ x
    assert torch.allclose(Spy.told[-1][1].double(), exact, rtol=1e-4, atol=1e-5 * exact.abs().max())
    assert "lm_head" in lane.weights


def naive_sequential(architecture, ids, solve):
    """Published GPTQ without any bookkeeping: for every group, run the whole model as it stands, then solve.

    `solve(weight [out, in], inputs [tokens, in])` answers with the new weight.
    """
    module = core_models.build(architecture)
    for group in expected_groups(architecture):
        stored = inputs_of(module, ids)
        with torch.no_grad():
            for name in group:
                weight = matrix(module.get_submodule(name))
                weight.copy_(solve(weight.detach().clone(), stored[name]))
    return {name: matrix(module.get_submodule(name)).detach() for group in expected_groups(architecture) for name in group}


@pytest.mark.parametrize("architecture", GROUPS)
def test_sequential_equals_starting_over_for_every_layer(architecture):
    """The same solver, fed by naive code: any difference is the pass's."""
    ids, gptq = core_models.ids(), get_quantizer("gptq")

    def solve(weight, x):
        return gptq.quantize(weight, SCHEME, LayerStats.from_inputs(x.float())).dequantize()

    lane = Lane(gptq, SCHEME)
    quantize(LanguageModel(core_models.build(architecture)), [lane], ids, sequential=True)
    for name, weight in naive_sequential(architecture, ids, solve).items():
        off = (lane.weights[name] - weight).abs()
        assert (off > 1e-5).float().mean() < 0.001, name


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_sequential_gptq_equals_the_paper_written_naively(architecture, gptq_oracle):
    """Nothing of the package: float64, Gaussian elimination, a whole forward pass per layer."""
    ids = core_models.ids()

    def solve(weight, x):
        return torch.from_numpy(gptq_oracle(weight.numpy(), (2 / len(x) * x.T @ x).numpy()))

    lane = Lane(get_quantizer("gptq"), SCHEME)
    quantize(LanguageModel(core_models.build(architecture)), [lane], ids, sequential=True)
    expected = naive_sequential(architecture, ids, solve)
    same = sum(((lane.weights[name] - weight).abs() < 1e-4).sum().item() for name, weight in expected.items())
    assert same / sum(weight.numel() for weight in expected.values()) > 0.999


@pytest.fixture(scope="module")
def gptq_oracle():
    """solve(weight, hessian) by the slow implementation of the quantizers' tests, as a float32 weight."""
    folder = str(Path(__file__).parent.parent / "quantizers")
    sys.path.insert(0, folder)
    try:
        import oracle
    finally:
        sys.path.remove(folder)

    def solve(weight, hessian):
        size, bits, block = 16, 3, 128
        codes = oracle.gptq(weight, hessian, bits, size, False, block_size=block)
        out = weight.copy()
        for start in range(0, weight.shape[1], size):  # rows shorter than a block: scales of the original weight
            part = slice(start, start + size)
            scale, zero = oracle.group_params(weight[:, part], bits, False)
            out[:, part] = (codes[:, part] - zero[:, None]) * scale[:, None]
        return out

    return solve


def test_sequential_differs_from_shared_where_it_should():
    ids, lanes = core_models.ids(), [Lane(get_quantizer("gptq"), Scheme(2, 16)) for _ in range(2)]
    model = LanguageModel(core_models.build("llama"))
    quantize(model, lanes[:1], ids)
    quantize(model, lanes[1:], ids, sequential=True)
    first, last = "model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj"
    assert torch.equal(lanes[0].weights[first], lanes[1].weights[first])
    assert not torch.allclose(lanes[0].weights[last], lanes[1].weights[last])


def test_many_lanes_in_one_pass_equal_each_alone():
    """What a trial gives does not depend on which others are missing."""
    ids, model = core_models.ids(), LanguageModel(core_models.build("gpt2"))
    kinds = [("gptq", 2), ("awq", 2), ("rtn", 2), ("gptq", 4), ("awq", 4)]
    together = [Lane(get_quantizer(name), Scheme(bits, 16)) for name, bits in kinds]
    quantize(model, together, ids)
    for (name, bits), lane in zip(kinds, together):
        alone = Lane(get_quantizer(name), Scheme(bits, 16))
        quantize(model, [alone], ids)
        assert alone.weights.keys() == lane.weights.keys()
        assert all(torch.equal(alone.weights[layer], lane.weights[layer]) for layer in lane.weights)


@pytest.mark.parametrize("include_head", [False, True])
@pytest.mark.parametrize("sequential", [False, True])
def test_the_pass_stops_before_any_logits(include_head, sequential):
    module, ids = core_models.build("llama"), core_models.ids()
    made = []
    module.lm_head.register_forward_hook(lambda _m, _args, out: made.append(len(out)))
    model = LanguageModel(module, include_head=include_head)
    quantize(model, [Lane(get_quantizer("gptq"), SCHEME)], ids, sequential=sequential)
    # With the head among the layers, the probe runs through it, with a single window.
    assert made == ([1] if include_head else [])


@pytest.mark.parametrize("sequential", [False, True])
def test_no_more_than_one_input_s_statistics_are_alive(sequential, monkeypatch):
    alive, most, made = weakref.WeakSet(), [], []

    class Counted(LayerStats):
        def __init__(self, *args, **kwargs):
            most.append(len(alive))
            made.append(1)
            alive.add(self)
            super().__init__(*args, **kwargs)

    monkeypatch.setattr(calibration, "LayerStats", Counted)
    bits = (4,) if sequential else (2, 3, 4)
    lanes = [Lane(get_quantizer("gptq"), Scheme(b, 16)) for b in bits]
    quantize(LanguageModel(core_models.build("llama")), lanes, core_models.ids(), sequential=sequential)
    assert len(made) == len(expected_groups("llama"))
    assert max(most) == 0, "statistics of an earlier layer were alive when the next ones were taken"
    assert not alive


def test_quantizers_cannot_change_the_statistics_of_others():
    ids, model = core_models.ids(), LanguageModel(core_models.build("llama"))
    Spy.told.clear()
    quantize(model, [Lane(Spy(), SCHEME)], ids)
    quantize(model, [Lane(Vandal(), SCHEME), Lane(Spy(), SCHEME)], ids)
    half = len(Spy.told) // 2
    for alone, after in zip(Spy.told[:half], Spy.told[half:]):
        assert torch.equal(alone[1], after[1])
        assert torch.equal(alone[2], after[2])
    stats = LayerStats.from_inputs(torch.ones(2, 3))
    for name in ("hessian", "mean_abs"):
        with pytest.raises(AttributeError):
            setattr(stats, name, torch.zeros(3))


@pytest.mark.parametrize("sequential", [False, True])
def test_the_model_is_left_as_it_was(sequential):
    model, ids = LanguageModel(core_models.build("gpt2")), core_models.ids()
    own = {name: (module.weight, module.weight.clone()) for name, module in model.linears().items()}
    quantize(model, [Lane(get_quantizer("gptq"), SCHEME)], ids, sequential=sequential)
    for name, module in model.linears().items():
        assert module.weight is own[name][0]
        assert torch.equal(module.weight, own[name][1])
        assert not module._forward_pre_hooks


def test_a_layer_that_cannot_be_quantized_is_named_and_the_pass_goes_on():
    model = LanguageModel(core_models.build("llama"))
    lane = Lane(Refuser(), SCHEME)
    quantize(model, [lane], core_models.ids(), sequential=True)
    wide = {name for name in model.linears() if name.endswith("down_proj")}
    assert lane.skipped == dict.fromkeys(wide, "48 is too many")
    assert lane.weights.keys() == model.linears().keys() - wide
    assert lane.details()["layers_skipped"] == lane.skipped


def test_bits_per_weight_is_the_mean_over_weights():
    model = LanguageModel(core_models.build("llama"))
    lane = Lane(get_quantizer("rtn"), Scheme(4, 32))
    quantize(model, [lane], None)
    # 48 columns in groups of 32 are two groups, the last one ragged: 40 bits of scale and zero per 48 weights.
    per_group, weights = 16 + 4, {name: model.weight(name) for name in model.linears()}
    stored = sum(w.numel() * 4 + w.shape[0] * -(-w.shape[1] // 32) * per_group for w in weights.values())
    assert lane.bits_per_weight == pytest.approx(stored / sum(w.numel() for w in weights.values()))
    assert lane.details()["ragged_layers"] == LAYERS


def test_wrong_calls_are_refused():
    model, lane = LanguageModel(core_models.build("llama")), Lane(get_quantizer("gptq"), SCHEME)
    with pytest.raises(ValueError, match="calibration tokens"):
        quantize(model, [lane], None)
    with pytest.raises(ValueError, match="one lane"):
        quantize(model, [lane, lane], core_models.ids(), sequential=True)
