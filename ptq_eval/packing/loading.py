"""The loss of a written folder, as the library that it is for loads it."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ptq_eval import plugins
from ptq_eval.models.configuration import quiet_transformers
from ptq_eval.models.language_model import DTYPES
from ptq_eval.packing.base import FileFormat
from ptq_eval.records import Progress
from quantizers import Scheme


def loaded(
    folder: Path,
    file_format: FileFormat,
    schemes: Sequence[Scheme],
    ids: Tensor,
    progress: Progress,
    *,
    dtype: torch.dtype,
    device: str,
    trust_remote_code: bool = False,
) -> dict[str, Any]:
    """The "loss" of the folder on windows `ids` [n, time], loaded by transformers, nats per token, with "versions" and
    the "arguments" of `from_pretrained` that it took, as Python writes them.

    Where it cannot be had: the packages that are "missing", or the "error".
    """
    missing = [name for name in file_format.packages if find_spec(name) is None]
    if missing:
        return {"missing": missing}
    from transformers import AutoModelForCausalLM

    options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": trust_remote_code, "dtype": dtype}
    versions = plugins.versions("transformers", *file_format.packages)
    try:
        own = file_format.load_options(schemes)
        options |= own
        with quiet_transformers(), warnings.catch_warnings(action="ignore", category=UserWarning):
            module: Any = AutoModelForCausalLM.from_pretrained(folder, **options)
        module.to(device).eval()
        for parameter in module.parameters():  # as compressed-tensors unpacks FP4 in bfloat16
            if parameter.dtype in DTYPES.values():
                parameter.data = parameter.data.to(dtype)
        loss = _loss(module, ids, progress)
    except Exception as error:  # each library has ways of its own to fail
        return {"error": f"{type(error).__name__}: {error}".splitlines()[0][:300], "versions": versions}
    return {"loss": loss, "versions": versions, "arguments": {name: _written(value) for name, value in own.items()}}


def _written(value: Any) -> str:
    """An argument as Python: a string, or a configuration that only says to unpack."""
    return repr(value) if isinstance(value, str) else f"{type(value).__name__}(dequantize=True)"


@torch.inference_mode()
def _loss(module: Any, ids: Tensor, progress: Progress) -> float:
    """The mean loss over windows [n, time], nats per token, one window at a time."""
    total = 0.0
    for done, window in enumerate(ids, 1):
        window = window[None].long().to(module.device)
        logits = module(input_ids=window, use_cache=False).logits[0, :-1]
        total += float(functional.cross_entropy(logits.float(), window[0, 1:], reduction="sum"))
        progress("evaluating the exported model", done, len(ids))
    return total / (len(ids) * (ids.shape[1] - 1))
