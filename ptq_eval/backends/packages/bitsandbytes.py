"""bitsandbytes: NF4 and FP4 in blocks, and the row-wise int8 of LLM.int8() for weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ptq_eval.backends.base import Cell, Job, Method, WeightBackend

if TYPE_CHECKING:
    from torch import Tensor


class BitsAndBytes(WeightBackend):
    """The functions that `Linear4bit` and `Linear8bitLt` call for their weights.

    Of int8 only the weights are measured: its layers also round activations, and keep columns with outliers in 16 bits.
    """

    name = "bitsandbytes"
    requirements = ("bitsandbytes==0.50.2",)
    imports = "bitsandbytes"
    source = "https://github.com/bitsandbytes-foundation/bitsandbytes"
    extra = "bitsandbytes"
    methods = {
        "nf4": Method("quantile table of the normal distribution (QLoRA)", scheme="nf4", blocks=(64, 32)),
        "fp4": Method("its own FP4 table", scheme="fp4_bnb", blocks=(64, 32)),
        "int8": Method("one scale per row (LLM.int8(), weights alone)", scheme="int8_narrow"),
    }

    def reloaded(self, model: Any, job: Job) -> Any:
        """The model as transformers quantizes it with this package, saved before any forward pass and loaded again.

        After one, 0.50 refuses to save 4 bits on a CPU.  Layers of 4 bits multiply in bfloat16 and are read as stored.
        """
        import torch
        from bitsandbytes import functional
        from transformers import AutoModelForCausalLM, BitsAndBytesConfig

        kind = job.cell.method
        config = BitsAndBytesConfig(load_in_8bit=True)
        if kind != "int8":
            config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type=kind)
        folder = job.folder / "saved"
        options: dict[str, Any] = {"dtype": torch.float32}
        model = AutoModelForCausalLM.from_pretrained(job.model, quantization_config=config, **options)
        model.save_pretrained(folder)
        loaded = AutoModelForCausalLM.from_pretrained(folder, **options).eval()
        if kind == "int8":
            return loaded
        weights = {name: loaded.get_submodule(name).weight for name in job.layers}
        return {name: functional.dequantize_4bit(w.data, w.quant_state) for name, w in weights.items()}

    def quantize_weight(self, weight: Tensor, cell: Cell) -> Tensor:
        """One weight, in float32."""
        from bitsandbytes import functional

        if cell.method == "int8":
            codes, scale, _ = functional.int8_vectorwise_quant(weight.half())
            return codes.float() * scale[:, None].float() / 127
        packed, state = functional.quantize_4bit(weight, blocksize=cell.group_size, quant_type=cell.method)
        return functional.dequantize_4bit(packed, state)
