"""How many parameters a model has, under each of the conventions in use.

For pythia-70m the total is 70,426,624, Hugging Face's count without embeddings 44,670,976 (it keeps the
untied output head), and the true non-embedding count 18,915,328; a fitted law changes with the choice, so
each count is kept.  They come from the architecture itself (`blueprint`), and not from names or formulas that hold
for one family only.  What text does not run through counts in the total alone.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from ptq_eval.models.blueprint import Blueprint, blueprint
from ptq_eval.models.configuration import read_config
from ptq_eval.records import Checkpoint

if TYPE_CHECKING:
    from transformers import PretrainedConfig


@dataclass(frozen=True)
class ParameterCounts:
    """Numbers of parameters: `total` (a tied head once), `non_embedding` (without every embedding table,
    learned positions included, and without the head), `hf_non_embedding` (Hugging Face's count, which keeps
    an untied head) and `quantized` (what `quantizable` lists, without the head)."""

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
    architecture = (content.get("architectures") or [content.get("model_type") or ""])[0]
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

    from ptq_eval.models.quantizable import classify

    module, outside = plan.module, plan.outside
    head = module.get_output_embeddings()
    apart = {id(parameter) for parameter in head.parameters()} if head is not None else set()
    for part in module.modules():
        if isinstance(part, nn.Embedding):
            apart |= {id(parameter) for parameter in part.parameters()}
    parameters = list(module.named_parameters())  # a shared parameter appears once
    return ParameterCounts(
        total=sum(parameter.numel() for _, parameter in parameters),
        non_embedding=sum(p.numel() for name, p in parameters if id(p) not in apart and name not in outside),
        hf_non_embedding=module.num_parameters(exclude_embeddings=True),
        quantized=sum(part.weight.numel() for part in classify(module, outside=outside).linears.values()),
    )
