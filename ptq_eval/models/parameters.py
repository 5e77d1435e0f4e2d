"""A model's parameters: which of them may be quantized, and how many there are by each convention in use.

A matrix is quantizable when its module is an instance of nn.Linear or of transformers' Conv1D (whose weight is stored
transposed); subclasses count.  The token embedding and the output head are quantizable where they are asked for; a
tensor that both share is one matrix, under the embedding's name.  Everything else stays in full precision and is listed
with its reason: other embeddings, norms and biases, gates and routers, convolutions, parameters of unknown modules, and
whatever text does not run through.  Experts fused into one tensor are listed apart, because excluding them would
measure another model.

For pythia-70m the total is 70,426,624, Hugging Face's count without embeddings 44,670,976 (it keeps the untied output
head), and the true non-embedding count 18,915,328; a fitted law changes with the choice, so each count is kept.  They
come from the architecture itself (`blueprint`), and not from names or formulas that hold for one family only.  What
text does not run through counts in the total alone.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ptq_eval.models.blueprint import Blueprint, blueprint
from ptq_eval.models.configuration import read_config
from ptq_eval.records import Checkpoint

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PretrainedConfig


@dataclass(frozen=True)
class ParameterCounts:
    """Numbers of parameters: `total` (a tied head once), `non_embedding` (without every embedding table,
    learned positions included, and without the head), `hf_non_embedding` (Hugging Face's count, which keeps
    an untied head) and `quantized` (what `classify` lists, without the head)."""

    total: int
    non_embedding: int
    hf_non_embedding: int
    quantized: int


def count_parameters(
    config_or_folder: PretrainedConfig | str | Path, trust_remote_code: bool = False
) -> ParameterCounts:
    """Count the parameters of a configuration, or of the `config.json` in a folder.

    Raises UnreadableCheckpointError where there is no readable configuration, UnsafeCheckpointError where it needs
    remote code that is not trusted, and UnsupportedModelError where it is not one of a causal language model.
    """
    if isinstance(config_or_folder, (str, Path)):
        return counts_of(blueprint(config_or_folder, trust_remote_code))
    return counts_of(Blueprint(config_or_folder, trust_remote_code))


def with_counts(checkpoint: Checkpoint, folder: Path, trust_remote_code: bool = False) -> Checkpoint:
    """The checkpoint with its architecture and counts; an N given by the user is kept.

    Raises what `count_parameters` raises.
    """
    counts = count_parameters(folder, trust_remote_code)
    content = read_config(folder)
    named = content.get("architectures") or content.get("model_type") or ""
    architecture = str(named[0] if isinstance(named, list) else named)
    checkpoint = replace(
        checkpoint, architecture=architecture, params_total=counts.total, params_quantized=counts.quantized
    )
    if checkpoint.params_source == "user":
        return checkpoint
    return replace(checkpoint, params=counts.non_embedding, params_source="derived", params_convention="non_embedding")


@lru_cache(maxsize=64)
def counts_of(plan: Blueprint) -> ParameterCounts:
    """The counts of a blueprint."""
    from torch import nn

    module: Any = plan.module
    outside = plan.outside
    head = module.get_output_embeddings()
    apart = {id(parameter) for parameter in head.parameters()} if head is not None else set()
    for part in module.modules():
        if isinstance(part, nn.Embedding):
            apart |= {id(parameter) for parameter in part.parameters()}
    parameters = list(module.named_parameters())  # a shared parameter appears once
    linears: dict[str, Any] = classify(module, outside=outside).linears
    return ParameterCounts(
        total=sum(parameter.numel() for _, parameter in parameters),
        non_embedding=sum(p.numel() for name, p in parameters if id(p) not in apart and name not in outside),
        hf_non_embedding=module.num_parameters(exclude_embeddings=True),
        quantized=sum(part.weight.numel() for part in linears.values()),
    )


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
    """A model's modules to quantize by name, in the model's order; its other parameters; its fused experts by name.

    `embedding` is the token embedding, if it is to be quantized, and `shared` the modules with the same tensor.
    """

    linears: dict[str, nn.Module] = field(default_factory=dict)
    embedding: dict[str, nn.Module] = field(default_factory=dict)
    shared: list[nn.Module] = field(default_factory=list)
    excluded: list[Excluded] = field(default_factory=list)
    fused: list[str] = field(default_factory=list)


def classify(
    module: Any, include_head: bool = False, outside: Collection[str] = (), include_embedding: bool = False
) -> Parts:
    """The parts of a transformers model; `outside` names the parameters that text does not run through.

    A head that is tied to an embedding which is quantized belongs to the embedding, with or without `include_head`.
    """
    head: Any = module.get_output_embeddings()
    embedding: Any = module.get_input_embeddings()
    tied = head is not None and embedding is not None and head.weight is embedding.weight
    joined = tied and include_embedding
    own_head = include_head and not joined
    experts = frozenset(_expert_counts(module.config.to_dict())) if hasattr(module, "config") else frozenset()
    shared: list[Any] = [head] if joined else []
    parts, seen = Parts(shared=shared), {}
    for module_name, inner in module.named_modules():
        for parameter_name, parameter in inner.named_parameters(recurse=False):
            name = f"{module_name}.{parameter_name}" if module_name else parameter_name
            reason = _reason(inner, name, parameter, experts)
            if name in outside:
                parts.excluded.append(Excluded(name, "text does not run through it", parameter.numel()))
            elif reason == _FUSED:
                parts.fused.append(name)
            elif inner is embedding and include_embedding:
                parts.embedding[module_name] = inner
            elif id(parameter) in seen and not (inner is head and own_head):
                note = "tied output head" if inner is head or inner is embedding else "shared weight"
                parts.excluded.append(Excluded(name, f"{note}: the same tensor as {seen[id(parameter)]}", 0))
            elif inner is head and parameter.dim() == 2:
                if own_head:
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
    from torch import nn

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
