"""auto-round: plain rounding, SignRound (its own method, 200 steps a block by default), and AWQ before rounding."""

from __future__ import annotations

from typing import Any

from auto_round import AutoRound
from auto_round.algorithms.quantization.rtn.config import RTNConfig
from auto_round.algorithms.transforms.awq.config import AWQConfig
from torch.utils.data import DataLoader
from transformers import AutoTokenizer

from benchmarks.peers.driver import installed, load_causal_lm


def versions() -> dict[str, str]:
    return installed("auto-round")


def load(folder: str, cell: dict[str, Any]) -> Any:
    model = load_causal_lm(folder)
    model.tokenizer_for_auto_round = AutoTokenizer.from_pretrained(folder)
    return model


def quantize(model: Any, ids: Any, cell: dict[str, Any]) -> Any:
    scheme = {"bits": cell["bits"], "group_size": cell["group_size"], "sym": cell["symmetric"], "data_type": "int"}
    plain = RTNConfig(disable_opt_rtn=True)
    algorithms = {
        "rtn": plain,
        "awq": [AWQConfig(duo_scaling=False), plain],
        "signround": "signround",
    }
    if cell["method"] not in algorithms:
        raise ValueError(f"has no {cell['method']}")
    rows = [{"input_ids": row, "attention_mask": row * 0 + 1} for row in ids]
    rounding = AutoRound(
        model=model,
        tokenizer=model.tokenizer_for_auto_round,
        scheme=scheme,
        alg_configs=algorithms[cell["method"]],
        dataset=DataLoader(rows, batch_size=8),
        seqlen=ids.shape[1],
        nsamples=len(ids),
        device_map="cpu",
    )
    return rounding.quantize()[0]
