"""Loading a model from a folder; every failure becomes one PtqEvalError.

Weights are safetensors, or pickles of tensors only; no code from a checkpoint runs unless the user trusts it.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

from ptq_eval.errors import (
    DeviceError,
    PtqEvalError,
    UnreadableCheckpointError,
    UnsafeCheckpointError,
    UnsupportedModelError,
)
from ptq_eval.models.configuration import auto_class, configuration, quiet_transformers, read_config
from ptq_eval.models.recipes import dequantizing
from ptq_eval.models.weight_files import pinned


def from_pretrained(
    folder: Path, dtype: torch.dtype, trust: bool, name: str, scratch: Path | None = None, **options: Any
) -> tuple[Any, dict[str, Any]]:
    """The module in `folder`, and transformers' account of keys that were missing or surplus.

    Only the files that `weight_files` names are read.  `options` go to transformers: `device_map` and `offload_folder`
    for a model larger than memory, whose files stay linked below `scratch`.
    """
    try:
        content = read_config(folder)
        config = configuration(folder, trust)
        with quiet_transformers(), pinned(folder, scratch) as place:
            return auto_class(config).from_pretrained(
                place,
                config=config,
                dtype=dtype,
                trust_remote_code=trust,
                local_files_only=True,
                weights_only=True,
                output_loading_info=True,
                **dequantizing(content),
                **options,
            )
    except PtqEvalError:
        raise
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
