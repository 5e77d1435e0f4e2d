"""GPTQModel: its own loader, its own quantize, which also packs.

AWQ is asked for its plain torch layer, because the others want a GPU, and that one packs 16-bit models only.  GPTQ's
damping is set to the 0.01 of the paper's code instead of 0.05; that it takes the columns in an order of its own within
groups is left as it is.  The packer is compiled at the first use on a machine: `warm_up` does that before the clock.
"""

from __future__ import annotations

from typing import Any

import torch
from gptqmodel import BACKEND, GPTQModel
from gptqmodel.quantization.config import FORMAT, AWQConfig, GPTQConfig, RTNConfig

from benchmarks.peers.parts import installed

CONFIGS = {"rtn": RTNConfig, "gptq": GPTQConfig, "awq": AWQConfig}
BACKENDS = {"rtn": BACKEND.GPTQ_TORCH, "gptq": BACKEND.GPTQ_TORCH, "awq": BACKEND.AWQ_TORCH}


def versions() -> dict[str, str]:
    return installed("gptqmodel")


def load(folder: str, cell: dict[str, Any]) -> Any:
    # Without offloading to disk, as one does with a model that fits in memory.
    options = {"bits": cell["bits"], "group_size": cell["group_size"], "sym": cell["symmetric"]}
    if cell["method"] == "gptq":
        options["damp_percent"] = 0.01
    if cell["method"] != "awq":
        options["format"] = FORMAT.GPTQ_V2  # the first format stores zeros less one, and this torch layer adds none
    config = CONFIGS[cell["method"]](**options, offload_to_disk=False, device="cpu")
    dtype = torch.bfloat16 if cell["method"] == "awq" else torch.float32
    return GPTQModel.load(folder, config, dtype=dtype)


def warm_up(folder: str, cell: dict[str, Any]) -> None:
    quantize(load(folder, {**cell, "method": "rtn"}), None, {**cell, "method": "rtn"})


def quantize(model: Any, ids: Any, cell: dict[str, Any]) -> Any:
    rows = None if cell["method"] == "rtn" else [{"input_ids": row, "attention_mask": row * 0 + 1} for row in ids]
    model.quantize(calibration=rows, batch_size=1, backend=BACKENDS[cell["method"]])
    return model


def module_of(model: Any) -> Any:
    """The transformers model with quantized layers."""
    return model.model
