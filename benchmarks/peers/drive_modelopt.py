"""NVIDIA ModelOpt: weights stay dense and are quantized in every forward pass, as its calibration leaves them.

Its symmetric grid is the narrow one (−(2^(b−1)−1) … 2^(b−1)−1).  AWQ is "awq_lite", the search of scales without
clipping, its step of the exponent set to the twentieth of the paper's code.
"""

from __future__ import annotations

import copy
from typing import Any

import modelopt.torch.quantization as mtq
import torch

from benchmarks.peers.parts import installed, load_causal_lm

ALGORITHMS: dict[str, Any] = {
    "rtn": "max",
    "gptq": {"method": "gptq"},
    "awq": {"method": "awq_lite", "alpha_step": 0.05},
}


def versions() -> dict[str, str]:
    return installed("nvidia-modelopt")


def load(folder: str, cell: dict[str, Any]) -> Any:
    return load_causal_lm(folder)


def quantize(model: Any, ids: Any, cell: dict[str, Any]) -> Any:
    if not cell["symmetric"]:
        raise ValueError("no asymmetric integer grid")
    config = copy.deepcopy(mtq.INT4_BLOCKWISE_WEIGHT_ONLY_CFG)
    for entry in config["quant_cfg"]:
        if entry.get("quantizer_name") == "*weight_quantizer":
            entry["cfg"] = {"num_bits": cell["bits"], "block_sizes": {-1: cell["group_size"]}}
    config["algorithm"] = ALGORITHMS[cell["method"]]

    @torch.no_grad()
    def forward_loop(model: Any) -> None:
        for row in ids:
            model(row[None], use_cache=False)

    return mtq.quantize(model, config, None if cell["method"] == "rtn" else forward_loop)
