"""The models that are measured on: the embedded trajectory, a larger Llama trained here, one of random weights."""

from __future__ import annotations

import shlex
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.harness import ROOT, SEED
from benchmarks.peers.environments import FOLDER
from ptq_eval.checkpoints import discover, verify_all
from ptq_eval.config.run import RunConfig
from ptq_eval.measure.trials import Workload, make_plan
from ptq_eval.models.configuration import quiet_transformers
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


LARGE = {
    "vocab_size": 32000,
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_hidden_layers": 22,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "max_position_embeddings": 2048,
}
"""A Llama of 1.1 B parameters, the shapes of TinyLlama, for a GPU."""

TINY = {
    "vocab_size": 512,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
"""Its rehearsal."""

REALISTIC = {
    "vocab_size": 32000,
    "hidden_size": 512,
    "intermediate_size": 1408,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "max_position_embeddings": 256,
}
"""A Llama of 25 M parameters beside a vocabulary of the usual size: two fifths of a pass are the output head."""

HEAD_HEAVY = {
    "vocab_size": 50304,
    "hidden_size": 512,
    "intermediate_size": 2048,
    "num_hidden_layers": 6,
    "num_attention_heads": 8,
    "max_position_embeddings": 256,
}
"""The shapes of Pythia-70M: more than half of a pass is the output head."""

TRAINED_LENGTH, TRAINED_GROUP = 256, 64


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


def trained_llama(quick: bool = False) -> list[Checkpoint]:
    """Four checkpoints of a Llama of 4.4 M parameters, trained here at the first use and then kept.

    Barely trained, which takes minutes, but its losses are in the range of real text: enough for comparing what
    quantizers do to one model; `quick` gives one of the same shape that has seen a few batches, in seconds, for a
    rehearsal.  The rows of its matrices have 256 and 704 columns, so groups of 64 fit every package.
    """
    folder = FOLDER / ("subject-llama-5m-rehearsal" if quick else "subject-llama-5m")
    if not (folder / "complete").exists():
        ratios, takes = ("0.0005,0.001,0.0015,0.002", "seconds") if quick else ("0.02,0.04,0.08,0.12", "minutes")
        print(f"training the Llama to measure on, once: some {takes} …", file=sys.stderr, flush=True)
        words = f"--width 256 --layers 6 --context {TRAINED_LENGTH} --batch-size 4 --ratios {ratios}"
        command = [sys.executable, "-m", "ptq_eval", "pretrain", str(folder), *words.split()]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        (folder / "complete").touch()
    return sorted(verify_all(discover([folder])), key=lambda checkpoint: checkpoint.tokens or 0)


def prepared(checkpoint: Checkpoint, folder: Path, **options: Any) -> tuple[Workload, Path]:
    """The work on a trained Llama under options of a run, and its calibration windows as a file below `folder`."""
    named = {"group_size": TRAINED_GROUP, "seq_len": TRAINED_LENGTH, **options}
    work = make_plan([checkpoint], RunConfig(**named)).workloads[0]
    assert work.calibration is not None
    path = folder / "calibration.npy"
    np.save(path, np.asarray(work.calibration.ids))
    return work, path


def random_llama(folder: Path, windows: int, **shape: int) -> tuple[Checkpoint, Path, Path]:
    """A Llama with random weights below `folder`: (checkpoint, tokens to evaluate on, tokens to calibrate on).

    Its shape is `PEER` with the changes in `shape`; the tokens are random too.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    home = folder / "random-llama"
    generator = torch.Generator().manual_seed(SEED)
    shape = {**PEER, **shape}
    model = LlamaForCausalLM(LlamaConfig(**shape, bos_token_id=0, eos_token_id=0))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.normal_(0, 0.02, generator=generator)
    model.save_pretrained(home)
    texts = []
    for name in ("evaluation", "calibration"):
        ids = torch.randint(shape["vocab_size"], (windows * shape["max_position_embeddings"],), generator=generator)
        texts.append(folder / f"{name}.npy")
        np.save(texts[-1], ids.numpy().astype(np.uint16))
    return verify_all(discover([home]))[0], texts[0], texts[1]


def random_module(shape: dict[str, int], family: str = "llama") -> torch.nn.Module:
    """A model of a family of transformers with the random weights that it starts from."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(SEED)
    config = AutoConfig.for_model(family, **shape, bos_token_id=0, eos_token_id=0)
    module: torch.nn.Module = AutoModelForCausalLM.from_config(config)
    return module.eval()


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
