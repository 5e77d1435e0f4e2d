"""torchao: PyTorch's own weight-only quantization of plain integers, and of FP8."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ptq_eval.backends.base import Cell, Job, Method, WeightBackend

if TYPE_CHECKING:
    from torch import Tensor


class TorchAO(WeightBackend):
    """`quantize_` of one linear layer with the configurations that need no kernel of a GPU.

    `Int4WeightOnlyConfig` packs for such a kernel; `IntxWeightOnlyConfig`, measured here, has the same integers.
    """

    name = "torchao"
    requirements = ("torchao==0.18.0",)
    imports = "torchao"
    source = "https://github.com/pytorch/ao"
    extra = "torchao"
    methods = {
        "intx": Method("rounds to nearest (IntxWeightOnlyConfig)", bits=(2, 3, 4, 5, 6, 7, 8)),
        "int4": Method("the same at 4 bits", bits=(4,)),
        "int8": Method("8 bits, one scale per row (Int8WeightOnlyConfig)", scheme="int8_full"),
        "hqq": Method("its half-quadratic search of scales", bits=(2, 3, 4, 5, 6, 7, 8), symmetric=(False,)),
        "fp8": Method("FP8 E4M3, one scale per row (Float8WeightOnlyConfig)", scheme="fp8_e4m3"),
    }

    def quantize_weight(self, weight: Tensor, cell: Cell) -> Tensor:
        """One weight, through a module of its own."""
        import torch
        from torchao.quantization import quantize_

        rows, columns = weight.shape
        layer = torch.nn.Linear(columns, rows, bias=False, device=weight.device)
        layer.weight = torch.nn.Parameter(weight.clone(), requires_grad=False)
        quantize_(layer, self._config(cell))
        quantized: Any = layer.weight
        return quantized.dequantize().float()

    def reloaded(self, model: Any, job: Job) -> Mapping[str, Tensor]:
        """The model as transformers quantizes, saves and loads it."""
        import torch
        from transformers import AutoModelForCausalLM, TorchAoConfig

        options: dict[str, Any] = {"dtype": torch.float32}
        config = TorchAoConfig(self._config(job.cell))
        AutoModelForCausalLM.from_pretrained(job.model, quantization_config=config, **options).save_pretrained(
            job.saved
        )
        loaded = AutoModelForCausalLM.from_pretrained(job.saved, **options)
        return {name: loaded.get_submodule(name).weight.dequantize().float() for name in job.layers}

    def _config(self, cell: Cell) -> Any:
        import torch
        from torchao import quantization as q
        from torchao.quantization.granularity import PerAxis, PerGroup, PerRow
        from torchao.quantization.quant_primitives import MappingType

        if cell.method == "int8":
            return q.Int8WeightOnlyConfig()
        if cell.method == "fp8":
            return q.Float8WeightOnlyConfig(granularity=PerRow())
        return q.IntxWeightOnlyConfig(
            weight_dtype=getattr(torch, f"int{cell.bits}"),
            granularity=PerGroup(cell.group_size) if cell.group_size else PerAxis(0),
            mapping_type=MappingType.SYMMETRIC if cell.symmetric else MappingType.ASYMMETRIC,
            intx_choose_qparams_algorithm="hqq_scale_only" if cell.method == "hqq" else "affine",
        )
