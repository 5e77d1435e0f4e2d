"""optimum-quanto: Hugging Face's rounding to nearest, no longer developed."""

from __future__ import annotations

from typing import Any

from ptq_eval.backends.base import Backend, Job, Method


class OptimumQuanto(Backend):
    """`quantize` and `freeze` of the layers: 2 and 4 bits asymmetric in groups, 8 bits and FP8 per row."""

    name = "optimum-quanto"
    requirements = ("optimum-quanto==0.2.7",)
    imports = "optimum.quanto"
    source = "https://github.com/huggingface/optimum-quanto"
    methods = {
        "rtn": Method("rounding to nearest in groups of 128", bits=(2, 4), symmetric=(False,), groups=(128,)),
        "int8": Method("8 bits, one scale per row", scheme="int8_narrow"),
        "fp8": Method("FP8 E4M3, one scale per row", scheme="fp8_e4m3"),
    }

    def quantize(self, job: Job) -> Any:
        """The frozen model."""
        from optimum import quanto

        model = job.load()
        kinds = {"int8": quanto.qint8, "fp8": quanto.qfloat8_e4m3fn}
        kind = kinds.get(job.cell.method) or {2: quanto.qint2, 4: quanto.qint4}[job.cell.bits]
        quanto.quantize(model, weights=kind, include=job.layers)
        quanto.freeze(model)
        return model

    def reloaded(self, model: Any, job: Job) -> Any:
        """Its state and quantization map, put into the model as it was."""
        from optimum import quanto
        from safetensors.torch import load_file, save_file

        save_file(model.state_dict(), job.folder / "saved.safetensors")
        loaded = job.load()
        quanto.requantize(loaded, load_file(job.folder / "saved.safetensors"), quanto.quantization_map(model))
        return loaded
