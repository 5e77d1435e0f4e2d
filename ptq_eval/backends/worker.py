"""The process in which a backend runs: `python -P worker.py HOME`, with the interpreter of its environment.

HOME/start.json says what to import: {"entry": "module:Class", "packages": {top-level name: path}, "threads", "parent":
the process with which this one ends}; `ready` is written there once that is done, and everything printed goes to `log`.
Then each line of standard input names the folder of a job, until it is closed.

FOLDER/job.json says what to do: {"cells": [Cell …], "layers": {name: columns}, "device", "reload": bool}.  Beside it
are the model (`model/`, or `weights.safetensors` with its layers) and `ids.safetensors`: "ids" [windows, time] to
calibrate with and "probe" [1, time].

The answers are `0.json`, `1.json` …, one for each cell as soon as it is done: {"error": text}, or {"seconds",
"cpu_seconds", "loss": of the probe in full precision, "versions"} with the weights in `0.safetensors`: `layer:NAME`
[out, in] in float32, and `other:NAME` for every other parameter that the method changed, such as norms into which AWQ
moves scales.  Cells that have an answer already are not done again.

Weights are read as the quantized modules multiply: each is given the identity matrix, whatever its packing, its types
or its input scales.  Nothing of ptq-eval is imported but the backend's own module and `base`.
"""

from __future__ import annotations

import gc
import importlib
import importlib.util
import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

SEED = 0

ORPHAN_POLL = 1.0
"""Seconds between two looks at whether the parent still runs."""

BLOCK_COLUMNS = 4096
"""Rows of the identity that go through a module at once."""


class Packages(MetaPathFinder):
    """Makes a few packages of another environment importable, and nothing else of it."""

    def __init__(self, folders: Mapping[str, str]) -> None:
        self.folders = {name: Path(path) for name, path in folders.items()}

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        """The module `name`, if it is one of them: a folder, or one file."""
        place = self.folders.get(name)
        if place is None:
            return None
        if place.is_file():
            return importlib.util.spec_from_file_location(name, place)
        inside = [str(place)]
        return importlib.util.spec_from_file_location(name, place / "__init__.py", submodule_search_locations=inside)


def main(home: Path) -> None:
    """Import the package, then do the jobs whose folders come in on standard input, until it is closed."""
    start = json.loads((home / "start.json").read_text(encoding="utf-8"))
    end_with(start["parent"])
    jobs = os.fdopen(os.dup(0), encoding="utf-8")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)  # what a package reads is not a job
    sys.meta_path.insert(0, Packages(start["packages"]))
    module, _, name = start["entry"].partition(":")
    backend = getattr(importlib.import_module(module), name)()
    importlib.import_module(backend.imports)
    import torch

    torch.set_num_threads(start["threads"])
    (home / "ready").touch()
    for line in jobs:
        folder = Path(line.rstrip("\n"))
        os.chdir(folder)  # what a package writes beside itself is deleted with the job
        _job(backend, folder)
        os.chdir(home)
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def end_with(parent: int) -> None:
    """Have this process end, also in the middle of a job, once its parent no longer runs."""

    def wait() -> None:
        while os.getppid() == parent:
            time.sleep(ORPHAN_POLL)
        os._exit(1)

    if os.name == "posix":  # elsewhere an orphan keeps its parent's number, and ends once standard input is closed
        threading.Thread(target=wait, daemon=True).start()


def _job(backend: Any, folder: Path) -> None:
    """Do every cell of a job that has no answer yet."""
    job = json.loads((folder / "job.json").read_text(encoding="utf-8"))
    before: _Before | None = None
    for number, cell in enumerate(job["cells"]):
        if (folder / f"{number}.json").exists():
            continue
        try:
            before = before or _Before(folder, job)
            answer = _cell(backend, before, job, cell, folder / f"{number}.safetensors")
        except Exception as error:
            traceback.print_exc()
            text = " ".join(str(error).split())[:500]
            answer = {"error": f"{type(error).__name__}: {text}" if text else type(error).__name__}
        part = folder / f"{number}.part"
        part.write_text(json.dumps(answer), encoding="utf-8")
        os.replace(part, folder / f"{number}.json")


class _Before:
    """The model before quantization: its loss on the probe, and its parameters outside the layers."""

    def __init__(self, folder: Path, job: dict[str, Any]) -> None:
        from safetensors.torch import load_file

        self.ids = load_file(folder / "ids.safetensors")
        self.loss: float | None = None
        self.state: dict[str, Tensor] = {}
        if (folder / "model").exists():
            from ptq_eval.backends.base import Cell, Job

            model = Job(folder, list(job["layers"]), Cell("", 0, None, False)).load()
            self.loss = loss_of(model, self.ids["probe"])
            weights = {f"{name}.weight" for name in job["layers"]}
            self.state = {name: t.clone() for name, t in model.named_parameters() if name not in weights}


