"""Where and with what a number was measured."""

from __future__ import annotations

import platform
import socket
import time
from functools import cache
from importlib.metadata import version
from typing import Any

import torch

from quantizers import kernels


def provenance(device: str) -> dict[str, Any]:
    """Where and with what a number was measured."""
    facts = {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "host": socket.gethostname(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
        "matmul_precision": torch.get_float32_matmul_precision(),
        "kernels": kernels.backend(torch.device(device)),
        **_versions(),
    }
    if device.startswith("cuda"):
        facts["gpu"] = torch.cuda.get_device_name(device)
    return facts


@cache
def _versions() -> dict[str, str]:
    return {name: version(name) for name in ("ptq-eval", "torch", "transformers")}
