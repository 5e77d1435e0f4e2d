"""What a drive of any package needs in its environment: a clock, a model, the matrices by which it multiplies.

The weights are taken from the quantized modules as they multiply: each layer that was an nn.Linear is given the
identity matrix, whatever its packing, input scales or types.  Everything else is read from the state dict, because AWQ
moves scales into norms.
"""

from __future__ import annotations

import os
import resource
import sys
import time
from pathlib import Path
from typing import Any

UNCHANGED = 1e-4
"""Of a matrix's norm: rounding to 8 bits moves a weight by some thousandths, a change of type by 1e-7."""


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
