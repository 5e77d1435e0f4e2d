"""A model larger than memory: swept under a cap that its weights exceed, with the results of a sweep without one.

A Llama of random weights is written block by block, so that not even the writer holds it.  Three processes then sweep
it with RTN, GPTQ (sequential) and AWQ:

* free: no cap; the model and its variants are in memory;
* capped: a control group leaves 1/1.6 of the weights' bytes beyond what Python and its libraries had taken; the sweep
  finds that out by itself, leaves the blocks on disk, and has to come to the same numbers bit by bit;
* forced: the same cap, but made by `--memory` to load the model all the same.  The system has to kill it, or the cap
  would not show anything.

A control group counts everything, pages of mapped files included, and takes those back when it is full.  Making one
takes root (or a delegated group); without, the benchmark says so and measures nothing.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.harness import ROOT, SEED, Claim, Outcome, Setup
from benchmarks.report import LEFT_OUT

SHAPE = {
    "vocab_size": 512,
    "hidden_size": 512,
    "intermediate_size": 1408,
    "num_hidden_layers": 28,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "max_position_embeddings": 128,
    "tie_word_embeddings": False,
}
SEQ_LEN, WINDOWS, CALIBRATION = 64, 4, 4
QUANTIZERS, BITS = ("rtn", "gptq", "awq"), (3,)


def measure(setup: Setup) -> Outcome:
    """Free, capped and forced, each in a process of its own."""
    outcome = Outcome()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        weights = write_model(root / "checkpoint-1", layers=22 if setup.quick else SHAPE["num_hidden_layers"])
        write_tokens(root)
        cap = int(weights / 1.6)
        try:
            with control_group(cap) as group:
                capped, peak = _process(root, group, None), _usage(group)
                forced = _process(root, group, 100 * weights)
        except OSError as error:
            outcome.details[LEFT_OUT] = f"no control group can be made here ({error.strerror or error})"
            return outcome
        free = _process(root, None, None)
    same = capped["records"] is not None and free["records"] == capped["records"]
    outcome.claims = [
        _claim("weights / cap of the capped sweep", weights / cap, limit=1.5),
        _claim("records of the capped sweep equal to those without a cap", same, limit=1),
        _claim("the same cap kills a sweep that loads the model whole", forced["error"] == "killed", limit=1),
        _claim("peak of anonymous memory beyond the libraries / weights", capped["peak"] / weights),
        _claim("the same without a cap", free["peak"] / weights),
        _claim("time of the capped sweep / without a cap", capped["seconds"] / free["seconds"]),
    ]
    outcome.details = {
        "weights_bytes": weights,
        "cap_bytes": cap,
        "peak_of_the_group_with_its_page_cache": peak,
        "shape": SHAPE,
        "free": _told(free),
        "capped": _told(capped),
        "forced": forced["error"],
    }
    return outcome


@contextlib.contextmanager
def control_group(cap: int) -> Iterator[Path]:
    """A new control group that may take `cap` bytes.  Raises OSError where none can be made."""
    lines = Path("/proc/self/cgroup").read_text(encoding="ascii").splitlines()
    places = {kind: place for _, kinds, place in (line.split(":", 2) for line in lines) for kind in kinds.split(",")}
    root = Path("/sys/fs/cgroup")
    parent = root / "memory" / places["memory"].lstrip("/") if "memory" in places else root / places[""].lstrip("/")
    group = parent / f"ptq-eval-benchmark-{os.getpid()}"
    group.mkdir()
    try:
        (group / ("memory.limit_in_bytes" if "memory" in places else "memory.max")).write_text(str(cap))
        yield group
    finally:
        group.rmdir()


def _usage(group: Path) -> int:
    names = ("memory.max_usage_in_bytes", "memory.peak")
    return next((int((group / name).read_text()) for name in names if (group / name).exists()), 0)


def _claim(what: str, value: float, limit: float | None = None) -> Claim:
    return Claim(f"memory: {what}", float(value), float(value), float(value), limit, "at least")


def _told(result: dict[str, Any]) -> dict[str, Any]:
    return {name: result[name] for name in ("seconds", "peak", "error")} | {"records": len(result["records"] or ())}


def write_model(folder: Path, layers: int) -> int:
    """A Llama with random weights, one file per block, held one at a time; the bytes of all weights."""
    import torch
    from safetensors.torch import save_file
    from transformers import LlamaConfig, LlamaForCausalLM

    folder.mkdir()
    config = LlamaConfig(**{**SHAPE, "num_hidden_layers": layers}, bos_token_id=0, eos_token_id=0)
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(folder)
    with torch.device("meta"):
        shapes = {name: p.shape for name, p in LlamaForCausalLM(config).state_dict().items()}
    generator, where, total = torch.Generator().manual_seed(SEED), {}, 0
    files: dict[str, list[str]] = {}
    for name in shapes:
        parts = name.split(".")
        files.setdefault(f"block-{parts[2]}" if parts[1] == "layers" else "other", []).append(name)
    for file, names in files.items():
        tensors = {}
        for name in names:
            noise = torch.randn(shapes[name], generator=generator)
            tensors[name] = 0.03 * noise if len(shapes[name]) > 1 else 1 + 0.03 * noise
            total += tensors[name].nbytes
            where[name] = f"{file}.safetensors"
        save_file(tensors, folder / f"{file}.safetensors", metadata={"format": "pt"})
    index = {"metadata": {"total_size": total}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    return total


def write_tokens(root: Path) -> None:
    """Random tokens to evaluate on and to calibrate on."""
    import numpy as np

    rng = np.random.default_rng(SEED)
    for name, windows in (("evaluation", WINDOWS), ("calibration", CALIBRATION)):
        np.save(root / f"{name}.npy", rng.integers(SHAPE["vocab_size"], size=windows * SEQ_LEN).astype(np.uint16))


def _process(root: Path, group: Path | None, memory: int | None) -> dict[str, Any]:
    arguments = [sys.executable, "-m", "benchmarks.memory", str(root), str(group or ""), json.dumps(memory)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(arguments, capture_output=True, text=True, cwd=ROOT, env=environment, check=False)
    if done.returncode == 0:
        return json.loads(done.stdout.splitlines()[-1])
    error = "killed" if done.returncode == -signal.SIGKILL else done.stderr[-500:]
    return {"records": None, "seconds": float("nan"), "peak": float("nan"), "error": error}


def sweep_in_this_process(root: Path, group: str, memory: int | None) -> dict[str, Any]:
    """One sweep; what this process takes from its start on counts towards the control group, if there is one."""
    import torch

    from ptq_eval.checkpoints import discover, verify_all
    from ptq_eval.config.run import RunConfig
    from ptq_eval.measure.memory import keep_freed_memory
    from ptq_eval.measure.sweep import sweep
    from ptq_eval.measure.trials import make_plan

    torch.set_num_threads(1)
    config = RunConfig(
        quantizers=QUANTIZERS, bits=BITS, seq_len=SEQ_LEN, eval_windows=WINDOWS, calib_windows=CALIBRATION,
        eval_text=f"{root}/evaluation.npy#any", calib_text=f"{root}/calibration.npy#any", device="cpu",
    )  # fmt: skip
    warm_up()
    work = make_plan(verify_all(discover([root / "checkpoint-1"])), config).workloads[0]
    if group:
        (Path(group) / "cgroup.procs").write_text(str(os.getpid()))
    keep_freed_memory()  # as the command line does
    with Peak() as peak:
        started = time.perf_counter()
        measured = list(sweep(work, work.trials, memory=memory, tick=lambda _: None))
        seconds = time.perf_counter() - started
    records = [[m.trial.quantizer, m.nll, m.kl, m.agree, m.status] for m in measured]
    return {"records": records, "seconds": seconds, "peak": peak.bytes, "error": ""}


def warm_up() -> None:
    """Have the quantizers compile and set up whatever they need, so that it does not count as the sweep's."""
    import torch

    from quantizers import LayerStats, Scheme, get_quantizer

    generator = torch.Generator().manual_seed(SEED)
    weight, x = (torch.randn(256, 256, generator=generator) for _ in range(2))
    for name in QUANTIZERS:
        get_quantizer(name).quantize_grid([weight], [Scheme(bits, 128) for bits in BITS], LayerStats.from_inputs(x))


class Peak:
    """The peak of this process's anonymous memory within the context, beyond what it was at its start."""

    def __enter__(self) -> Peak:
        self.bytes, self._start, self._ended = 0, _status("RssAnon"), threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(0.005):
            self.bytes = max(self.bytes, _status("RssAnon") - self._start)


def _status(field: str) -> int:
    with open("/proc/self/status", encoding="ascii") as handle:
        return next(int(line.split()[1]) * 1024 for line in handle if line.startswith(field + ":"))


if __name__ == "__main__":
    print(json.dumps(sweep_in_this_process(Path(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3]))))
