"""Contract and oracle: what is quantized in each architecture, what is not and why, and that delta is the naive one."""

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from ptq_eval.models.language_model import LanguageModel
from tests.reference.delta import naive_delta
from tests.support import models as core_models
from tests.support.models import CONTEXT, HIDDEN, LAYERS, VOCAB, matrix
from tests.support.steps import measured

H, V, T = HIDDEN, VOCAB, CONTEXT
GATED = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
GATED += ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
GROUPED_QUERY = 2 * H * H + 2 * 16 * H + 3 * 48 * H
FULL_HEADS = 4 * H * H + 3 * 48 * H
CLASSIC = 4 * H * H + 2 * 64 * H

# architecture: (prefix of a layer, its matrices, their weights, all parameters outside of them)
EXPECTED = {
    "llama": ("model.layers", GATED, GROUPED_QUERY, V * H + LAYERS * 2 * H + H),
    "gpt2": (
        "transformer.h",
        ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"),
        4 * H * H + 8 * H * H,
        V * H + T * H + LAYERS * (4 * H + 3 * H + H + 4 * H + H) + 2 * H,
    ),
    "gpt-neox": (
        "gpt_neox.layers",
        ("attention.query_key_value", "attention.dense", "mlp.dense_h_to_4h", "mlp.dense_4h_to_h"),
        CLASSIC,
        2 * V * H + LAYERS * (4 * H + 3 * H + H + 64 + H) + 2 * H,
    ),
    "opt": (
        "model.decoder.layers",
        ("self_attn.k_proj", "self_attn.v_proj", "self_attn.q_proj", "self_attn.out_proj", "fc1", "fc2"),
        CLASSIC,
        V * H + (T + 2) * H + LAYERS * (4 * H + 4 * H + 64 + H) + 2 * H,
    ),
    "olmo2": ("model.layers", GATED, FULL_HEADS, 2 * V * H + LAYERS * (2 * H + 2 * H) + H),
    "qwen3": ("model.layers", GATED, GROUPED_QUERY, 2 * V * H + LAYERS * (2 * H + 2 * 8) + H),
}
TIED = ("llama", "gpt2", "opt")


@pytest.mark.parametrize("architecture", EXPECTED)
def test_what_is_quantized_by_name_and_share(architecture):
    prefix, matrices, weights, rest = EXPECTED[architecture]
    description = LanguageModel(core_models.build(architecture)).describe()
    names = {f"{prefix}.{layer}.{name}" for layer in range(LAYERS) for name in matrices}
    assert set(description["quantized"]) == names
    assert len(description["quantized"]) == len(names)
    assert description["params_quantized"] == LAYERS * weights
    assert description["params_total"] == LAYERS * weights + rest
    assert description["share_quantized"] == pytest.approx(LAYERS * weights / (LAYERS * weights + rest))


@pytest.mark.parametrize("architecture", EXPECTED)
def test_everything_else_is_listed_with_its_reason(architecture):
    module = core_models.build(architecture)
    description = LanguageModel(module).describe()
    excluded = {entry["name"]: entry for entry in description["excluded"]}
    everything = {name for name, _ in module.named_parameters(remove_duplicate=False)}
    assert excluded.keys() | {f"{name}.weight" for name in description["quantized"]} == everything
    assert description["params_quantized"] + sum(e["params"] for e in excluded.values()) == description["params_total"]

    head = next(n for n, m in module.named_modules() if m is module.get_output_embeddings()) + ".weight"
    embedding = next(n for n, m in module.named_modules() if m is module.get_input_embeddings()) + ".weight"
    assert excluded[embedding]["reason"] == "embedding"
    if architecture in TIED:
        assert excluded[head]["reason"] == f"tied output head: the same tensor as {embedding}"
        assert excluded[head]["params"] == 0
    else:
        assert excluded[head]["reason"] == "output head"
        assert excluded[head]["params"] == V * H
    others = {name: entry["reason"] for name, entry in excluded.items() if name not in (head, embedding)}
    for name, reason in others.items():
        positions = name.endswith(("wpe.weight", "embed_positions.weight"))
        assert reason == ("embedding" if positions else "bias" if name.endswith("bias") else "norm or vector"), name


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gpt-neox"])
def test_the_blueprint_tells_the_same_without_weights(architecture, saved):
    blueprint = LanguageModel.blueprint(saved(architecture))
    assert blueprint.device.type == "meta"
    assert blueprint.describe() == LanguageModel.load(saved(architecture)).describe()
    assert blueprint.max_length == CONTEXT
    assert blueprint.vocab_size == VOCAB


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gpt-neox"])
def test_include_head_takes_the_head_and_leaves_the_embedding(architecture, saved):
    model = LanguageModel.load(saved(architecture), include_head=True)
    head = next(n for n, m in model.module.named_modules() if m is model.module.get_output_embeddings())
    assert list(model.linears())[-1] == head
    embedding = model.module.get_input_embeddings().weight
    before, ids = embedding.clone(), core_models.ids()
    plain = model.logits(ids)
    with model.carrying(model.parameters_of({head: torch.zeros_like(model.weight(head))})):
        assert not model.logits(ids).any()
        assert torch.equal(model.module.get_input_embeddings().weight, before)
        assert model.module.get_input_embeddings().weight is embedding
    assert torch.equal(model.logits(ids), plain)
    if architecture in TIED:
        assert model.module.get_output_embeddings().weight is embedding


