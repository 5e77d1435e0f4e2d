"""The benchmarks that need a GPU, in one go of at most ten minutes: `python -m benchmarks.gpu`, JSON on stdout.

Nothing is downloaded and no peer is installed: the models have random weights, which cost what trained ones cost.  A
Llama of about 1 B parameters is swept whole (RTN, GPTQ, AWQ at four bit-widths, shared and sequential calibration, and
one bit-width alone for what a further one costs); the solver is measured against the published algorithm in plain
torch on the same GPU, the evaluator against bare forward passes and the peak of a matrix product.  For losses a small
trained model is swept on the GPU and on the CPU (`devices`).  Not here: other packages, and curves over sizes.  Parts
run in order of importance, and one is skipped, and named, when less time is left than it took to be expected.

    python -m benchmarks.gpu --out gpu.json         on the first CUDA device, bfloat16
    python -m benchmarks.gpu --tiny --device cpu    a rehearsal anywhere, in a minute
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import devices
from benchmarks.harness import SEED, Claim, environment
from benchmarks.solver import claims_of as solver_claims
from benchmarks.solver import solve, table_of
from benchmarks.subjects import LARGE, TINY
from benchmarks.throughput import claims_of as evaluator_claims
from benchmarks.throughput import forward_operations, product_peak, speeds
from ptq_eval.checkpoints import discover, verify_all
from ptq_eval.config.run import RunConfig
from ptq_eval.measure.evaluate import Evaluator
from ptq_eval.measure.sweep import sweep
from ptq_eval.measure.trials import Workload, make_plan

SOLVER_LIMIT = 20.0
BUDGET = 570.0
BITS = (2, 3, 4, 8)
EXPECTED = {
    "solver": 60.0,
    "loss": 40.0,
    "evaluator": 60.0,
    "sweep, shared": 90.0,
    "sweep, default": 150.0,
    "sweep, one bit-width": 40.0,
}
"""Seconds that a part may take on a large GPU: it is not begun with less time left."""


class Bench:
    """What the parts share: device, sizes, and the results so far."""

    def __init__(self, device: str, tiny: bool, folder: Path, budget: float) -> None:
        self.device, self.tiny, self.folder, self.budget = device, tiny, folder, budget
        self.started = time.perf_counter()
        self.dtype = "float32" if device == "cpu" else "bfloat16"
        self.result: dict[str, Any] = {"claims": [], "parts": {}, "left_out": {}}

    def run(self, name: str, part: Callable[[], dict[str, Any]]) -> None:
        """One part, its error and its time noted; skipped if it would not fit in what is left."""
        left = self.budget - (time.perf_counter() - self.started)
        if left < (5.0 if self.tiny else EXPECTED[name]):
            self.result["left_out"][name] = f"{left:.0f} s were left"
            return
        print(f"{name} …", file=sys.stderr, flush=True)
        before = time.perf_counter()
        self.forget_peak()
        try:
            found = part()
        except Exception as error:  # the other parts are worth having
            traceback.print_exc()
            found = {"error": f"{type(error).__name__}: {error}"[:500]}
        seconds = time.perf_counter() - before
        self.result["parts"][name] = {**found, "seconds": seconds, "peak_bytes": self.peak()}

    def claims(self, claims: list[Claim]) -> None:
        """Note claims."""
        self.result["claims"] += [claim.to_dict() for claim in claims]

    def finished(self) -> None:
        """Wait for the device."""
        if self.device != "cpu":
            torch.cuda.synchronize()

    def forget_peak(self) -> None:
        """Begin a new peak of device memory."""
        if self.device != "cpu":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def peak(self) -> int | None:
        """Bytes of device memory at the peak since `forget_peak`; None on a CPU."""
        return None if self.device == "cpu" else torch.cuda.max_memory_allocated()

    # The parts

    def solver(self) -> dict[str, Any]:
        shapes = ((128, 256), (256, 512)) if self.tiny else ((4096, 4096), (2048, 2048), (1024, 1024), (4096, 11008))
        solved = [solve(*shape, repeats=1 if self.tiny else 2, device=self.device) for shape in shapes]
        self.claims(solver_claims(solved, (4096, 4096), SOLVER_LIMIT))
        return table_of(solved)

    def evaluator(self) -> dict[str, Any]:
        module = self.model()
        length = module.config.max_position_embeddings
        ids = self.tokens(8 if self.tiny else 64, length).to(self.device)
        pairs = speeds(module, ids, repeats=1 if self.tiny else 2, finished=self.finished)
        self.claims(evaluator_claims(pairs))
        peak = product_peak(self.device, getattr(torch, self.dtype), 256 if self.tiny else 8192)
        work = forward_operations(module, ids[:1]) * len(ids)
        best = min(ours.wall for _, ours in pairs["loss alone"])
        return {
            "tokens_per_second": ids.numel() / best,
            "share_of_peak": work / best / peak,
            "peak_flops": peak,
            "times": {what: [[asdict(a), asdict(b)] for a, b in found] for what, found in pairs.items()},
        }

    def sweep(self, calibration: str, bits: tuple[int, ...]) -> dict[str, Any]:
        """All methods at `bits`: seconds from loading to records, and of them the evaluation's."""
        work = self.work(calibration, bits)
        evaluating, original = 0.0, Evaluator.score

        def timed(*arguments: Any) -> Any:
            nonlocal evaluating
            self.finished()
            before = time.perf_counter()
            scores = original(*arguments)
            self.finished()
            evaluating += time.perf_counter() - before
            return scores

        Evaluator.score = timed
        try:
            before = time.perf_counter()
            measured = list(sweep(work, work.trials, device=self.device, tick=lambda _: None))
            seconds = time.perf_counter() - before
        finally:
            Evaluator.score = original
        calibrated = work.calibration
        return {
            "trials": len(measured),
            "failed": [m.message for m in measured if m.status != "ok"],
            "sweep_seconds": seconds,
            "evaluating_seconds": evaluating,
            "overhead_share": 1 - evaluating / seconds,
            "evaluation_windows": list(work.evaluation.ids.shape),
            "calibration_windows": list(calibrated.ids.shape) if calibrated is not None else None,
            "bits": list(bits),
        }

    def loss(self) -> dict[str, Any]:
        """δ of a small trained model, here and on a CPU."""
        found, claims = devices.compared(self.device, *((16, 4) if self.tiny else (512, 64)))
        self.claims(claims)
        return found

    # What they need

    def model(self) -> torch.nn.Module:
        """The Llama with random weights, on the device, in its dtype."""
        from transformers import LlamaConfig, LlamaForCausalLM

        torch.manual_seed(SEED)
        config = LlamaConfig(**(TINY if self.tiny else LARGE), bos_token_id=0, eos_token_id=0, dtype=self.dtype)
        with torch.device(self.device):
            module = LlamaForCausalLM(config)
        return module.to(getattr(torch, self.dtype)).eval()

    def tokens(self, windows: int, length: int) -> torch.Tensor:
        """Random token ids [windows, length]."""
        generator = torch.Generator().manual_seed(SEED)
        vocab = (TINY if self.tiny else LARGE)["vocab_size"]
        return torch.randint(vocab, (windows, length), generator=generator)

    def work(self, calibration: str, bits: tuple[int, ...]) -> Workload:
        """The model as a checkpoint on disk, with random tokens to calibrate on and to evaluate on."""
        home = self.folder / "model"
        length = (TINY if self.tiny else LARGE)["max_position_embeddings"]
        windows = {"eval": 8 if self.tiny else 64, "calib": 4 if self.tiny else 32}
        if not home.exists():
            self.model().save_pretrained(home)
            for name, count in windows.items():
                np.save(self.folder / f"{name}.npy", self.tokens(count, length).flatten().numpy().astype(np.uint16))
        config = RunConfig(
            bits=bits,
            eval_text=f"{self.folder}/eval.npy#any",
            calib_text=f"{self.folder}/calib.npy#any",
            seq_len=length,
            eval_windows=windows["eval"],
            calib_windows=windows["calib"],
            calibration=calibration,  # type: ignore[arg-type]
            device=self.device,
            dtype=self.dtype,
        )
        return make_plan(verify_all(discover([home])), config).workloads[0]


