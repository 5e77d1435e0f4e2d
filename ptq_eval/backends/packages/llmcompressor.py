"""llm-compressor: one `oneshot` with a recipe of one modifier."""

from __future__ import annotations

from typing import Any

from ptq_eval.backends.base import Backend, Job, Method


class LLMCompressor(Backend):
    """The vLLM project's package, which holds quantized weights dense.

    Its AWQ pins cached activations, an error on a machine without an accelerator, so pinning is switched off there;
    its exponents are searched without "duo scaling", a division by mean |w| that the paper does not have.
    """

    name = "llmcompressor"
    requirements = ("llmcompressor==0.14.0.1",)
    imports = "llmcompressor"
    source = "https://github.com/vllm-project/llm-compressor"
    methods = {
        "gptq": Method("GPTQ, columns by activity with the scales of the original groups", calibration="sequential"),
        "awq": Method("AWQ, scales alone", calibration="sequential"),
        "rtn": Method("rounding to nearest"),
    }

    def quantize(self, job: Job) -> Any:
        """The model, its quantized layers dense."""
        import torch
        from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
        from datasets import Dataset
        from llmcompressor import oneshot
        from llmcompressor.modifiers.quantization import GPTQModifier, QuantizationModifier
        from llmcompressor.modifiers.transform.awq import AWQModifier
        from llmcompressor.pipelines.cache import IntermediatesCache

        if not torch.accelerator.is_available():
            IntermediatesCache.pin_memory = lambda self, batch_index: None
        cell, model = job.cell, job.load()
        grid: dict[str, Any] = {"strategy": "channel"}
        if cell.group_size:
            grid = {"strategy": "group", "group_size": cell.group_size}
        weights = QuantizationArgs(num_bits=cell.bits, symmetric=cell.symmetric, **grid)
        kept = [name for name, module in model.named_modules() if _linear(module) and name not in job.layers]
        named = {"config_groups": {"all": QuantizationScheme(targets=["Linear"], weights=weights)}, "ignore": kept}
        if cell.method == "rtn" or job.ids is None:
            return oneshot(model=model, recipe=QuantizationModifier(**named), pipeline="datafree")
        recipe = {
            "gptq": lambda: GPTQModifier(**named),
            "awq": lambda: [AWQModifier(duo_scaling=False), QuantizationModifier(**named)],
        }[cell.method]()
        rows = {"input_ids": job.ids.tolist(), "attention_mask": torch.ones_like(job.ids).tolist()}
        return oneshot(
            model=model,
            dataset=Dataset.from_dict(rows),
            recipe=recipe,
            max_seq_length=job.ids.shape[1],
            num_calibration_samples=len(job.ids),
            shuffle_calibration_samples=False,
        )

    def reloaded(self, model: Any, job: Job) -> Any:
        """Packed as compressed-tensors, and loaded by transformers."""
        import torch
        from transformers import AutoModelForCausalLM

        folder = job.folder / "saved"
        model.save_pretrained(folder, save_compressed=True)
        return AutoModelForCausalLM.from_pretrained(folder, torch_dtype=torch.float32).eval()


def _linear(module: Any) -> bool:
    import torch

    return isinstance(module, torch.nn.Linear)
