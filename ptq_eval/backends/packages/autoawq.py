"""autoawq, the package that most AWQ models were made with; GPTQModel and llm-compressor succeed it."""

from __future__ import annotations

from typing import Any

from ptq_eval.backends.base import Backend, Job, Method


class AutoAWQ(Backend):
    """The last release, 0.2.9 of 2025, without the packing, which needs CUDA.

    On a CPU its search is wrong: quantizer.py keeps `v.cpu()`, there a view of the live weights and no copy, and so
    scales the model itself.  The conformance run finds that.
    """

    name = "autoawq"
    requirements = ("autoawq==0.2.9", "transformers==4.51.3")
    imports = "awq"
    source = "https://github.com/casper-hansen/AutoAWQ"
    methods = {"awq": Method("AWQ with clipping", symmetric=(False,), per_row=False, calibration="sequential")}
    no_reload = "its packed layers need CUDA"
    remarks = "no longer developed, and wrong on a CPU; gptqmodel:awq and llmcompressor:awq are its successors"

    def quantize(self, job: Job) -> Any:
        """The transformers model with the rounded weights that would be packed."""
        import torch
        from awq import AutoAWQForCausalLM

        assert job.ids is not None
        model = AutoAWQForCausalLM.from_pretrained(job.model, device_map=job.device, use_cache=False)
        config = {"zero_point": True, "q_group_size": job.cell.group_size, "w_bit": job.cell.bits, "version": "GEMM"}
        model.quantize(
            None,
            quant_config=config,
            calib_data=job.ids.tolist(),
            max_calib_samples=len(job.ids),
            max_calib_seq_len=job.ids.shape[1],
            export_compatible=True,
        )
        for name, module in model.model.named_modules():
            if name in job.layers and isinstance(module, torch.nn.Linear):
                module.weight.data = model.quantizer.pseudo_quantize_tensor(module.weight.data)[0]
        return model.model
