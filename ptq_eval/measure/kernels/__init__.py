"""Inner loops of scoring: many rows of logits reduced to log-sum-exp, divergence and top-1 agreement (`sums`).

`plain` in torch and `cpu` compiled by numba have the same two functions, `full_precision` and `variant`.
"""

from __future__ import annotations

from types import ModuleType

import torch

from quantizers import kernels


def fastest(device: torch.device) -> ModuleType:
    """The module with the fastest kernels for a device."""
    if kernels.backend(device) == "numba":
        from ptq_eval.measure.kernels import cpu

        return cpu
    from ptq_eval.measure.kernels import plain

    return plain
