"""How much faster runs train as one stack than one after another.

Whole optimizer steps (forward, backward, clipping, AdamW) of 16 runs of the two smallest sizes of the study
(`results/precision/study.toml`, with its vocabulary, context and batch): in one stack, compiled and not, and by the
loop of `ptq-eval pretrain` over each run.  The two take turns in one process, after a warm-up that compiles; the
seconds of compiling are reported apart.  Separate runs may also train side by side, one thread each: their time is then
taken as that on one thread over the number of cores, as if they did not disturb each other.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks.harness import ROOT, SEED, Claim, Outcome, Seconds, Setup, by_turns, claim_of, clock, cores
from quantizers.parallel import one_thread

SHAPE = {"vocab": 512, "context": 128, "batch_size": 8}
LAYERS = {"32x1": 1, "32x3": 3}
RUNS, STEPS, REPEATS = 16, 5, 7


def measure(setup: Setup) -> Outcome:
    """Each size on the GPU if there is one, else on the CPU."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    limit = 10.0 if device == "cuda" else 2.5
    outcome = Outcome(details={"device": device, "runs": RUNS, "steps": STEPS, **SHAPE})
    for size, layers in LAYERS.items():
        for compiled in (False, True):
            found = _measured(layers, device, compiled, repeats=1 if setup.quick else REPEATS)
            how = f"stacked: {size}, {'compiled' if compiled else 'not compiled'}"
            outcome.claims += _claims(how, found, limit if compiled else None)
            rows = [[own.wall, apart.wall, own.cpu, apart.cpu] for own, apart in found["pairs"]]
            outcome.details[how] = {
                "note": f"Seconds of {STEPS} steps; the first time took {found['first'].wall:.1f}.",
                "columns": ["stack", "one after another", "stack, CPU", "one after another, CPU"],
                "rows": rows,
                "on_one_thread": [one.wall for one in found["alone"]],
            }
    return outcome


def _claims(how: str, found: dict[str, Any], limit: float | None) -> Iterator[Claim]:
    pairs = found["pairs"]
    held: dict[str, Any] = {"limit": limit, "sense": "at least"}
    yield claim_of(
        f"{how}: runs one after another / the stack", [apart.wall / own.wall for own, apart in pairs], **held
    )
    own = statistics.median(own.wall for own, _ in pairs)
    beside = [one.wall / len(cores()) / own for one in found["alone"]]
    if beside:
        yield claim_of(f"{how}: runs side by side, one thread each / the stack", beside)


def _measured(layers: int, device: str, compiled: bool, repeats: int) -> dict[str, Any]:
    """Seconds of `STEPS` steps of all runs: pairs of stacked and one after another, and the latter on one thread."""
    from ptq_eval.pretrain import PretrainConfig
    from ptq_eval.pretrain.data import Batches, encode, train_tokenizer
    from ptq_eval.pretrain.stacked.options import RunOptions
    from ptq_eval.pretrain.stacked.plan import Leg, Run
    from ptq_eval.pretrain.stacked.trainer import Material, Stack
    from ptq_eval.pretrain.trainer import _Run

    text = "\n".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "quantizers").rglob("*.py")))
    size: dict[str, Any] = {"width": 32, "layers": layers, **SHAPE}
    tokenizer = train_tokenizer(text, SHAPE["vocab"])
    material = Material(tokenizer, encode(tokenizer, text), "")
    legs = [Leg(Run(RunOptions(**size, seed=SEED + k), "", (10**6,)), 0, 10**6) for k in range(RUNS)]
    with tempfile.TemporaryDirectory() as folder:
        stack = Stack(legs, [material] * RUNS, Path(folder), device, compiled)
        separate = []
        for k in range(RUNS):
            one = _Run(PretrainConfig(**size, seed=SEED + k), text, {}, Path(folder) / str(k), device, False)
            one.batches = Batches(material.ids, context=SHAPE["context"], batch_size=SHAPE["batch_size"], seed=SEED + k)
            separate.append(one)

        def together() -> None:
            for _ in range(STEPS):
                stack._advance()
            _wait(device)

        def apart() -> None:
            for one in separate:
                for _ in range(STEPS):
                    one.advance(one.state, one._forward, 1e-3)
            _wait(device)

        first = clock(together)
        pairs = by_turns(together, apart, repeats)
        with one_thread():
            alone = _times(apart, repeats) if device == "cpu" else []
    return {"first": first, "pairs": pairs, "alone": alone}


def _times(task: Callable[[], object], repeats: int) -> list[Seconds]:
    task()
    return [clock(task) for _ in range(repeats)]


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()
