"""Which parameters of a model may be quantized, decided by the type and the name of their module."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

GATE_NAMES = frozenset({"gate", "router", "shared_expert_gate", "ve_gate", "smear_gate", "gating"})
"""Last name of modules that choose or scale, and are never quantized."""


def reason_to_leave(
    module: nn.Module, module_name: str, parameter_name: str, parameter: Tensor, head: Any, include_head: bool
) -> str:
    """Why this parameter stays in full precision; "" if it is quantizable."""
    if isinstance(module, nn.Embedding):
        return "embedding"
    if parameter.dim() < 2:
        return "bias" if parameter_name == "bias" else "norm or vector"
    if parameter.dim() >= 3:
        convolution = isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d))
        return "convolution" if convolution else "fused experts"
    if module is head:
        return "" if include_head else "output head"
    if module_name.rpartition(".")[2] in GATE_NAMES:
        return "gate"
    if not (isinstance(module, nn.Linear) or transposed(module)):
        return f"matrix of an unknown module ({type(module).__name__})"
    return ""


def transposed(module: nn.Module) -> bool:
    """Whether a module keeps its weight as [in, out]."""
    from transformers.pytorch_utils import Conv1D

    return isinstance(module, Conv1D)
