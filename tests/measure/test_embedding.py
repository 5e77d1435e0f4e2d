"""Contract and oracle: the token embedding as a matrix to quantize, alone or with the head that is tied to it."""

import json
from pathlib import Path

import pytest
import torch

import ptq_eval
from ptq_eval import export
from ptq_eval.errors import ExportError, OptionError
from ptq_eval.measure.calibration import quantize
from ptq_eval.measure.gradients import mean_gradient
from ptq_eval.measure.session import Session
from ptq_eval.measure.sweep import sweep
from ptq_eval.measure.variants import Variant
from ptq_eval.models.language_model import LanguageModel
from ptq_eval.records import Doubt, Trial
from ptq_eval.report.run.doubts import doubt_text
from quantizers import LayerStats, Scheme, get_quantizer
from tests.measure.test_memory import planned, records
from tests.support import models as core_models
from tests.support.models import matrix

SCHEME = Scheme(3, 16)
EMBEDDINGS = {"llama": "model.embed_tokens", "gpt2": "transformer.wte", "gpt-neox": "gpt_neox.embed_in"}
TIED = ("llama", "gpt2")


@pytest.mark.parametrize("include_head", [False, True])
@pytest.mark.parametrize("architecture", EMBEDDINGS)
def test_a_tied_tensor_is_one_matrix_and_both_uses_see_it(architecture, include_head):
    model = LanguageModel(core_models.build(architecture), include_head=include_head, include_embedding=True)
    name, ids = EMBEDDINGS[architecture], core_models.ids()
    before = model.logits(ids)
    assert list(model.matrices()) == [name, *model.linears()]
    assert model.describe()["quantized"][0] == name
    head = model.module.get_output_embeddings()
    assert any(module is head for module in model.linears().values()) == (include_head and architecture not in TIED)
    new = get_quantizer("rtn").quantize(model.weight(name), SCHEME).dequantize()

    other = core_models.build(architecture)
    with torch.no_grad():
        other.get_input_embeddings().weight.copy_(new)  # copied into the tensor itself, so that a tied head follows
    with model.carrying(model.parameters_of({name: new})):
        assert (head.weight is model.module.get_input_embeddings().weight) == (architecture in TIED)
        assert torch.equal(model.logits(ids), other(input_ids=ids).logits)
    with model.restoring():
        model.adopt({name: new}, (name,))
        assert torch.equal(model.logits(ids), other(input_ids=ids).logits)
    assert torch.equal(model.logits(ids), before)
    inner = [p for n, p in other.named_parameters() if p.dim() == 2 and (".layers." in n or ".h." in n)]
    ends = {id(p): p for p in (other.get_input_embeddings().weight, other.get_output_embeddings().weight)}
    wanted = [*inner, *list(ends.values())[: 2 if include_head else 1]]
    assert model.quantized_params() == sum(p.numel() for p in wanted)


def naive(architecture, ids, solve):
    """The published order by starting over for every layer, with the embedding rounded first."""
    module = core_models.build(architecture)
    table = module.get_input_embeddings().weight
    with torch.no_grad():
        table.copy_(get_quantizer("rtn").quantize(table, SCHEME).dequantize())
    model = LanguageModel(module)
    for name in model.linears():
        seen = []
        layer = module.get_submodule(name)
        handle = layer.register_forward_pre_hook(lambda _m, args, seen=seen: seen.append(args[0].detach()))
        module(input_ids=ids)
        handle.remove()
        with torch.no_grad():
            matrix(layer).copy_(solve(matrix(layer).detach().clone(), torch.cat(seen)))
    return {name: model.weight(name) for name in model.linears()}


def test_sequential_calibration_sees_the_quantized_embedding():
    """GPT-NeoX: no layers share an input.  Two variants, so that the first input is not taken for both."""
    ids, gptq = core_models.ids(), get_quantizer("gptq")
    model = LanguageModel(core_models.build("gpt-neox"), include_embedding=True)
    variants = [Variant(gptq, Scheme(2, 16)), Variant(gptq, SCHEME)]
    quantize(model, variants, ids, sequential=True)

    def solve(weight, x):
        return gptq.quantize(weight, SCHEME, LayerStats.from_inputs(x.float())).dequantize()

    for name, weight in naive("gpt-neox", ids, solve).items():
        off = (variants[1].weights[name] - weight).abs()
        assert (off > 1e-5).float().mean() < 0.001, name
    rounded = get_quantizer("rtn").quantize(model.weight("gpt_neox.embed_in"), SCHEME).dequantize()
    assert torch.equal(variants[1].weights["gpt_neox.embed_in"], rounded)
    assert variants[1].details()["rounded_to_nearest"] == ["gpt_neox.embed_in"]


