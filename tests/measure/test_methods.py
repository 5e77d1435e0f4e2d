"""Contract: whatever a plug-in does, its own measurements fail with the reason, and all others are what they were."""

import re
import sys
from dataclasses import dataclass, replace
from importlib.metadata import EntryPoint

import pytest
import torch

import quantizers
from ptq_eval import plugins
from ptq_eval.errors import UnknownPluginError
from ptq_eval.measure.calibration import quantize
from ptq_eval.measure.variants import Variant
from ptq_eval.models.language_model import LanguageModel
from quantizers import Quantizer, Scheme, get_quantizer
from quantizers.rtn import RTN
from tests.support import models as core_models
from tests.support.quantizers import Idle
from tests.support.steps import measured


@dataclass(frozen=True)
class Plug(Idle):
    """Rounds to nearest."""

    name = "plug"


class Raises(Plug):
    def quantize(self, weight, scheme, stats=None):
        raise RuntimeError("boom")


class Exits(Plug):
    def quantize(self, weight, scheme, stats=None):
        sys.exit(3)


class OutOfMemory(Plug):
    def quantize(self, weight, scheme, stats=None):
        raise MemoryError("all of it")


class Halves(Plug):
    def quantize(self, weight, scheme, stats=None):
        return RTN().quantize(weight[::2], scheme)


class MoreBits(Plug):
    def quantize(self, weight, scheme, stats=None):
        return RTN().quantize(weight, replace(scheme, bits=8))


class GivesATensor(Plug):
    def quantize(self, weight, scheme, stats=None):
        return weight


class GivesNothing(Plug):
    def quantize_grid(self, weights, schemes, stats=None):
        return []


class GivesNaN(Plug):
    def quantize(self, weight, scheme, stats=None):
        found = RTN().quantize(weight, scheme)
        return replace(found, scale=found.scale * torch.nan)


class Undecodable(Plug):
    def quantize(self, weight, scheme, stats=None):
        return replace(RTN().quantize(weight, scheme), scale=torch.ones(1, 7))


class Vandal(Plug):
    """Overwrites everything that it is given, and reports what is no number."""

    def quantize(self, weight, scheme, stats=None):
        found = RTN().quantize(weight, scheme)
        for tensor in (weight, stats.hessian, stats.mean_abs):
            tensor.fill_(7)
        return replace(found, report={"damping": "much"})


BROKEN = {
    Raises: r"plug raised RuntimeError: boom \(test_methods.py:\d+\)",
    Exits: "plug raised SystemExit: 3",
    OutOfMemory: "plug raised MemoryError: all of it",
    Halves: r"codes of another shape: \[16, 32\] instead of \[32, 32\]",
    MoreBits: "gave a layer of another scheme: int8, group_size 16 instead of int3, group_size 16",
    GivesATensor: "gave a Tensor, not a QuantizedWeight",
    GivesNothing: "another number of layers",
    GivesNaN: "not finite",
    Undecodable: "plug raised RuntimeError",
}


@pytest.fixture
def plugged(monkeypatch):
    """plugged(class): the quantizer "plug", as if a package provided it."""

    def install(cls):
        point = EntryPoint("plug", f"{__name__}:{cls.__name__}", "ptq_eval.quantizers")
        every = {**quantizers.available_quantizers(), "plug": point}
        real = plugins._points
        monkeypatch.setattr(plugins, "_points", lambda kind: every if kind == "quantizers" else real(kind))
        monkeypatch.setattr(quantizers, "available_quantizers", lambda: every)

    return install


@pytest.fixture(scope="module")
def sound(saved, small):
    _, records = measured(saved("llama").parent, **{**small, "quantizers": ("gptq",), "bits": (3,)})
    return [record.nll for record in records]


@pytest.mark.parametrize("cls", [*BROKEN, Vandal], ids=lambda cls: cls.__name__)
@pytest.mark.parametrize("calibration", ["default", "sequential"])
def test_what_a_plug_in_breaks_is_its_own(plugged, saved, small, sound, cls, calibration):
    plugged(cls)
    options = {**small, "quantizers": ("plug", "gptq"), "bits": (3,), "calibration": calibration}
    _, records = measured(saved("llama").parent, **options)
    assert [record.nll for record in records if record.trial.quantizer != "plug"] == sound
    (own,) = [record for record in records if record.trial.quantizer == "plug"]
    if cls is Vandal:
        assert own.status == "ok"
    else:
        assert own.status == "failed"
        assert re.search(BROKEN[cls], own.message), own.message


@pytest.mark.parametrize("sequential", [False, True])
def test_a_method_that_breaks_at_a_later_layer_leaves_nothing(sequential):
    class Later(Plug):
        def quantize(self, weight, scheme, stats=None):
            if weight.shape[1] == 48:
                raise RuntimeError("late")
            return RTN().quantize(weight, scheme)

    model = LanguageModel(core_models.build("llama"))
    later, gptq, alone = Variant(Later(), Scheme(3, 16)), *(Variant(get_quantizer("gptq"), Scheme(3, 16)) for _ in "ab")
    quantize(model, [later, gptq], core_models.ids(), sequential=sequential)
    quantize(model, [alone], core_models.ids(), sequential=sequential)
    assert "late" in later.failure
    assert not later.weights
    assert not later.stored
    assert all(torch.equal(gptq.weights[name], alone.weights[name]) for name in alone.weights)


@dataclass(frozen=True)
class Abstract(Quantizer):
    name = "plug"


@pytest.mark.parametrize(("cls", "reason"), [(Abstract, "it has no version"), (dict, "no subclass"), (Plug, None)])
def test_a_class_that_is_no_quantizer_is_refused(plugged, monkeypatch, cls, reason):
    monkeypatch.setitem(globals(), "dict", dict)
    plugged(cls)
    if reason is None:
        assert plugins.get("quantizers", "plug") is Plug
        return
    with pytest.raises(UnknownPluginError, match=f"'plug' cannot be loaded .* {reason}"):
        plugins.get("quantizers", "plug")
