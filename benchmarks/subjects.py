"""The models that are measured on: checkpoints of the embedded trajectory, and one of random weights."""

from __future__ import annotations

import shlex
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.harness import ROOT, SEED
from ptq_eval.checkpoints import discover, verify_all
from ptq_eval.checkpoints.parameters import quiet_transformers
from ptq_eval.records import Checkpoint

PEER = {
    "vocab_size": 1024,
    "hidden_size": 256,
    "intermediate_size": 768,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 512,
    "tie_word_embeddings": True,
}
"""A Llama of 5.1 M parameters in 42 matrices, small enough for two cores and large enough to be like others."""


def demo_command() -> list[str]:
    """The arguments of `ptq-eval` in the Makefile's demo target, without the output folder."""
    for line in (ROOT / "Makefile").read_text(encoding="utf-8").splitlines():
        words = shlex.split(line) if line.startswith("\t") else []
        if words and words[0].endswith("ptq-eval") and "run" in words:
            place = words.index("-o")
            return words[1:place] + words[place + 2 :]
    raise SystemExit("the Makefile has no `ptq-eval run … -o …`")


def demo_options() -> dict[str, Any]:
    """Group size and calibration windows of the demo, as options of `ptq_eval.run`."""
    words = demo_command()
    named = {"--group-size": "group_size", "--calib-windows": "calib_windows", "--eval-windows": "eval_windows"}
    return {named[flag]: int(value) for flag, value in pairwise(words) if flag in named}


def last_of_each_run(trajectory: Path) -> list[Checkpoint]:
    """The checkpoint with most tokens of each run, verified, the largest model last."""
    found = {c.run: c for c in sorted(discover([trajectory]), key=lambda c: c.tokens or 0)}
    return verify_all(sorted(found.values(), key=lambda c: (c.params or 0, c.run)))


def random_llama(folder: Path, windows: int) -> tuple[Checkpoint, Path, Path]:
    """A Llama with random weights below `folder`: (checkpoint, tokens to evaluate on, tokens to calibrate on)."""
    from transformers import LlamaConfig, LlamaForCausalLM

    home = folder / "random-llama"
    generator = torch.Generator().manual_seed(SEED)
    model = LlamaForCausalLM(LlamaConfig(**PEER, bos_token_id=0, eos_token_id=0))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.normal_(0, 0.02, generator=generator)
    model.save_pretrained(home)
    texts = []
    for name in ("evaluation", "calibration"):
        ids = torch.randint(PEER["vocab_size"], (windows * PEER["max_position_embeddings"],), generator=generator)
        texts.append(folder / f"{name}.npy")
        np.save(texts[-1], ids.numpy().astype(np.uint16))
    return verify_all(discover([home]))[0], texts[0], texts[1]


def bare_model(folder: Path) -> torch.nn.Module:
    """The model as transformers gives it."""
    from transformers import AutoModelForCausalLM

    with quiet_transformers():
        model: torch.nn.Module = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model.eval()


@torch.inference_mode()
def bare_passes(model: torch.nn.Module, ids: Tensor, batch: int, count: int) -> None:
    """`count` forward passes over all windows `ids` [n, time], `batch` windows at a time, nothing else."""
    for _ in range(count):
        for rows in ids.split(batch):
            _ = model(input_ids=rows, use_cache=False).logits
