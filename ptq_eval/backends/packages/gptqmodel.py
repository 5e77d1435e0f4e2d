"""GPTQModel: GPTQ, GPTAQ, AWQ and plain rounding, packed by its own code; the successor of auto-gptq and autoawq."""

from __future__ import annotations

from typing import Any

from ptq_eval.backends.base import Backend, Job, Method


class GPTQModel(Backend):
    """ModelCloud's package, with its defaults but for the layers' kernels.

    These are the plain torch ones, because the others want a GPU; AWQ's packs 16-bit models only.  Columns are
    taken in an order of its own within groups, and damping starts at 0.05.
    """

    name = "gptqmodel"
    requirements = ("gptqmodel==7.6.0",)
    imports = "gptqmodel"
    source = "https://github.com/ModelCloud/GPTQModel"
    variables = {"GPTQMODEL_CPU_WORKERS": "2"}  # with one worker it raises on a CPU
    methods = {
        "gptq": Method("GPTQ", groups=(16, 32, 64, 128, 256, 512, 1024), calibration="sequential"),
        "gptaq": Method("GPTAQ", groups=(16, 32, 64, 128, 256, 512, 1024), calibration="sequential"),
        "rtn": Method("rounding to nearest", groups=(16, 32, 64, 128, 256, 512, 1024)),
        "awq": Method(
            "AWQ with clipping", (4,), symmetric=(False,), groups=(16, 32, 64, 128), calibration="sequential"
        ),
    }
    remarks = "7.7 needs torch 2.14; it compiles its packer at first use, which takes a minute and a C++ compiler"

    def quantize(self, job: Job) -> Any:
        """The transformers model, its layers packed."""
        import torch
        from gptqmodel import BACKEND
        from gptqmodel import GPTQModel as Model
        from gptqmodel.quantization.config import FORMAT, AWQConfig, GPTQConfig, RTNConfig

        cell, method = job.cell, job.cell.method
        options = {"bits": cell.bits, "group_size": cell.group_size or -1, "sym": cell.symmetric}
        if method != "awq":
            options["format"] = FORMAT.GPTQ_V2  # the first format stores zeros less one, and this layer adds none
        if method == "gptaq":
            from gptqmodel.quantization.config import GPTAQConfig

            options["gptaq"] = GPTAQConfig()
        kind = {"awq": AWQConfig, "rtn": RTNConfig}.get(method, GPTQConfig)
        config = kind(**options, offload_to_disk=False, device=job.device)
        model = Model.load(job.model, config, dtype=torch.bfloat16 if method == "awq" else torch.float32)
        rows = None if job.ids is None else [{"input_ids": row, "attention_mask": row * 0 + 1} for row in job.ids]
        layer = BACKEND.AWQ_TORCH if method == "awq" else BACKEND.GPTQ_TORCH
        model.quantize(calibration=None if method == "rtn" else rows, batch_size=1, backend=layer)
        if job.quick:
            model.save(job.saved)
        return model.model

    def reloaded(self, model: Any, job: Job) -> Any:
        """Saved in its own format, and loaded in 16 bits, as its layers do not take float32 from a file."""
        import torch
        from gptqmodel import BACKEND
        from gptqmodel import GPTQModel as Model

        awq = job.cell.method == "awq"
        options = {"backend": BACKEND.AWQ_TORCH if awq else BACKEND.GPTQ_TORCH, "device": job.device}
        dtype = torch.bfloat16 if awq else torch.float16
        return Model.load(job.saved, dtype=dtype, **options).model
