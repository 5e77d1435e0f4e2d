"""Contract: what one calibrating pass keeps to: its end, its memory, the model, and each variant's independence."""

import weakref

import pytest
import torch

from ptq_eval.measure import calibration
from ptq_eval.measure.calibration import input_groups, quantize
from ptq_eval.measure.variants import Variant
from ptq_eval.models.language_model import LanguageModel
from quantizers import LayerStats, Scheme, get_quantizer
from tests.support import models as core_models
from tests.support.models import LAYERS
from tests.support.quantizers import Refuser, Spy, Vandal

SCHEME = Scheme(3, 16)


def test_many_variants_in_one_pass_equal_each_alone():
    """What a trial gives does not depend on which others are missing."""
    ids, model = core_models.ids(), LanguageModel(core_models.build("gpt2"))
    kinds = [("gptq", 2), ("awq", 2), ("rtn", 2), ("gptq", 4), ("awq", 4)]
    together = [Variant(get_quantizer(name), Scheme(bits, 16)) for name, bits in kinds]
    quantize(model, together, ids)
    for (name, bits), variant in zip(kinds, together):
        alone = Variant(get_quantizer(name), Scheme(bits, 16))
        quantize(model, [alone], ids)
        assert alone.weights.keys() == variant.weights.keys()
        assert all(torch.equal(alone.weights[layer], variant.weights[layer]) for layer in variant.weights)


@pytest.mark.parametrize("include_head", [False, True])
@pytest.mark.parametrize("sequential", [False, True])
def test_the_pass_stops_before_any_logits(include_head, sequential):
    module, ids = core_models.build("llama"), core_models.ids()
    made = []
    module.lm_head.register_forward_hook(lambda _m, _args, out: made.append(len(out)))
    model = LanguageModel(module, include_head=include_head)
    quantize(model, [Variant(get_quantizer("gptq"), SCHEME)], ids, sequential=sequential)
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
    variants = [Variant(get_quantizer("gptq"), Scheme(b, 16)) for b in bits]
    quantize(LanguageModel(core_models.build("llama")), variants, core_models.ids(), sequential=sequential)
    assert len(made) == len(input_groups(LanguageModel(core_models.build("llama")), core_models.ids()))
    assert max(most) == 0, "statistics of an earlier layer were alive when the next ones were taken"
    assert not alive


def test_quantizers_cannot_change_the_statistics_of_others():
    ids, model = core_models.ids(), LanguageModel(core_models.build("llama"))
    Spy.seen.clear()
    quantize(model, [Variant(Spy(), SCHEME)], ids)
    quantize(model, [Variant(Vandal(), SCHEME), Variant(Spy(), SCHEME)], ids)
    half = len(Spy.seen) // 2
    for alone, after in zip(Spy.seen[:half], Spy.seen[half:]):
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
    quantize(model, [Variant(get_quantizer("gptq"), SCHEME)], ids, sequential=sequential)
    for name, module in model.linears().items():
        assert module.weight is own[name][0]
        assert torch.equal(module.weight, own[name][1])
        assert not module._forward_pre_hooks


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_a_variant_is_carried_without_a_copy(architecture):
    """A copy per variant would double what variants take, and the memory budget would not hold."""
    model, variant = LanguageModel(core_models.build(architecture)), Variant(get_quantizer("rtn"), SCHEME)
    quantize(model, [variant], None)
    carried = model.parameters_of(variant.weights)
    assert {name: w.data_ptr() for name, w in variant.weights.items()} == {n: p.data_ptr() for n, p in carried.items()}


def test_a_layer_that_cannot_be_quantized_is_named_and_the_pass_goes_on():
    model = LanguageModel(core_models.build("llama"))
    variant = Variant(Refuser(), SCHEME)
    quantize(model, [variant], core_models.ids(), sequential=True)
    wide = {name for name in model.linears() if name.endswith("down_proj")}
    assert variant.skipped == dict.fromkeys(wide, "48 is too many")
    assert variant.weights.keys() == model.linears().keys() - wide
    assert variant.details()["layers_skipped"] == variant.skipped


def test_bits_per_weight_is_the_mean_over_weights():
    model = LanguageModel(core_models.build("llama"))
    variant = Variant(get_quantizer("rtn"), Scheme(4, 32))
    quantize(model, [variant], None)
    # 48 columns in groups of 32 are two groups, the last one ragged: 40 bits of scale and zero per 48 weights.
    per_group, weights = 16 + 4, {name: model.weight(name) for name in model.linears()}
    stored = sum(w.numel() * 4 + w.shape[0] * -(-w.shape[1] // 32) * per_group for w in weights.values())
    assert variant.bits_per_weight == pytest.approx(stored / sum(w.numel() for w in weights.values()))
    assert variant.details()["ragged_layers"] == LAYERS


def test_wrong_calls_are_refused():
    model, variant = LanguageModel(core_models.build("llama")), Variant(get_quantizer("gptq"), SCHEME)
    with pytest.raises(ValueError, match="calibration tokens"):
        quantize(model, [variant], None)


@pytest.mark.parametrize(("heads", "kept"), [(4, ()), (2, ("o_proj",))])
@pytest.mark.parametrize("family", ["llama", "gpt-neox"])
def test_input_scales_take_storage_only_where_the_layer_before_cannot_take_them(family, heads, kept):
    """What is counted is what an export holds: nothing of those that it folds."""
    options = {"num_key_value_heads": heads} if family == "llama" else {}
    model = LanguageModel(core_models.build(family, **options))
    awq, rtn = (Variant(get_quantizer(name), SCHEME) for name in ("awq", "rtn"))
    quantize(model, [awq, rtn], core_models.ids())
    scaled = [name for name in model.linears() if family != "llama" or name.endswith(kept or ("none",))]
    assert awq.stored.keys() == rtn.stored.keys() == model.linears().keys()
    for name in model.linears():
        inputs = model.weight(name).shape[1] if name in scaled else 0
        assert awq.stored[name][0] == rtn.stored[name][0] + 16 * inputs, name


def test_input_scales_that_layers_of_one_norm_do_not_share_take_storage():
    model = LanguageModel(core_models.build("llama", num_key_value_heads=4))
    schemes = {name: Scheme(8 if "k_proj" in name else 3, 16) for name in model.linears()}
    variant = Variant(get_quantizer("awq"), Scheme(3, 16), schemes)
    quantize(model, [variant], core_models.ids())
    name = "model.layers.0.self_attn.q_proj"
    rows, columns = model.weight(name).shape
    assert variant.stored[name][0] == schemes[name].bits_stored(rows, columns) + 16 * columns