def test_with_one_hot_inputs_the_published_method_rounds_to_nearest():
    """Why a method that needs inputs rounds an embedding: H of token ids is diagonal, and nothing is fed back."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.cat([torch.arange(40), torch.randint(40, (200,), generator=generator)])
    stats = LayerStats.from_inputs(torch.nn.functional.one_hot(ids, 40).float())
    weight = torch.randn(12, 40, generator=generator)  # the transposed table
    codes = [get_quantizer(name).quantize(weight, Scheme(3, 8), stats).codes for name in ("gptq", "rtn")]
    assert torch.equal(*codes)


@pytest.mark.parametrize("architecture", ["llama", "gpt-neox"])
def test_the_gradient_by_the_embedding_is_that_of_all_its_uses(architecture):
    model, ids = LanguageModel(core_models.build(architecture), include_embedding=True), core_models.ids(4)
    found = mean_gradient(model, ids, batch=2)
    other = core_models.build(architecture)
    logits = other(input_ids=ids).logits[:, :-1].flatten(0, 1)
    torch.nn.functional.cross_entropy(logits, ids[:, 1:].flatten()).backward()
    for name in model.matrices():
        assert torch.allclose(found[name], matrix(other.get_submodule(name)).grad, atol=1e-6), name
    assert not any(parameter.requires_grad for parameter in model.module.parameters())


@pytest.mark.parametrize("architecture", ["llama", "gpt-neox"])
def test_any_memory_gives_the_same_records(architecture, saved, small):
    asked = {**small, "bits": (3,), "include_embedding": True, "include_head": True}
    work = planned(saved(architecture).parent, **asked).workloads[0]
    assert records(work, None) == records(work, 1)


def test_a_record_says_what_was_quantized_and_how(saved, small):
    work = planned(saved("llama").parent, **{**small, "bits": (4,)}, include_embedding=True).workloads[0]
    full, rtn, gptq = sweep(work, work.trials, tick=lambda _: None)
    assert rtn.details["layers"] == gptq.details["layers"] == 15
    assert "rounded_to_nearest" not in rtn.details
    assert gptq.details["rounded_to_nearest"] == ["model.embed_tokens"]
    assert Doubt.ROUNDED not in {doubt["kind"] for doubt in rtn.details.get("doubts", ())}
    (rounded,) = (doubt for doubt in gptq.details["doubts"] if doubt["kind"] == Doubt.ROUNDED)
    assert "1 of 15 layers (model.embed_tokens) were rounded to nearest" in doubt_text(rounded)
    assert rtn.bits_per_weight == 4 + 20 / 16
    assert rtn.details["rounding"] > 0
    plain = planned(saved("llama").parent, **{**small, "bits": (4,)}).workloads[0]
    assert next(iter(sweep(plain, plain.trials[:1], tick=lambda _: None))).nll == full.nll
    assert plain.trials[1].key() != work.trials[1].key()


def test_keys_from_before_the_option_stay_valid(saved, small):
    trial = planned(saved("llama").parent, **small).workloads[0].trials[1]
    old = {name: value for name, value in trial.to_dict().items() if name != "include_embedding"}
    assert Trial.from_dict(old).key() == trial.key()
    assert "include_embedding" not in trial.identity()


def test_what_cannot_hold_or_make_an_embedding_says_so(saved, small, tmp_path):
    with pytest.raises(OptionError, match="backends quantize no embedding"):
        planned(saved("llama").parent, **{**small, "quantizers": ("rtn", "bitsandbytes:nf4")}, include_embedding=True)
    one = {**small, "quantizers": ("rtn",), "bits": (4,), "include_embedding": True}
    with pytest.raises(ExportError, match=r"cannot hold model\.embed_tokens"):
        export(saved("llama"), tmp_path / "out", file_format="compressed-tensors", **one)


@pytest.mark.parametrize("architecture", ["llama", "gpt-neox"])
def test_an_export_without_packing_holds_the_embedding(architecture, saved, small, tmp_path):
    one = {**small, "quantizers": ("rtn",), "bits": (4,), "include_embedding": True, "include_head": True}
    recipe = export(saved(architecture), tmp_path / "out", file_format="fake", **one)
    assert abs(recipe["file"]["loaded"]["loss"] - recipe["measured"]["loss_q"]) < 1e-5
    assert json.loads((Path(tmp_path) / "out" / "config.json").read_text())["tie_word_embeddings"] == (
        architecture == "llama"
    )


def test_a_run_with_the_embedding_is_another_run(measure):
    measure(quantizers=("rtn",), bits=(4,), include_embedding=True)
    with pytest.raises(ptq_eval.errors.OutputMismatchError, match="include-embedding"):
        measure(quantizers=("rtn",), bits=(4,))


def test_a_session_loads_what_its_trials_ask_for(saved, small):
    work = planned(saved("llama").parent, **small, include_embedding=True).workloads[0]
    with Session.opened(work) as session:
        assert session.model.embedding == "model.embed_tokens"
