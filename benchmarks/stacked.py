"""How much faster runs train as one stack than one after another: `python -m benchmarks.stacked`.

Whole optimizer steps (forward, backward, clipping, AdamW) of K runs of the smallest size of a study: in one stack, and
by the loop of `ptq-eval pretrain` over each.  The two take turns in one process, after a warm-up that compiles; the
seconds of compiling are reported apart.  Wall time needs a quiet machine; CPU time is printed beside it.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks.harness import ROOT, SEED, by_turns, clock, environment

WIDTH, LAYERS, VOCAB, CONTEXT, BATCH = 32, 3, 1024, 128, 16


def measure(runs: int, steps: int, repeats: int, device: str, compiled: bool) -> dict[str, object]:
    """Seconds of `steps` steps of all runs, stacked and one after another, and their ratios."""
    from ptq_eval.pretrain import PretrainConfig
    from ptq_eval.pretrain.data import Batches, encode, train_tokenizer
    from ptq_eval.pretrain.stacked.options import RunOptions
    from ptq_eval.pretrain.stacked.plan import Leg, Run
    from ptq_eval.pretrain.stacked.trainer import Material, Stack
    from ptq_eval.pretrain.trainer import _Run

    text = "\n".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "ptq_eval").rglob("*.py")))
    size: dict[str, Any] = {"width": WIDTH, "layers": LAYERS, "vocab": VOCAB, "context": CONTEXT, "batch_size": BATCH}
    tokenizer = train_tokenizer(text, VOCAB)
    material = Material(tokenizer, encode(tokenizer, text), "")
    legs = [Leg(Run(RunOptions(**size, seed=SEED + k), "", (10**6,)), 0, 10**6) for k in range(runs)]
    with tempfile.TemporaryDirectory() as folder:
        stack = Stack(legs, [material] * runs, Path(folder), device, compiled)
        separate = []
        for k in range(runs):
            one = _Run(PretrainConfig(**size, seed=SEED + k), text, "", Path(folder) / str(k), device, False)
            one.batches = Batches(material.ids, context=CONTEXT, batch_size=BATCH, seed=SEED + k)
            separate.append(one)

        def together() -> None:
            for _ in range(steps):
                stack._advance()
            _wait(device)

        def apart() -> None:
            for one in separate:
                for _ in range(steps):
                    one.advance(one.state, one._forward, 1e-3)
            _wait(device)

        first = clock(together)
        pairs = by_turns(together, apart, repeats)
    ratios = {kind: [getattr(b, kind) / getattr(a, kind) for a, b in pairs] for kind in ("wall", "cpu")}
    return {
        "runs": runs, "steps": steps, "device": device, "compiled": compiled, "seconds_first": first.wall,
        "seconds_stacked": [a.wall for a, _ in pairs], "seconds_separate": [b.wall for _, b in pairs],
        "ratio": ratios, "median": {kind: statistics.median(values) for kind, values in ratios.items()},
        "environment": environment(),
    }  # fmt: skip


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def main() -> None:
    """Print what was measured as JSON, and store it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=16)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument("-o", "--out", type=Path)
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    found = measure(chosen.runs, chosen.steps, chosen.repeats, chosen.device, not chosen.no_compile)
    text = json.dumps(found, indent=1)
    print(text)
    if chosen.out:
        chosen.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
