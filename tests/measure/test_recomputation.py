"""Contract: gradients of blocks that compute their activations again are the same bit by bit, whatever the model."""

import gc
import weakref

import pytest
import torch

from ptq_eval.measure import gradients as module
from ptq_eval.measure.gradients import drawn, gradients, mean_gradient
from ptq_eval.measure.second_order import share
from ptq_eval.models.language_model import LanguageModel
from tests.support import models
from tests.support.moe import ExpertsConfig

ARCHITECTURES = ["llama", "gpt2", "gpt-neox", "qwen3", "gptj", "experts", "cold experts"]


def built(architecture):
    experts = {"experts": ExpertsConfig(), "cold experts": ExpertsConfig(cold=1)}
    return LanguageModel(models.build(experts.get(architecture, architecture)))


def calls(model, name):
    """How often a layer is called from here on."""
    counts = []
    model.linears()[name].register_forward_pre_hook(lambda *_: counts.append(1))
    return counts


@pytest.fixture
def recomputing(monkeypatch):
    monkeypatch.setattr(module, "_MOST_ACTIVATIONS", {"cpu": 0})


@pytest.fixture(params=ARCHITECTURES)
def model(request):
    return built(request.param)


def test_gradients_are_the_same_bit_by_bit(model, monkeypatch):
    ids = models.ids(rows=4)
    kept = mean_gradient(model, ids, batch=2)
    monkeypatch.setattr(module, "_MOST_ACTIVATIONS", {"cpu": 0})
    again = mean_gradient(model, ids, batch=2)
    assert all(torch.equal(kept[name], again[name]) for name in kept)
    assert any(gradient.any() for gradient in kept.values())


def test_several_draws_of_labels_are_the_same_bit_by_bit(model, monkeypatch):
    def found():
        generator = torch.Generator().manual_seed(0)
        return list(gradients(model, models.ids(rows=2), lambda p: drawn(p, generator), draws=3))

    kept = found()
    monkeypatch.setattr(module, "_MOST_ACTIVATIONS", {"cpu": 0})
    for one, other in zip(kept, found(), strict=True):
        assert one.keys() == other.keys()
        assert all(torch.equal(a, b) for name in one for a, b in zip(one[name], other[name]))


def test_the_second_order_is_the_same(monkeypatch):
    model = built("llama")
    kept = share(model, models.ids(rows=4))
    monkeypatch.setattr(module, "_MOST_ACTIVATIONS", {"cpu": 0})
    assert share(model, models.ids(rows=4)) == kept


def test_with_the_gradient_of_the_embedding(monkeypatch):
    model = LanguageModel(models.build("llama"), include_embedding=True)
    kept = mean_gradient(model, models.ids(rows=2))
    monkeypatch.setattr(module, "_MOST_ACTIVATIONS", {"cpu": 0})
    again = mean_gradient(model, models.ids(rows=2))
    assert model.embedding in kept
    assert all(torch.equal(kept[name], again[name]) for name in kept)


def test_activations_of_one_block_alone_are_kept(recomputing):
    """No tensor of a block outlives the pass forward but what goes in: every layer is called a second time."""
    model = built("llama")
    counts = calls(model, next(iter(model.linears())))
    mean_gradient(model, models.ids(rows=1))
    assert len(counts) == 2


def test_small_passes_keep_their_activations():
    model = built("llama")
    counts = calls(model, next(iter(model.linears())))
    mean_gradient(model, models.ids(rows=1))
    assert len(counts) == 1


def test_blocks_are_as_before_afterwards(recomputing):
    model = built("llama")
    before = {name: dict(module.__dict__) for name, module in model.module.named_modules()}
    mean_gradient(model, models.ids(rows=1))
    for name, block in model.module.named_modules():
        assert block.__dict__.keys() == before[name].keys()
        assert not block._forward_hooks
        assert not block._forward_pre_hooks


@pytest.mark.parametrize("most", [0, 2**40])
def test_inputs_and_gradients_are_dropped_once_they_are_used(most, monkeypatch):
    """The graph, which lives until the pass back is over, must not keep them."""
    made, call = [], module._Call
    monkeypatch.setattr(module, "_MOST_ACTIVATIONS", {"cpu": most})
    monkeypatch.setattr(module, "_Call", lambda *values: made.append(call(*values)) or made[-1])
    model = built("llama")
    mean_gradient(model, models.ids(rows=1))
    assert len(made) == len(model.linears())
    assert all(one.inputs is None and one.gradient is None for one in made)


@pytest.mark.parametrize("most", [0, 2**40])
def test_a_gradient_is_freed_with_its_last_user(most, monkeypatch):
    """No reference cycle keeps it until garbage is collected."""
    monkeypatch.setattr(module, "_MOST_ACTIVATIONS", {"cpu": most})
    gc.disable()
    try:
        mean = mean_gradient(built("llama"), models.ids(rows=1))
        alive = weakref.ref(next(iter(mean.values())))
        del mean
        assert alive() is None
    finally:
        gc.enable()
