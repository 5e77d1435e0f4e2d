"""Loading a model or a tokenizer from a folder, with every way it can go wrong turned into one line.

Weights are safetensors, or pickles of tensors only; no code from a checkpoint runs unless the user trusts it.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

from ptq_eval.checkpoints import tokenizer_folder
from ptq_eval.errors import (
    DeviceError,
    MissingTokenizerError,
    UnreadableCheckpointError,
    UnsafeCheckpointError,
    UnsupportedModelError,
)
from ptq_eval.models.counts import quiet_transformers


def build_without_weights(folder: Path, trust_remote_code: bool, name: str) -> Any:
    """The architecture of a folder's `config.json` on torch's meta device."""
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        with quiet_transformers(), torch.device("meta"):
            config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code, local_files_only=True)
            module = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
            module.tie_weights()
    except Exception as error:  # each architecture has its own way of failing on a configuration
        raise _cannot_load(name, error) from error
    return module


def from_pretrained(
    folder: Path, dtype: torch.dtype, trust: bool, name: str, **where: Any
) -> tuple[Any, dict[str, Any]]:
    """The module in `folder`, and transformers' account of keys that were missing or left over.

    `where` is told to transformers: `device_map` and `offload_folder`, for a model larger than memory.
    """
    from transformers import AutoModelForCausalLM

    try:
        with quiet_transformers():
            loader: Any = AutoModelForCausalLM
            return loader.from_pretrained(
                folder, dtype=dtype, trust_remote_code=trust, local_files_only=True, output_loading_info=True, **where
            )
    except pickle.UnpicklingError as error:
        raise UnsafeCheckpointError(
            f"{name}: the weights are a pickle that holds more than tensors",
            got=_first_line(error),
            allowed="safetensors, or pickles of tensors only",
            remedy="convert it to safetensors where you trust it",
        ) from error
    except (SafetensorError, EOFError, OSError) as error:
        raise UnreadableCheckpointError(f"{name}: the weights cannot be read", got=_first_line(error)) from error
    except Exception as error:  # each architecture has its own way of failing on weights
        raise _cannot_load(name, error) from error


def load_tokenizer(folder: Path, trust: bool, name: str) -> Callable[..., Mapping[str, Any]]:
    """The tokenizer in `folder` or beside it.  Raises MissingTokenizerError."""
    home = tokenizer_folder(folder)
    remedy = "put the tokenizer's files beside the weights, or give token ids (.bin, .npy) as text"
    if home is None:
        raise MissingTokenizerError(f"{name} has no tokenizer", got=folder.name, remedy=remedy)
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(home, trust_remote_code=trust, local_files_only=True)
    except Exception as error:  # the tokenizers library raises bare Exception
        what = f"{name}: its tokenizer cannot be loaded"
        raise MissingTokenizerError(what, got=_first_line(error)[:200], remedy=remedy) from error


def _cannot_load(name: str, error: Exception) -> UnsafeCheckpointError | UnsupportedModelError:
    if "trust_remote_code" in str(error):
        return UnsafeCheckpointError(
            f"{name}: loading it runs code of its own",
            remedy="pass --trust-remote-code if you trust its author",
        )
    return UnsupportedModelError(f"{name}: AutoModelForCausalLM cannot load it", got=_first_line(error))


def to_device(module: nn.Module, device: str) -> nn.Module:
    """The module on `device`.  Raises DeviceError."""
    try:
        return module.to(device)
    except (RuntimeError, AssertionError) as error:
        raise DeviceError("the model cannot be put on the device", got=f"{device}: {_first_line(error)}") from error


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0][:300] if text else type(error).__name__