def _cell(backend: Any, before: _Before, job: dict[str, Any], cell: dict[str, Any], path: Path) -> dict[str, Any]:
    """Quantize under one cell and write the weights to `path`; what is to be said of it."""
    from safetensors.torch import save_file

    from ptq_eval.backends.base import Cell, Job

    task = Job(path.parent, list(job["layers"]), Cell(**cell), before.ids.get("ids"), job["device"], job["reload"])
    _seed()
    started, cpu = time.perf_counter(), time.process_time()
    found = backend.quantize(task)
    if found is None:
        raise TypeError(f"{type(backend).__name__}.quantize returned nothing, neither a model nor weights by layer")
    answer = {"seconds": time.perf_counter() - started, "cpu_seconds": time.process_time() - cpu}
    answer |= {"loss": before.loss, "versions": _versions(backend)}
    if isinstance(found, Mapping):
        weights = {f"layer:{name}": weight.float().contiguous().cpu() for name, weight in found.items()}
    else:
        weights = weights_of(found, job["layers"], before.state)
    model = None if isinstance(found, Mapping) else found
    if job["reload"]:
        answer |= _again(backend, model, task, job["layers"], before, weights)
    elif model is not None:
        answer["after_forward"] = _after_forward(model, job["layers"], before.ids["probe"], weights)
    save_file(weights, path)
    return answer


def _seed() -> None:
    """The same random numbers for each cell, whatever was done before in the process."""
    import random

    import numpy as np
    import torch

    random.seed(SEED)
    np.random.seed(SEED)  # noqa: NPY002
    torch.manual_seed(SEED)


def _again(
    backend: Any,
    model: Any,
    task: Any,
    layers: Mapping[str, int],
    before: _Before,
    weights: Mapping[str, Tensor],
) -> dict[str, float | None]:
    """How far weights are, relative to their norm, after a forward pass, and after saving and loading as well."""
    found: dict[str, float | None] = {"after_forward": None, "after_reload": None}
    if model is not None:
        loss_of(model, before.ids["probe"])
        found["after_forward"] = distance(weights, weights_of(model, layers, {}))
    loaded = backend.reloaded(model, task)
    if isinstance(loaded, Mapping):
        found["after_reload"] = distance(weights, {f"layer:{name}": weight.float() for name, weight in loaded.items()})
    elif loaded is not None:
        loss_of(loaded, before.ids["probe"])  # packed layers may be unpacked in the first forward pass
        found["after_reload"] = distance(weights, weights_of(loaded, layers, {}))
    return found


def _after_forward(model: Any, layers: Mapping[str, int], probe: Tensor, weights: Mapping[str, Tensor]) -> float:
    """How far the weights of the first and the last layer are, relative to their norm, after a forward pass."""
    loss_of(model, probe)
    names = list(layers)
    return distance(weights, weights_of(model, {name: layers[name] for name in (names[0], names[-1])}, {}))


def distance(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> float:
    """The largest relative distance between weights of the same layer."""
    return max(float((one[name] - tensor).norm() / one[name].norm()) for name, tensor in other.items())


def loss_of(model: Any, ids: Tensor) -> float:
    """Mean loss of `ids` [1, time], nats per token."""
    import torch

    with torch.no_grad():
        logits = model(ids.to(model.device), use_cache=False).logits[:, :-1].float()
    return float(torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten().to(logits.device)))


def weights_of(model: Any, layers: Mapping[str, int], before: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What the layers multiply by, [out, in] float32, and the other parameters that differ from those `before`."""
    import torch

    found = {}
    with torch.no_grad():
        for name, columns in layers.items():
            found[f"layer:{name}"] = as_multiplied(model.get_submodule(name), columns)
        now = dict(model.named_parameters()) | dict(model.named_buffers())
        for name, own in before.items():
            new = now.get(name)
            if new is None and not any(name.startswith(f"{layer}.") for layer in layers):
                raise RuntimeError(f"the quantized model has no {name} any more")
            # A package may hold its model in another type, which is no change.
            if new is not None and not torch.equal(new.cpu(), own.to(new.dtype)):
                found[f"other:{name}"] = new.detach().float().cpu().contiguous()
    return found


def as_multiplied(module: Any, columns: int) -> Tensor:
    """The matrix [out, in], float32 on the CPU, that a linear module multiplies by, its bias taken off."""
    import torch

    place = next((t.device for t in [*module.parameters(), *module.buffers()]), torch.device("cpu"))
    reason: Exception | None = None
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        try:
            zero = module(torch.zeros(1, 1, columns, dtype=dtype, device=place))[0]
            rows = torch.eye(columns, dtype=dtype, device=place).split(BLOCK_COLUMNS)
            parts = [(module(part[None])[0].float() - zero.float()).cpu() for part in rows]
            return torch.cat(parts).T.contiguous()
        except (RuntimeError, ValueError, NotImplementedError) as error:  # a kernel for one type only
            reason = error
    raise RuntimeError(f"{type(module).__name__} multiplies no identity: {reason}")


def _versions(backend: Any) -> dict[str, str]:
    """Versions of what the result depends on, by distribution."""
    from importlib.metadata import PackageNotFoundError, version

    from ptq_eval.backends.base import distribution_name

    found = {}
    for text in ("torch", "transformers", *backend.requirements):
        name = distribution_name(text)
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


if __name__ == "__main__":
    main(Path(sys.argv[1]))
