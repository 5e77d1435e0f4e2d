"""auto-gptq, as earlier projects use it; GPTQModel is its successor."""

from __future__ import annotations

from typing import Any

from ptq_eval.backends.base import Backend, Job, Method


class AutoGPTQ(Backend):
    """The last release, 0.7.1 of 2024.  It refuses to quantize without CUDA, and needs transformers of its time."""

    name = "auto-gptq"
    requirements = ("auto-gptq==0.7.1", "transformers==4.47.1", "datasets<4", "peft==0.14.0")
    imports = "auto_gptq"
    source = "https://github.com/AutoGPTQ/AutoGPTQ"
    device = "cuda"
    methods = {"gptq": Method("GPTQ", groups=(16, 32, 64, 128), calibration="sequential")}
    no_reload = "it quantizes with CUDA only"
    remarks = "no longer developed; gptqmodel:gptq is its successor and runs on a CPU"

    def quantize(self, job: Job) -> Any:
        """The transformers model, its layers packed."""
        from auto_gptq import AutoGPTQForCausalLM, BaseQuantizeConfig

        assert job.ids is not None
        cell = job.cell
        config = BaseQuantizeConfig(bits=cell.bits, group_size=cell.group_size or -1, sym=cell.symmetric)
        model = AutoGPTQForCausalLM.from_pretrained(job.model, config)
        model.quantize([{"input_ids": row[None], "attention_mask": row[None] * 0 + 1} for row in job.ids])
        return model.model
