"""Which parameters of a model may be quantized: the one rule, for counts, plans and measurements.

A matrix is quantizable when its module is an instance of nn.Linear or of transformers' Conv1D (whose weight is stored
transposed); subclasses count.  Everything else stays in full precision and is listed with its reason: embeddings, the
output head, norms and biases, gates and routers, convolutions, parameters of unknown modules, and whatever text does
not run through.  Experts fused into one tensor are listed apart, because leaving them out would measure another model.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

GATE_NAMES = frozenset({"gate", "router", "shared_expert_gate", "ve_gate", "smear_gate", "gating"})
"""Last name of modules that choose or scale, and are never quantized."""

_FUSED = "fused experts"


@dataclass(frozen=True)
class Excluded:
    """A parameter that stays in full precision, and why."""

    name: str
    reason: str
    params: int


@dataclass
class Parts:
    """A model's modules to quantize by name, in the model's order; its other parameters; its fused experts by name."""

    linears: dict[str, nn.Module] = field(default_factory=dict)
    excluded: list[Excluded] = field(default_factory=list)
    fused: list[str] = field(default_factory=list)


def classify(module: Any, include_head: bool = False, outside: Collection[str] = ()) -> Parts:
    """The parts of a transformers model; `outside` names the parameters that text does not run through."""
    head, embedding = module.get_output_embeddings(), module.get_input_embeddings()
    experts = frozenset(_expert_counts(module.config.to_dict())) if hasattr(module, "config") else frozenset()
    parts, seen = Parts(), {}
    for module_name, inner in module.named_modules():
        for parameter_name, parameter in inner.named_parameters(recurse=False):
            name = f"{module_name}.{parameter_name}" if module_name else parameter_name
            reason = _reason(inner, name, parameter, experts)
            if name in outside:
                parts.excluded.append(Excluded(name, "text does not run through it", parameter.numel()))
            elif reason == _FUSED:
                parts.fused.append(name)
            elif id(parameter) in seen and not (inner is head and include_head):
                note = "tied output head" if inner is head or inner is embedding else "shared weight"
                parts.excluded.append(Excluded(name, f"{note}: the same tensor as {seen[id(parameter)]}", 0))
            elif inner is head and parameter.dim() == 2:
                if include_head:
                    parts.linears[module_name] = inner
                else:
                    parts.excluded.append(Excluded(name, "output head", parameter.numel()))
            elif reason:
                parts.excluded.append(Excluded(name, reason, parameter.numel()))
            else:
                parts.linears[module_name] = inner
            seen.setdefault(id(parameter), name)
    return parts


def transposed(module: nn.Module) -> bool:
    """Whether a module keeps its weight as [in, out]."""
    from transformers.pytorch_utils import Conv1D

    return isinstance(module, Conv1D)


def _reason(module: nn.Module, name: str, parameter: Tensor, experts: Collection[int]) -> str:
    """Why this parameter stays in full precision; "" if it is quantizable."""
    home, _, own = name.rpartition(".")
    if isinstance(module, nn.Embedding):
        return "embedding"
    if sum(size > 1 for size in parameter.shape) < 2 and not (parameter.dim() == 2 and own == "weight"):
        return "bias" if own == "bias" else "norm or vector"
    if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
        return "convolution"
    if home.rpartition(".")[2] in GATE_NAMES:
        return "gate"
    linear = isinstance(module, nn.Linear) or transposed(module)
    if linear and parameter.dim() == 2:
        return ""
    of_experts = "expert" in f"{home}.{type(module).__name__}".lower() and "bias" not in own
    if of_experts or (parameter.dim() >= 3 and parameter.shape[0] in experts):
        return _FUSED
    kind = "matrix" if parameter.dim() == 2 else "tensor"
    return f"{kind} of an unknown module ({type(module).__name__})"


def _expert_counts(content: Mapping[str, Any]) -> Iterator[int]:
    """Numbers of experts in a configuration, however it calls them."""
    for key, value in content.items():
        if isinstance(value, dict):
            yield from _expert_counts(value)
        elif "expert" in str(key) and isinstance(value, int) and not isinstance(value, bool) and value > 1:
            yield value
