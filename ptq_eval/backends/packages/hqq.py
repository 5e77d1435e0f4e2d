"""HQQ: zero points fitted by half-quadratic optimization, without data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ptq_eval.backends.base import Cell, Job, Method, WeightBackend

if TYPE_CHECKING:
    from torch import Tensor


class HQQ(WeightBackend):
    """Mobius Labs' package, its own quantizer as `HQQLinear` calls it: groups along rows, axis 1."""

    name = "hqq"
    requirements = ("hqq==0.2.8.post1",)
    imports = "hqq"
    source = "https://github.com/mobiusml/hqq (Badri & Shaji 2023)"
    extra = "hqq"
    methods = {
        "hqq": Method("half-quadratic quantization", bits=(2, 3, 4, 5, 6, 8), symmetric=(False,), real_zeros=True)
    }

    def quantize_weight(self, weight: Tensor, cell: Cell) -> Tensor:
        """One weight, with scales and zeros in float32."""
        import torch
        from hqq.core.quantize import Quantizer

        size = cell.group_size or weight.shape[1]
        codes, meta = Quantizer.quantize(
            weight.clone(),
            nbits=cell.bits,
            group_size=size,
            optimize=True,
            round_zero=cell.bits == 4,  # as BaseQuantizeConfig sets it
            axis=1,
            bitpack=False,
            compute_dtype=torch.float32,
            device=str(weight.device),
        )
        return Quantizer.dequantize(codes, meta).reshape(weight.shape)

    def reloaded(self, model: Any, job: Job) -> Mapping[str, Tensor]:
        """The model as the package quantizes, saves and loads it; transformers saves none of its layers."""
        import torch
        from hqq.core.quantize import BaseQuantizeConfig
        from hqq.models.hf.base import AutoHQQHFModel

        cell = job.cell
        options: dict[str, Any] = {"compute_dtype": torch.float32, "device": job.device}
        config = BaseQuantizeConfig(nbits=cell.bits, group_size=cell.group_size, axis=1)
        fresh = job.load()
        AutoHQQHFModel.quantize_model(fresh, quant_config=config, **options)
        AutoHQQHFModel.save_quantized(fresh, job.saved)
        loaded = AutoHQQHFModel.from_quantized(job.saved, **options)
        return {name: loaded.get_submodule(name).dequantize().float() for name in job.layers}
