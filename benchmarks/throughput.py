"""Tokens per second of the evaluator: against bare forward passes, against lm-eval, and against the machine's peak.

Three models: a trained Llama with a small vocabulary, and with random weights, which cost what trained ones cost, a
Llama with a vocabulary of 32,000 and one with the shapes of Pythia-70M, most of whose work is its vocabulary of 50,304.
The bare loop calls `model(ids)` over the same windows in the same batches and looks at no logits.  "Loss alone" is the
evaluator without variants against one bare pass; "loss, KL and top-1" is the evaluator with variants against as many
bare passes, the full-precision one included.  lm-eval answers `loglikelihood_rolling` for the same windows in the same
batches, in a process of its own; the two must agree on the total.  The peak is measured with a large float32 matrix
product in this process, and the share counts the operations of the model's own forward pass, as torch counts them:
products, attention included, and nothing for norms, softmax or loss.
"""

from __future__ import annotations

import os
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.harness import SEED, Claim, Outcome, Seconds, Setup, by_turns, claim_of, clock
from benchmarks.peers.jobs import Cell, run_driver
from benchmarks.report import LEFT_OUT
from benchmarks.subjects import (
    HEAD_HEAVY,
    REALISTIC,
    bare_model,
    bare_passes,
    prepared,
    random_module,
    trained_llama,
)
from ptq_eval.measure.evaluate import batch_size, evaluate
from ptq_eval.models.language_model import LanguageModel

ALONE, ALL_METRICS = 0.95, 0.85
VARIANTS = 3
PREFIX = 0
RANDOM = {
    "Llama, vocabulary 32,000": ("llama", REALISTIC),
    "Pythia-70M's shapes, vocabulary 50,304": ("gpt_neox", HEAD_HEAVY),
}


def measure(setup: Setup) -> Outcome:
    """The trained Llama on windows of its own length."""
    checkpoint = trained_llama(setup.quick)[-1]
    outcome = Outcome()
    with tempfile.TemporaryDirectory() as name:
        work, _ = prepared(checkpoint, Path(name), eval_windows=32 if setup.quick else 256, calib_windows=1)
        ids = torch.tensor(work.evaluation.ids, dtype=torch.long)
        ids[:, 0] = PREFIX
        theirs = _lm_eval(work.folder, ids, Path(name), repeats=1 if setup.quick else 3)
    module = bare_model(work.folder)
    pairs = speeds(module, ids, repeats=1 if setup.quick else 5)
    outcome.claims = claims_of(pairs)
    scored = ids.shape[0] * (ids.shape[1] - 1)
    alone = statistics.median(ours.wall for _, ours in pairs["loss alone"])
    if theirs is not None:
        total, own = theirs["total"], -sum(evaluate(LanguageModel(module), ids)[0].nll)
        outcome.claims += [
            claim_of(
                "speed: evaluator, loss alone / lm-eval's loglikelihood_rolling, tokens per second",
                [times["wall"] / alone for times in theirs["evaluate"]],
            ),
            Claim("total log-likelihood, distance from lm-eval's, relative", *[abs(own / total - 1)] * 3, limit=1e-5),
        ]
    outcome.claims += _shares(module, ids, pairs)
    others = {what: _random(*each, quick=setup.quick) for what, each in RANDOM.items()}
    for what, found in others.items():
        outcome.claims += claims_of(found, f", {what}")
    outcome.details = {
        **({LEFT_OUT: "lm-eval, which cannot be installed or run here"} if theirs is None else {}),
        "windows": list(ids.shape),
        "batch": batch_size(LanguageModel(module), ids.shape[1]),
        "tokens per second, loss alone": scored / alone,
        "times": times_of(pairs),
        "times of random models": {what: times_of(found) for what, found in others.items()},
        "lm-eval": theirs,
    }
    return outcome


def _random(family: str, shape: dict[str, int], *, quick: bool) -> dict[str, list[tuple[Seconds, Seconds]]]:
    """Paired times for a model of random weights on random tokens."""
    length = shape["max_position_embeddings"]
    generator = torch.Generator().manual_seed(SEED)
    ids = torch.randint(shape["vocab_size"], (2 if quick else 16, length), generator=generator)
    return speeds(random_module(shape, family), ids, repeats=1 if quick else 3)


