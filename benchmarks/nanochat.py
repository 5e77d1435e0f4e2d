"""nanochat's models here against nanochat's own code: the loss in float32, for every recorded version of it.

For each commit, that commit's code builds a model, all of whose parameters are drawn at random, saves it with its own
`save_checkpoint`, and scores random tokens.  The same file is then found and loaded as a user's would be.  A clone of
github.com/karpathy/nanochat is named by the variable NANOCHAT_REPO; its code runs in processes of its own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
import tempfile
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.harness import Claim, Outcome, Setup
from ptq_eval.checkpoints import discover, local_path, verify_all
from ptq_eval.models.language_model import LanguageModel

COMMITS = {
    "3a5e0bc": "A", "ccf4b7f": "A", "aa530cd": "B", "fbc1484": "B", "e85db6b": "C", "2e17723": "C", "aba30cb": "C",
    "1076f97": "C", "6ed7d1d": "D", "a825e63": "E", "92d63d4": "E",
}  # fmt: skip
"""The first and the last commit of each version of the architecture, and those that changed a number within it."""
GIVEN = {
    "aba30cb": {"softcap": 20.0},
    "1076f97": {"softcap": 20.0, "rope_table": ""},
}
"""What the file of such a commit does not say."""
LIMIT = 1e-5
SIZES = {"sequence_len": 512, "vocab_size": 509, "n_layer": 5, "n_head": 4, "n_kv_head": 2, "n_embd": 64}

SCRIPT = """
import json, os, sys, types
import numpy as np, torch
sys.modules["rustbpe"] = types.ModuleType("rustbpe")  # trains tokenizers, which nothing here needs

def attention(q, k, v, causal, window_size):  # of a commit that has no attention for a CPU; [batch, time, heads, head]
    k, v = (part.repeat_interleave(q.shape[2] // part.shape[2], dim=2) for part in (k, v))
    scores = torch.einsum("bihd,bjhd->bhij", q, k) / q.shape[-1] ** 0.5
    back = torch.arange(q.shape[1])[:, None] - torch.arange(q.shape[1])
    seen = (back >= 0) & ((back <= window_size[0]) | (window_size[0] < 0))
    return torch.einsum("bhij,bjhd->bihd", scores.masked_fill(~seen, -torch.inf).softmax(-1), v)

interface = types.SimpleNamespace(flash_attn_func=attention)
kernels = types.ModuleType("kernels")
kernels.get_kernel = lambda name: types.SimpleNamespace(flash_attn_interface=interface)
sys.modules["kernels"] = kernels
sizes, ids, out, step = json.loads(sys.argv[1]), sys.argv[2], sys.argv[3], 10
os.environ["NANOCHAT_DTYPE"] = "float32"
from nanochat.gpt import GPT, GPTConfig
from nanochat.checkpoint_manager import save_checkpoint
known = {name for name in GPTConfig.__dataclass_fields__}
config = GPTConfig(**{name: value for name, value in sizes.items() if name in known})
model = GPT(config)
model.init_weights()
generator = torch.Generator().manual_seed(1)
for name, parameter in model.named_parameters():
    parameter.data = parameter.data.float()
    scale = 0.3 if "lambda" in name or "gate" in name else parameter.shape[-1] ** -0.5
    parameter.data.normal_(0.0, scale, generator=generator)
    parameter.data += 1.0 if name == "resid_lambdas" else 0.0
ids = torch.from_numpy(np.load(ids))
with torch.no_grad():
    loss = float(model(ids[:, :-1], ids[:, 1:].contiguous()))
meta = {"step": step, "val_bpb": 1.0, "model_config": vars(config), "user_config": {"total_batch_size": 4096},
        "device_batch_size": 1, "max_seq_len": config.sequence_len}
save_checkpoint(out, step, model.state_dict(), None, meta)
print(json.dumps({"loss": loss}))
"""


def measure(setup: Setup) -> Outcome:
    """The largest relative difference of the loss, for each version."""
    del setup
    repository = os.environ.get("NANOCHAT_REPO")
    if not repository:
        raise RuntimeError("NANOCHAT_REPO names no clone of nanochat")
    rows = [_one(Path(repository), commit, era) for commit, era in COMMITS.items()]
    claims = [
        Claim(f"version {era}: relative difference of the loss", worst, worst, worst, LIMIT)
        for era in dict.fromkeys(COMMITS.values())
        for worst in [max(row["relative"] for row in rows if row["era"] == era)]
    ]
    return Outcome(claims, {"rows": rows, "model_config": SIZES})


def _one(repository: Path, commit: str, era: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch)
        archive = subprocess.run(
            ["git", "-C", str(repository), "archive", commit, "nanochat"], check=True, capture_output=True
        ).stdout
        with tarfile.open(fileobj=BytesIO(archive)) as tar:
            tar.extractall(place / "code", filter="data")
        ids = np.random.default_rng(0).integers(0, SIZES["vocab_size"], (2, SIZES["sequence_len"] + 1))
        np.save(place / "ids.npy", ids)
        out = place / "base_checkpoints" / "d5"
        sizes = json.dumps({**SIZES, "window_pattern": "SSL"})
        said = subprocess.run(
            [sys.executable, "-c", SCRIPT, sizes, str(place / "ids.npy"), str(out)],
            env={**os.environ, "PYTHONPATH": str(place / "code"), "NANOCHAT_BASE_DIR": str(place)},
            capture_output=True,
            text=True,
        )
        if said.returncode:
            raise RuntimeError(f"{commit}: {said.stderr.strip().splitlines()[-1]}")
        theirs = json.loads(said.stdout.splitlines()[-1])["loss"]
        given = {"architecture": GIVEN[commit]} if commit in GIVEN else None
        (checkpoint,) = verify_all(discover([out], overrides=given))
        if checkpoint.fatal:
            raise RuntimeError(f"{commit}: {checkpoint.fatal[0]}")
        folder = local_path(checkpoint)
        ours = _loss(LanguageModel.load(folder), torch.from_numpy(ids))
        found = json.loads((folder / "config.json").read_text(encoding="utf-8"))["era"]
    if found != era:
        raise RuntimeError(f"{commit}: taken for version {found}, not {era}")
    relative = abs(ours - theirs) / theirs
    return {"commit": commit, "era": era, "given": GIVEN.get(commit, {}), "theirs": theirs, "ours": ours,
            "relative": relative}  # fmt: skip


def _loss(model: LanguageModel, ids: torch.Tensor) -> float:
    logits = model.logits(ids[:, :-1]).double()
    return float(torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()))
