"""Which device a name means here."""

from __future__ import annotations

import re

from ptq_eval.errors import DeviceError


def resolve_device(name: str) -> str:
    """The device that `name` means; "auto" takes CUDA where there is one.  Raises DeviceError."""
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name == "mps":
        raise DeviceError("losses are summed in float64, which mps lacks", got=name, remedy="--device cpu")
    if not re.fullmatch(r"cpu|cuda(:\d+)?", name):
        raise DeviceError("unknown device", got=name, allowed="auto, cpu, cuda, cuda:N")
    index = int(name.partition(":")[2] or 0)
    if name != "cpu" and index >= (count := torch.cuda.device_count() if torch.cuda.is_available() else 0):
        what = f"no CUDA device {index}" if count else "no CUDA device is available"
        raise DeviceError(what, got=name, allowed=", ".join(["cpu", *(f"cuda:{n}" for n in range(count))]))
    return name
