"""How many parameters a model has, under each of the conventions in use.

For pythia-70m the total is 70,426,624, Hugging Face's count without embeddings 44,670,976 (it keeps the
untied output head), and the true non-embedding count 18,915,328; a fitted law changes with the choice, so
each count is kept.  They come from the architecture itself, built from its configuration on torch's meta
device, where no memory is taken, and not from names or formulas that hold for one family only.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ptq_eval.errors import UnreadableCheckpointError, UnsafeCheckpointError, UnsupportedModelError
from ptq_eval.records import Checkpoint

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel


@dataclass(frozen=True)
class ParameterCounts:
    """Numbers of parameters: `total` (a tied head once), `non_embedding` (without every embedding table,
    learned positions included, and without the head), `hf_non_embedding` (Hugging Face's count, which keeps
    an untied head) and `quantized` (weight matrices of linear layers, without the head)."""

    total: int
    non_embedding: int
    hf_non_embedding: int
    quantized: int


def count_parameters(
    config_or_folder: PretrainedConfig | str | Path, trust_remote_code: bool = False
) -> ParameterCounts:
    """Count the parameters of a configuration, or of the `config.json` in a folder.

    Results are cached by the configuration's content.  Raises UnreadableCheckpointError where there is no
    readable configuration, UnsafeCheckpointError where it needs remote code that is not trusted, and
    UnsupportedModelError where it is not one of a causal language model.
    """
    is_folder = isinstance(config_or_folder, (str, Path))
    content = read_config(Path(config_or_folder)) if is_folder else config_or_folder.to_dict()
    if not (trust_remote_code and content.get("auto_map")):
        return _count_known(json.dumps(content, sort_keys=True, default=str))
    from transformers import AutoConfig

    remote = AutoConfig.from_pretrained(config_or_folder, trust_remote_code=True) if is_folder else config_or_folder
    return _count(remote, trust_remote_code=True)


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


def read_config(folder: Path) -> dict[str, Any]:
    """The content of a folder's `config.json`.  Raises UnreadableCheckpointError."""
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UnreadableCheckpointError("no config.json", got=str(folder)) from error
    except (OSError, ValueError) as error:
        raise UnreadableCheckpointError("config.json cannot be read", got=error) from error
    if not isinstance(config, dict):
        raise UnreadableCheckpointError("config.json is not a JSON object", got=str(folder))
    return config


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keep transformers from printing reports and progress bars of its own."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


@lru_cache(maxsize=256)
def _count_known(text: str) -> ParameterCounts:
    """The counts of a configuration given as JSON, for an architecture that transformers has itself."""
    from transformers import CONFIG_MAPPING

    content = json.loads(text)
    try:
        with quiet_transformers():
            config = CONFIG_MAPPING[content["model_type"]].from_dict(content)
    except Exception as error:
        raise _refusal(content, error) from error
    return _count(config, trust_remote_code=False)


def _count(config: PretrainedConfig, trust_remote_code: bool) -> ParameterCounts:
    import torch
    from transformers import AutoModelForCausalLM

    try:
        with quiet_transformers(), torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
            model.tie_weights()
    except Exception as error:
        raise _refusal(config.to_dict(), error) from error
    return _counts_of(model)


def _counts_of(model: PreTrainedModel) -> ParameterCounts:
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    head = model.get_output_embeddings()
    outside = {id(parameter) for parameter in head.parameters()} if head is not None else set()
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            outside |= {id(parameter) for parameter in module.parameters()}
    parameters = list(model.parameters())  # a shared parameter appears once
    quantized = {
        id(module.weight): module.weight.numel()
        for module in model.modules()
        if isinstance(module, (nn.Linear, Conv1D)) and id(module.weight) not in outside
    }
    return ParameterCounts(
        total=sum(parameter.numel() for parameter in parameters),
        non_embedding=sum(parameter.numel() for parameter in parameters if id(parameter) not in outside),
        hf_non_embedding=model.num_parameters(exclude_embeddings=True),
        quantized=sum(quantized.values()),
    )


def _refusal(content: dict[str, Any], error: Exception) -> UnsafeCheckpointError | UnsupportedModelError:
    kind = content.get("model_type") or "no model_type"
    if content.get("auto_map"):
        return UnsafeCheckpointError(
            "the model needs code of its own", got=kind, remedy="--trust-remote-code, if you trust its author"
        )
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    return UnsupportedModelError("not a causal language model that transformers can build", got=f"{kind}: {reason}")
