"""Backends that do what no backend should, and one that does what it should."""

from __future__ import annotations

import os
import signal
import time

from ptq_eval.backends.base import Backend, Method, WeightBackend

HERE = ("torch==2",)  # a distribution that is installed wherever the tests run


class Fake(WeightBackend):
    """One way of going wrong for each method."""

    name = "fake"
    requirements = HERE
    imports = "torch"
    source = "the tests"
    methods = {
        name: Method(name, bits=(3, 4), symmetric=(False,))
        for name in (
            *("good", "nan", "shape", "unchanged", "partial", "raises", "killed", "sleeps", "missing"),
            *("process", "draws", "leaks", "more", "undecodable"),
        )
    }
    leaked = []

    def quantize(self, job):
        import torch
        from safetensors.torch import load_file

        found = super().quantize(job)
        if job.cell.method == "missing":
            found.pop(job.layers[0])
        if job.cell.method == "more":
            found["lm_head"] = torch.ones(2, 2)
        if job.cell.method == "partial":
            found[job.layers[0]] = load_file(job.folder / "weights.safetensors")[job.layers[0]]
        return found

    def quantize_weight(self, weight, cell):
        import torch

        from quantizers import Scheme, get_quantizer

        if cell.method == "raises":
            raise ValueError("cannot do this")
        if cell.method == "undecodable":
            raise FileNotFoundError(os.fsdecode(b"no file \xff"))
        if cell.method == "killed":
            print("about to die", flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
        if cell.method == "sleeps":
            time.sleep(3600)
        rounded = get_quantizer("rtn").quantize(weight, Scheme(cell.bits, cell.group_size)).dequantize()
        if cell.method == "nan":
            rounded[0, 0] = torch.nan
        if cell.method == "leaks":
            self.leaked.append(bytearray(b"1" * 600_000_000))
        if cell.method in ("process", "leaks"):
            rounded[0, 0] = os.getpid()
        if cell.method == "draws":
            rounded[0, 0] = torch.rand(())
        changed = {"shape": rounded.T[:-1], "unchanged": weight * (1 + 1e-4)}
        return changed.get(cell.method, rounded)


class Single(WeightBackend):
    """Rounding to nearest, at one width."""

    name = "single"
    requirements = HERE
    imports = "torch"
    source = "the tests"
    methods = {"rtn": Method("one width", bits=(4,), symmetric=(False,))}

    def quantize_weight(self, weight, cell):
        from quantizers import Scheme, get_quantizer

        return get_quantizer("rtn").quantize(weight, Scheme(cell.bits, cell.group_size)).dequantize()


class Folds(Backend):
    """A whole model: rounded, with scales of the columns moved into the norm before, as AWQ does; or left as it is."""

    name = "folds"
    requirements = HERE
    imports = "torch"
    source = "the tests"
    methods = {
        "fold": Method("exact, norms changed", calibration="shared"),
        "scaled": Method("wrong: weights scaled and norms not", calibration="shared"),
        "moves": Method("weights that change in a forward pass", calibration="shared"),
        "reloads": Method("other weights after saving and loading", calibration="shared"),
    }

    def quantize(self, job):
        import torch

        from quantizers import Scheme, get_quantizer

        model = job.load()
        assert job.ids is not None
        assert job.ids.ndim == 2
        rtn = get_quantizer("rtn")
        with torch.no_grad():
            for name in job.layers:
                layer = model.get_submodule(name)
                if name.endswith(("q_proj", "k_proj", "v_proj")):
                    layer.weight *= 2
                else:
                    scheme = Scheme(job.cell.bits, job.cell.group_size)
                    layer.weight.copy_(rtn.quantize(layer.weight, scheme).dequantize())
            for name, parameter in model.named_parameters():
                if name.endswith("input_layernorm.weight") and job.cell.method != "scaled":
                    parameter /= 2
        if job.cell.method == "moves":
            layer = model.get_submodule(job.layers[-1])
            model.register_forward_pre_hook(lambda *_: setattr(layer.weight, "data", 1.01 * layer.weight.data))
        return model

    def reloaded(self, model, job):
        if job.cell.method != "reloads":
            return model if job.cell.method == "fold" else None
        model.get_submodule(job.layers[0]).weight.data *= 0.99
        return model


class Broken(WeightBackend):
    """A package that is there and cannot be imported."""

    name = "broken"
    requirements = HERE
    imports = "tests.backends.unimportable"
    source = "the tests"
    methods = {"rtn": Method("never runs")}

    def quantize_weight(self, weight, cell):
        return weight


class Absent(Broken):
    """A package that is not installed."""

    name = "absent"
    requirements = ("no-such-distribution==1.0",)
    imports = "no_such_module"


class Elsewhere(Absent):
    """A package for another device."""

    name = "elsewhere"
    requirements = HERE
    imports = "torch"
    device = "cuda"
    remarks = "somebody succeeds it"
