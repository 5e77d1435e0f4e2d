"""GGUF exports in llama.cpp itself: the loss of each type against the one measured, and the tokens of a text.

The embedded 160k model has rows of 64 and 192 columns, which fill the blocks of legacy types; for K-types there is a
Llama of random weights with rows of 256 and 768.  llama.cpp also rounds the activations that meet quantized weights, to
8 bits, and keeps keys and values in float16, so its loss depends on more than the weights: compare with the model in
full precision, whose loss differs through the keys and values only.

llama-cpp-python builds for ten minutes, so it is in an environment of its own, whose Python the variable
PTQ_EVAL_LLAMA_CPP names: `pip install llama-cpp-python numpy`.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness import Claim, Outcome, Setup, claim_of
from benchmarks.subjects import last_of_each_run, random_llama
from ptq_eval import export
from ptq_eval.checkpoints import local_path
from ptq_eval.config.run import RunConfig
from ptq_eval.measure.trials import make_plan
from ptq_eval.models.loading import load_tokenizer
from ptq_eval.records import Checkpoint

LEGACY = ("q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "mxfp4")
K_TYPES = ("q2_k", "q3_k", "q4_k", "q5_k", "q6_k")
LIMIT = 1e-3
"""Nats per token."""

TEXT = "def area(radius):\n    return 3.14159 * radius ** 2  # naïve, and it's 42 times as slow\n"

SCRIPT = """
import json, sys
import numpy as np
import llama_cpp

path, ids, text = sys.argv[1:]
ids = np.load(ids)
model = llama_cpp.Llama(path, n_ctx=ids.shape[1], n_batch=ids.shape[1], logits_all=True, n_threads=1, verbose=False)
tokens = model.tokenize(text.encode(), add_bos=False) if text else []
total = 0.0
for row in ids:
    model.reset()
    model.eval(row.tolist())
    scores = np.asarray(model.scores[: len(row) - 1], dtype=np.float64)
    top = scores.max(1, keepdims=True)
    total += (np.log(np.exp(scores - top).sum(1)) + top[:, 0] - scores[np.arange(len(row) - 1), row[1:]]).sum()
print(json.dumps({"loss": total / (len(ids) * (ids.shape[1] - 1)), "tokens": tokens}))
"""


def measure(setup: Setup) -> Outcome:
    """The differences of the losses, largest over the types, and of the tokens."""
    python = os.environ.get("PTQ_EVAL_LLAMA_CPP")
    if not python:
        raise RuntimeError("PTQ_EVAL_LLAMA_CPP must name a Python that has llama-cpp-python")
    outcome = Outcome(details={"columns": ["model", "type", "quantizer", "measured", "llama.cpp", "difference"]})
    outcome.details["rows"] = []
    windows = 8 if setup.quick else 64
    with tempfile.TemporaryDirectory() as folder:
        small = last_of_each_run(setup.trajectory)[-1]
        options: dict[str, Any] = {"eval_windows": windows, "calib_windows": 16}
        for method in ("rtn",) if setup.quick else ("rtn", "gptq"):
            outcome.claims.append(_types(outcome, Path(folder), small, LEGACY, method, python, options))
        large, evaluation, calibration = random_llama(Path(folder), 8)
        options = {"eval_windows": 8, "calib_windows": 8, "eval_text": f"{evaluation}#any"}
        options["calib_text"] = f"{calibration}#any"
        outcome.claims.append(_types(outcome, Path(folder), large, K_TYPES, "rtn", python, options))
        outcome.claims.append(_tokens(Path(folder), small, python))
    return outcome


def _types(
    outcome: Outcome,
    folder: Path,
    checkpoint: Checkpoint,
    types: tuple[str, ...],
    method: str,
    python: str,
    options: dict[str, Any],
) -> Claim:
    work = make_plan([checkpoint], RunConfig(quantizers=(method,), bits=(8,), **options)).workloads[0]
    np.save(folder / "windows.npy", np.asarray(work.evaluation.ids))
    found = []
    for name in types:
        out = folder / f"{checkpoint.run}-{method}-{name}"
        grid = {"quantizers": method, "bits": "none", "formats": name}
        recipe = export(local_path(checkpoint), out, file_format="gguf", **grid, **options)
        own, theirs = recipe["measured"]["loss_q"], _asked(python, out, folder / "windows.npy", "")["loss"]
        outcome.details["rows"].append([checkpoint.run, name, method, own, theirs, theirs - own])
        found.append(abs(theirs - own))
    what = f"{checkpoint.run}, {method}: |loss in llama.cpp − measured|, nats per token, {len(types)} types"
    return Claim(what, max(found), min(found), max(found), LIMIT)


def _tokens(folder: Path, checkpoint: Checkpoint, python: str) -> Claim:
    """The share of a text's tokens that the checkpoint's own tokenizer gives too."""
    own = load_tokenizer(local_path(checkpoint))(TEXT, add_special_tokens=False)["input_ids"]
    theirs = _asked(python, folder / f"{checkpoint.run}-rtn-q4_0", folder / "windows.npy", TEXT)["tokens"]
    same = sum(a == b for a, b in zip(own, theirs)) / max(len(own), len(theirs))
    return claim_of("tokens of a text that are the tokenizer's own, share", [same], limit=1.0, sense="at least")


def _asked(python: str, out: Path, ids: Path, text: str) -> dict[str, Any]:
    command = [python, "-c", SCRIPT, str(out / "model.gguf"), str(ids), text]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr.strip().splitlines()[-1])
    answer = json.loads(done.stdout.splitlines()[-1])
    if not math.isfinite(answer["loss"]):
        raise RuntimeError(f"llama.cpp gives no finite loss for {out.name}")
    return answer
