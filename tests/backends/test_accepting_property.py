"""Property: no weights of a worker, however wrong, raise or are measured as they are."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from ptq_eval.backends.base import Cell, Method
from ptq_eval.backends.process import Answer
from ptq_eval.measure.doubts import unchanged
from ptq_eval.measure.foreign import handover
from ptq_eval.measure.foreign.quantizer import method_of
from ptq_eval.measure.variants import Variant
from ptq_eval.models.language_model import LanguageModel
from quantizers import Scheme, get_quantizer

WRONG = (
    "nothing",
    "nan",
    "inf",
    "transposed",
    "short",
    "missing",
    "unchanged",
    "one unchanged",
    "other loss",
    "norm",
    "more",
)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    from tests.support import models

    folder = tmp_path_factory.mktemp("model")
    models.build("llama", seed=3).save_pretrained(folder)
    return LanguageModel.load(folder, name="tiny")


@pytest.mark.slow
@given(st.sets(st.sampled_from(WRONG), min_size=1, max_size=3), st.integers(0, 13))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_weights_are_put_in_place_or_refused(model, tmp_path, fakes, wrong, place):
    names = list(model.linears())
    scheme = Scheme(4, 16)
    found = {
        f"layer:{n}": get_quantizer("rtn").quantize(model.weight(n), scheme).dequantize().contiguous() for n in names
    }
    if "unchanged" in wrong:
        found = {f"layer:{n}": model.weight(n).detach().clone().contiguous() for n in names}
    name = names[place % len(names)]
    key = f"layer:{name}"
    if "one unchanged" in wrong:
        found[key] = model.weight(name).detach().clone().contiguous()
    if "nan" in wrong or "inf" in wrong:
        found[key][0, 0] = torch.nan if "nan" in wrong else torch.inf
    if "transposed" in wrong:
        found[key] = found[key].T[:, :1].contiguous()
    if "short" in wrong:
        found[key] = found[key][1:].clone()
    if "norm" in wrong:
        found["other:model.norm.weight"] = torch.full((3,), 1.0)
    if "missing" in wrong:
        del found[key]
    if "more" in wrong:
        found["layer:lm_head"] = torch.ones(2, 2)
    save_file(found, tmp_path / "0.safetensors")
    loss = handover.loss_of(model.module, torch.arange(16)[None]) + ("other loss" in wrong)
    facts = {"seconds": 1.0, "versions": {}, "loss": loss}
    variant = Variant(method_of("fake:good"), scheme)
    cell = Cell("good", 4, 16, False)
    handover._accept(model, variant, Answer(cell, tmp_path / "0.safetensors", facts), torch.arange(16)[None])
    harmless = {"nothing", "one unchanged"}
    if wrong <= harmless:
        assert not variant.failure
        assert set(variant.weights) | set(variant.skipped) == set(names)
        assert (name in variant.skipped) == ("one unchanged" in wrong)
    else:
        assert variant.failure
        assert not variant.weights


def test_layers_are_put_in_place_in_the_models_order_whatever_that_of_the_file(model, tmp_path, fakes):
    """Their order is that of draws and sums over layers, which two processes would otherwise make differently."""
    scheme, names = Scheme(4, 16), list(model.linears())
    found = {f"layer:{n}": get_quantizer("rtn").quantize(model.weight(n), scheme).dequantize() for n in sorted(names)}
    save_file(found, tmp_path / "0.safetensors")
    facts = {"seconds": 1.0, "versions": {}, "loss": None, "cpu_seconds": 2.0}
    variant = Variant(method_of("fake:good"), scheme)
    cell = Cell("good", 4, 16, False)
    handover._accept(model, variant, Answer(cell, tmp_path / "0.safetensors", facts), torch.arange(16)[None])
    assert list(variant.weights) == names != sorted(names)
    assert list(variant.facts["backend"]) == ["seconds", "versions", "cpu_seconds"]


@given(st.integers(2, 8), st.sampled_from([None, 16, 32, 64]), st.booleans(), st.sampled_from(["int", "nvfp4"]))
def test_a_method_refuses_what_is_not_among_its_schemes_and_says_why(bits, group, symmetric, form):
    method = Method("x", bits=(3, 4), symmetric=(True,), groups=(32, 64), per_row=False)
    refused = method.refusal(Cell("x", bits, group, symmetric, form))
    able = bits in (3, 4) and symmetric and group in (32, 64) and form == "int"
    assert (refused == "") == able


@given(st.integers(1, 300))
def test_a_methods_own_block_fits_where_one_does(narrowest):
    method = Method("x", scheme="nf4", blocks=(64, 32))
    assert method.block(narrowest) == (64 if narrowest >= 64 else 32 if narrowest >= 32 else 64)


def test_an_already_rounded_model_is_not_called_unchanged(model):
    """Weights on the grid stay what they are, as under rounding to nearest."""
    scheme, name = Scheme(4, 16), next(iter(model.linears()))
    rounded = get_quantizer("rtn").quantize(model.weight(name), scheme).dequantize()
    assert not unchanged(rounded, rounded, scheme)
    assert unchanged(model.weight(name), model.weight(name).detach().clone(), scheme)


def test_zero_points_of_the_package_hqq_take_what_our_own_take():
    weight = torch.randn(8, 64, generator=torch.Generator().manual_seed(0))
    own = get_quantizer("hqq").quantize(weight, Scheme(3, 16))
    variant = Variant(method_of("hqq:hqq"), Scheme(3, 16))
    variant.add_dense("layer", own.dequantize(), weight)
    assert variant.bits_per_weight == own.bits_per_weight == 3 + 32 / 16
    assert variant.details()["effective_bits"] == 3 + 19 / 16