def times_of(pairs: dict[str, list[tuple[Seconds, Seconds]]]) -> dict[str, Any]:
    """Paired times as plain values."""
    return {what: [[asdict(a), asdict(b)] for a, b in found] for what, found in pairs.items()}


def speeds(
    module: torch.nn.Module, ids: Tensor, *, repeats: int, finished: Callable[[], object] = lambda: None
) -> dict[str, list[tuple[Seconds, Seconds]]]:
    """Paired times of (bare, evaluator) with the loss alone and with all metrics; `finished` waits for a GPU."""
    model = LanguageModel(module)
    batch = batch_size(model, ids.shape[1])
    # Slightly different weights, copied as a quantized variant's are: nothing can be shared with full precision.
    variants = [
        {name: model.weight(name) * (1 + 1e-3 * variant) for name in model.linears()}
        for variant in range(1, VARIANTS + 1)
    ]

    def pair(variants: list[dict[str, Tensor]]) -> list[tuple[Seconds, Seconds]]:
        return by_turns(
            lambda: (bare_passes(module, ids, batch, 1 + len(variants)), finished()),
            lambda: (evaluate(model, ids, variants), finished()),
            repeats,
        )

    return {"loss alone": pair([]), "loss, KL and top-1": pair(variants)}


def claims_of(pairs: dict[str, list[tuple[Seconds, Seconds]]], subject: str = "") -> list[Claim]:
    """Of both the share of the bare loop's speed."""
    limits = {"loss alone": ALONE, "loss, KL and top-1": ALL_METRICS}
    return [
        claim_of(
            f"speed: evaluator with {what} / bare forward passes{subject}",
            [bare.wall / ours.wall for bare, ours in found],
            limit=limits[what],
            sense="at least",
        )
        for what, found in pairs.items()
    ]


def _shares(module: torch.nn.Module, ids: Tensor, pairs: dict[str, list[tuple[Seconds, Seconds]]]) -> list[Claim]:
    peak = product_peak("cpu")
    work = forward_operations(module, ids[:1]) * len(ids)
    found = pairs["loss alone"]
    return [
        claim_of(
            "evaluator with loss alone, share of the peak of a matrix product", [work / b.wall / peak for _, b in found]
        ),
        claim_of(
            "bare forward passes, share of the peak of a matrix product", [work / a.wall / peak for a, _ in found]
        ),
        claim_of("peak of a float32 matrix product", [peak / 1e9], unit="GFLOP/s"),
    ]


def product_peak(device: str, dtype: torch.dtype = torch.float32, size: int = 2048) -> float:
    """Operations per second of the best of some products of square matrices."""
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))

    def product() -> None:
        for _ in range(1 if device == "cpu" else 50):
            torch.mm(a, b)
        if device != "cpu":
            torch.cuda.synchronize()

    product()
    return (1 if device == "cpu" else 50) * 2 * size**3 / min(clock(product).wall for _ in range(5))


def forward_operations(module: torch.nn.Module, ids: Tensor) -> float:
    """Floating-point operations of a forward pass over `ids`, counted by torch."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module(input_ids=ids, use_cache=False)
    return float(counter.get_total_flops())


def _lm_eval(folder: Path, ids: Tensor, home: Path, *, repeats: int) -> dict[str, Any] | None:
    documents = home / "documents.npy"
    np.save(documents, ids[:, 1:].numpy())
    result = run_driver(
        "lm-eval",
        folder,
        documents,
        [Cell("evaluate", 32, 0, False)],
        threads=int(os.environ.get("OMP_NUM_THREADS", "1")),
        batch=batch_size(LanguageModel(bare_model(folder)), ids.shape[1]),
        length=ids.shape[1],
        prefix=PREFIX,
        repeats=repeats,
    )
    if result is None or "error" in result["cells"][0]:
        return None
    return {"versions": result["versions"], **{k: result["cells"][0][k] for k in ("load", "evaluate", "total")}}