@pytest.mark.parametrize("architecture", EXPECTED)
def test_weights_are_swapped_by_reference_and_come_back(architecture):
    """Oracle: copying the new weights into a second model gives the same logits."""
    model, other = LanguageModel(core_models.build(architecture)), core_models.build(architecture)
    ids, generator = core_models.ids(), torch.Generator().manual_seed(7)
    own = {name: module.weight for name, module in model.linears().items()}
    values = {name: weight.clone() for name, weight in own.items()}
    plain = model.logits(ids)
    new = {name: torch.randn(model.weight(name).shape, generator=generator) for name in own}
    for name, weight in new.items():
        with torch.no_grad():
            matrix(other.get_submodule(name)).copy_(weight)
    with torch.no_grad():
        expected = other(input_ids=ids).logits
    with model.carrying(model.parameters_of(new)):
        for name, weight in new.items():
            assert torch.equal(model.weight(name), weight)
            if type(model.linears()[name]).__name__ != "Conv1D":
                assert model.weight(name).data_ptr() == weight.data_ptr(), "a weight was copied"
        assert torch.allclose(model.logits(ids), expected, atol=1e-5)
    assert all(module.weight is own[name] for name, module in model.linears().items())
    assert all(torch.equal(own[name], values[name]) for name in own)
    assert torch.equal(model.logits(ids), plain)


def test_a_weight_that_was_set_comes_back_too():
    model = LanguageModel(core_models.build("gpt2"))
    own = {name: module.weight for name, module in model.linears().items()}
    with model.restoring():
        for name in own:
            model.set_weight(name, torch.ones_like(model.weight(name)))
            assert model.weight(name).eq(1).all()
    assert all(module.weight is own[name] for name, module in model.linears().items())


def test_weights_come_back_after_an_exception():
    model = LanguageModel(core_models.build("gpt2"))
    name = next(iter(model.linears()))
    own = model.linears()[name].weight
    zeros = model.parameters_of({name: torch.zeros_like(model.weight(name))})
    with pytest.raises(ZeroDivisionError), model.carrying(zeros):
        raise ZeroDivisionError
    assert model.linears()[name].weight is own


def test_subclasses_of_linear_count():
    class Mine(torch.nn.Linear):
        pass

    module = core_models.build("llama")
    module.model.layers[0].mlp.up_proj = Mine(HIDDEN, 48, bias=False)
    assert "model.layers.0.mlp.up_proj" in LanguageModel(module).linears()


@pytest.mark.parametrize("architecture", EXPECTED)
def test_delta_equals_naive_code(architecture, saved, small):
    """Oracle: replace the weights, run a plain loop, cross entropy of torch."""
    folder = saved(architecture)
    prefix, matrices, *_ = EXPECTED[architecture]
    names = [f"{prefix}.{layer}.{name}" for layer in range(LAYERS) for name in matrices]
    work, records = measured(folder.parent, **{**small, "quantizers": ("rtn",), "bits": (2, 4)})
    full, *quantized = records
    windows = torch.tensor(work.evaluation.ids, dtype=torch.long)
    for record in quantized:
        scheme = record.trial.scheme
        loss, delta = naive_delta(folder, windows, names, scheme.bits, scheme.group_size)
        assert full.loss == pytest.approx(loss, abs=1e-6)
        assert record.loss - full.loss == pytest.approx(delta, abs=1e-6)
        assert record.status == "ok"
        assert record.details["layers"] == len(names)
    assert abs(quantized[0].loss - full.loss) > 0.001, "nothing is compared where nothing changes"


def test_loading_refuses_parameters_that_are_not_there(tmp_path):
    from safetensors.torch import load_file, save_file

    from ptq_eval.errors import UnreadableCheckpointError

    folder = core_models.save(tmp_path / "checkpoint-1", core_models.build("llama"))
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UnreadableCheckpointError, match=r"model\.layers\.1\.mlp\.up_proj\.weight"):
        LanguageModel.load(folder)


def test_the_models_here_are_loaded_as_saved(saved):
    """The fixtures themselves: a saved model comes back bit by bit, tied head included."""
    loaded = AutoModelForCausalLM.from_pretrained(saved("llama"))
    built = core_models.build("llama", seed=1)
    for (name, one), (_, two) in zip(built.named_parameters(), loaded.named_parameters()):
        assert np.array_equal(one.detach().numpy(), two.detach().numpy()), name
