"""The program that runs inside a peer's environment: `python -m benchmarks.peers.driver NAME job.json result.json`.

A job is {"model": folder, "calibration": file of token ids [windows, time], "cells": [{"method", "bits",
"group_size", "symmetric", "weights": file or null}], "threads": number}.  Each cell loads the model anew, as the loop
of a user does, and quantizes it; its result gives seconds of loading and of the quantizing call, wall and CPU, and the
process's peak memory until then.  Reading the weights back is not timed.  An error ends the cell, not the process.
With "evaluation", another file of token ids, and "batch", windows at a time, the rest of a user's loop follows in each
cell: saving, reloading and evaluating (`kept`), which needs "weights"; and full precision is evaluated once.

The weights are taken from the quantized modules as they multiply: each layer that was an nn.Linear is given the
identity matrix, whatever its packing, input scales or types.  Everything else is read from the state dict, because AWQ
moves scales into norms.

Nothing here imports the rest of the benchmarks: a peer's environment has torch, transformers and the peer.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
import traceback
from importlib import import_module
from pathlib import Path
from typing import Any

START = time.perf_counter()
UNCHANGED = 1e-4  # rounding to 8 bits moves a weight by some thousandths, a change of type by 1e-7


def main() -> None:
    """Run the job and write the result."""
    name, job_path, result_path = sys.argv[1:4]
    job = json.loads(Path(job_path).read_text(encoding="utf-8"))
    for number in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"):
        os.environ[number] = str(job["threads"])
    before = clock()
    side = import_module(f"benchmarks.peers.drive_{name}")
    import torch

    torch.set_num_threads(job["threads"])
    names = linear_names(job["model"])  # imports the model's class, which is no part of loading a model
    result: dict[str, Any] = {
        "name": name,
        "versions": side.versions(),
        "import": since(before),
        "memory_imported": peak_memory(),
        "cells": [],
    }
    if hasattr(side, "warm_up"):
        side.warm_up(job["model"], job["cells"][0])
    if job.get("evaluation"):
        from benchmarks.peers.kept import full_precision

        result["full"] = full_precision(job)
    for cell in job["cells"]:
        try:
            # A driver that does something else than quantizing brings its own `run`.
            done = side.run(job, cell) if hasattr(side, "run") else run_cell(side, job, cell, names)
            result["cells"].append({**cell, **done})
        except Exception as error:  # a method that a peer lacks must not cost the others
            traceback.print_exc()
            result["cells"].append({**cell, "error": f"{type(error).__name__}: {error}".splitlines()[0][:300]})
        result["process"] = {"wall": time.perf_counter() - START, "cpu": clock()[1]}
        Path(result_path).write_text(json.dumps(result), encoding="utf-8")


def run_cell(side: Any, job: dict[str, Any], cell: dict[str, Any], names: dict[str, int]) -> dict[str, Any]:
    """Load, quantize, save the weights if the cell names a file for them; the rest of the loop if the job asks."""
    ids = token_ids(job["calibration"])
    before = clock()
    model = side.load(job["model"], cell)
    loaded, memory_loaded = since(before), peak_memory()
    before = clock()
    model = side.quantize(model, ids, cell)
    quantized = since(before)
    result = {"load": loaded, "quantize": quantized, "memory_loaded": memory_loaded, "memory_peak": peak_memory()}
    module = side.module_of(model) if hasattr(side, "module_of") else model
    if cell.get("weights"):
        save_weights(module, names, Path(cell["weights"]), load_causal_lm(job["model"]).state_dict())
    if job.get("evaluation"):
        from benchmarks.peers.kept import kept

        result |= kept(side, job, model, module, names, Path(cell["weights"]))
    return result


def clock() -> tuple[float, float]:
    """Wall time, and CPU time of this process and of children it has waited for (compilers, workers)."""
    times = os.times()
    return time.perf_counter(), times.user + times.system + times.children_user + times.children_system


def since(before: tuple[float, float]) -> dict[str, float]:
    """Seconds since `before`."""
    now = clock()
    return {"wall": now[0] - before[0], "cpu": now[1] - before[1]}


def peak_memory() -> int:
    """The largest resident size of this process so far, bytes.

    Not `ru_maxrss` where Linux tells better: that starts from the size of the process that started this one.
    """
    status = Path("/proc/self/status")
    if status.exists():
        found = [line.split()[1] for line in status.read_text().splitlines() if line.startswith("VmHWM:")]
        if found:
            return int(found[0]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def token_ids(path: str) -> Any:
    """Windows [windows, time], int64."""
    import numpy as np
    import torch

    return torch.from_numpy(np.load(path).astype(np.int64))


def load_causal_lm(folder: str) -> Any:
    """The model as transformers gives it, float32."""
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def linear_names(folder: str) -> dict[str, int]:
    """{name: columns} of the linear layers but the output head, read from a model without weights."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
    head = model.get_output_embeddings()
    return {
        name: module.in_features
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and module is not head
    }


def save_weights(model: Any, names: dict[str, int], path: Path, before: dict[str, Any]) -> None:
    """Write the dense float32 weights of every layer, and all other parameters, as one safetensors file.

    Raises RuntimeError if a layer still multiplies by what it had `before`: then nothing was quantized there.
    """
    import torch
    from safetensors.torch import save_file

    state = {
        name: tensor.detach().float().contiguous().clone()
        for name, tensor in model.state_dict().items()
        if tensor.is_floating_point() and not any(name.startswith(f"{layer}.") for layer in names)
    }
    with torch.inference_mode():
        for name, columns in names.items():
            weight, own = as_multiplied(model.get_submodule(name), columns), before[f"{name}.weight"].float()
            if (weight - own).norm() < UNCHANGED * own.norm():
                raise RuntimeError(f"{name} was not quantized")
            state[f"{name}.weight"] = weight
    save_file(state, str(path))


def as_multiplied(module: Any, columns: int) -> Any:
    """The matrix [out, in] that a linear module without bias multiplies by."""
    import torch

    reason: Exception | None = None
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        try:
            return module(torch.eye(columns, dtype=dtype)[None])[0].T.float().contiguous()
        except (RuntimeError, ValueError, NotImplementedError) as error:  # a kernel for one type only
            reason = error
    raise RuntimeError(f"{type(module).__name__} multiplies no identity: {reason}")


def installed(*names: str) -> dict[str, str]:
    """Versions by distribution name."""
    from importlib.metadata import version

    return {name: version(name) for name in ("torch", "transformers", *names)}


if __name__ == "__main__":
    main()
