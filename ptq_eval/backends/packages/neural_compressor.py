"""Intel neural-compressor (neural-compressor-pt): prepare, calibrate, convert."""

from __future__ import annotations

from typing import Any

from ptq_eval.backends.base import Backend, Job, Method


class NeuralCompressor(Backend):
    """RTN, GPTQ and AWQ of the weight-only API.

    Its AWQ searches a clipped range too: without that search version 3.10 scales layers and quantizes none of them.
    """

    name = "neural-compressor"
    requirements = ("neural-compressor-pt==3.10", "accelerate")  # its GPTQ imports accelerate, which it omits
    imports = "neural_compressor"
    source = "https://github.com/intel/neural-compressor"
    methods = {
        "gptq": Method("GPTQ", calibration="sequential"),
        "awq": Method("AWQ with clipping", symmetric=(False,), calibration="sequential"),
        "rtn": Method("rounding to nearest"),
    }

    def quantize(self, job: Job) -> Any:
        """The converted model."""
        from neural_compressor.torch.quantization import AWQConfig, GPTQConfig, RTNConfig, convert, prepare

        cell, model = job.cell, job.load()
        options: dict[str, Any] = {
            "bits": cell.bits,
            "use_sym": cell.symmetric,
            "group_size": cell.group_size or -1,
            "use_layer_wise": False,
        }
        if cell.method == "rtn" or job.ids is None:
            return convert(prepare(model, RTNConfig(**options)))
        if cell.method == "gptq":
            model = prepare(model, GPTQConfig(**options))
        else:
            model = prepare(model, AWQConfig(**options), example_inputs=job.ids[:1])
        for row in job.ids:
            model(row[None])
        return convert(model)

    def reloaded(self, model: Any, job: Job) -> Any:
        """Packed in its own format, and loaded into the model as it was."""
        from neural_compressor.torch.quantization import load

        model.save(job.saved)
        return load(job.saved, original_model=job.load())
