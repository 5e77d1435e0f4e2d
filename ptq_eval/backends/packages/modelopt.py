"""NVIDIA ModelOpt: simulated quantization, in integers and in NVIDIA's number formats."""

from __future__ import annotations

import copy
from typing import Any

from ptq_eval.backends.base import Backend, Job, Method


class ModelOpt(Backend):
    """Weights stay dense and are quantized in every forward pass, as calibration leaves them.

    Integers are on the narrow symmetric grid.  Its AWQ is "awq_lite", the search of scales without clipping.
    """

    name = "modelopt"
    requirements = ("nvidia-modelopt==0.47.0", "requests")  # requests is imported and not declared
    imports = "modelopt"
    source = "https://github.com/NVIDIA/TensorRT-Model-Optimizer"
    methods = {
        "awq": Method("AWQ, scales alone", symmetric=(True,), calibration="shared"),
        "gptq": Method("GPTQ", symmetric=(True,), calibration="sequential"),
        "rtn": Method("rounding to nearest", symmetric=(True,)),
    }

    def quantize(self, job: Job) -> Any:
        """The model with simulated layers."""
        import modelopt.torch.quantization as mtq
        import torch

        cell = job.cell
        algorithms: dict[str, Any] = {
            "rtn": "max",
            "gptq": {"method": "gptq"},
            "awq": {"method": "awq_lite", "alpha_step": 0.05},
        }
        config = copy.deepcopy(mtq.INT4_BLOCKWISE_WEIGHT_ONLY_CFG)
        for entry in config["quant_cfg"]:
            if entry.get("quantizer_name") == "*weight_quantizer":
                blocks = {"block_sizes": {-1: cell.group_size}} if cell.group_size else {"axis": 0}
                entry["cfg"] = {"num_bits": cell.bits, **blocks}
        config["algorithm"] = algorithms[cell.method]

        @torch.no_grad()
        def forward_loop(model: Any) -> None:
            for row in job.ids if job.ids is not None else ():
                model(row[None].to(job.device), use_cache=False)

        return mtq.quantize(job.load(), config, None if cell.method == "rtn" else forward_loop)

    def reloaded(self, model: Any, job: Job) -> Any:
        """Its state, restored into the model as it was."""
        import modelopt.torch.opt as mto

        mto.save(model, job.saved)
        return mto.restore(job.load(), job.saved)
