"""auto-round: plain rounding, SignRound (its own method, 200 steps a block by default), and AWQ before rounding.

It leaves the model in bfloat16 on a CPU that has it.  What version 0.16.1 saves of AWQ at 2 and 3 bits has the norms
from before AWQ scaled them (plain rounding comes back right), and its packed 4 bits with zero points raise TypeError.
"""

from __future__ import annotations

from typing import Any

from auto_round import AutoRound
from auto_round.algorithms.quantization.rtn.config import RTNConfig
from auto_round.algorithms.transforms.awq.config import AWQConfig
from torch.utils.data import DataLoader
from transformers import AutoTokenizer

from benchmarks.peers.parts import installed, load_causal_lm


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
    rounding.quantize()
    return rounding


def module_of(rounding: Any) -> Any:
    """The transformers model with quantized layers."""
    return rounding.model_context.model


def save(rounding: Any, folder: str) -> None:
    """Packed, in auto-round's own format."""
    rounding.save_quantized(folder, format="auto_round")