def main() -> int:
    """Run the parts that fit, print the result."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="small sizes, for a rehearsal")
    parser.add_argument("--budget", type=float, default=BUDGET, help="seconds for everything")
    parser.add_argument("--out", type=Path, help="also write the result to this file")
    chosen = parser.parse_args()
    if chosen.device != "cpu" and not torch.cuda.is_available():
        parser.error(f"--device {chosen.device}: torch sees no GPU; --tiny --device cpu rehearses without one")
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(chosen.device, chosen.tiny, Path(folder), chosen.budget)
        bench.result["environment"] = {
            **environment(),
            "device": chosen.device,
            "dtype": bench.dtype,
            **_gpu(chosen.device),
        }
        bench.run("solver", bench.solver)
        bench.run("loss", bench.loss)
        bench.run("sweep, shared", lambda: bench.sweep("shared", BITS))
        bench.run("evaluator", bench.evaluator)
        bench.run("sweep, one bit-width", lambda: bench.sweep("shared", (4,)))
        bench.run("sweep, default", lambda: bench.sweep("default", BITS))
    bench.result["seconds"] = time.perf_counter() - bench.started
    text = json.dumps(bench.result, indent=1)
    if chosen.out:
        chosen.out.write_text(text + "\n", encoding="utf-8")
    print(text)
    return 1 if any("error" in part for part in bench.result["parts"].values()) else 0


def _gpu(device: str) -> dict[str, Any]:
    if device == "cpu":
        return {}
    return {
        "gpu": torch.cuda.get_device_name(device),
        "cuda": torch.version.cuda,
        "driver_capability": list(torch.cuda.get_device_capability(device)),
    }


if __name__ == "__main__":
    sys.exit(main())
