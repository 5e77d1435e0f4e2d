"""The program that runs inside a peer's environment: `python -m benchmarks.peers.driver NAME job.json result.json`.

A job is {"model": folder, "calibration": file of token ids [windows, time], "cells": [{"method", "bits",
"group_size", "symmetric", "weights": file or null}], "threads": number}.  Each cell loads the model anew, as the loop
of a user does, and quantizes it; its result gives seconds of loading and of the quantizing call, wall and CPU, and the
process's peak memory until then.  Reading the weights back is not timed.  An error ends the cell, not the process.
With "evaluation", another file of token ids, and "batch", windows at a time, the rest of a user's loop follows in each
cell: saving, reloading and evaluating (`kept`), which needs "weights"; and full precision is evaluated once.

Nothing here imports the rest of the benchmarks: a peer's environment has torch, transformers and the peer.
"""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from importlib import import_module
from pathlib import Path
from typing import Any

from benchmarks.peers.parts import (
    clock,
    linear_names,
    load_causal_lm,
    peak_memory,
    save_weights,
    since,
    token_ids,
)

START = time.perf_counter()


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
        from benchmarks.peers.kept import full_precision  # imports transformers: after the clock has started

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


if __name__ == "__main__":
    main()
