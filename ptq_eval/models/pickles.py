"""Pickles of PyTorch, read without running what is in them.

`torch.load(weights_only=True)` refuses everything but tensors and plain values.  Arrays and numbers of numpy are
allowed here besides: trainers store the state of numpy's random numbers, or a best loss, beside the weights, and what
makes an array of its bytes calls nothing else.
"""

from __future__ import annotations

import pickle
import warnings
from contextlib import AbstractContextManager, nullcontext
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ptq_eval.errors import UnreadableCheckpointError, UnsafeCheckpointError

if TYPE_CHECKING:
    import torch


def load_safely(file: Path, device: str = "cpu", mmap: bool = False) -> Any:
    """`torch.load` of tensors, arrays and plain values.  Raises whatever torch raises."""
    import torch

    with warnings.catch_warnings(), _arrays():
        warnings.simplefilter("ignore")  # about the pickle's protocol, which is no concern of the reader's
        return torch.load(file, map_location=device, weights_only=True, mmap=mmap)


def _arrays() -> AbstractContextManager[Any]:
    """While it lasts, arrays of numpy may be unpickled; torch before 2.6 has no such context."""
    import numpy as np
    import torch

    try:
        makers = import_module("numpy._core.multiarray")
    except ImportError:  # numpy before 2.0
        makers = import_module("numpy.core.multiarray")
    named = [
        (getattr(makers, name), f"{home}.multiarray.{name}")
        for name in ("_reconstruct", "scalar")
        for home in ("numpy._core", "numpy.core")
    ]
    types = [type(np.dtype(code)) for code in np.typecodes["All"] if code not in "OSUVMm"]
    context = getattr(torch.serialization, "safe_globals", None)
    known = context is not None and tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 6)
    return context([*named, np.ndarray, np.dtype, *types]) if context is not None and known else nullcontext()


def load_pickle(file: Path, device: str = "cpu") -> dict[str, torch.Tensor]:
    """The tensors of a pickled state dict, on torch's device "meta" without content.  Raises as `load_content` does."""
    return unwrapped(load_content(file, device), file.name)


def load_content(file: Path, device: str = "cpu") -> Any:
    """What a pickle of tensors, arrays and plain values holds.

    Raises UnreadableCheckpointError for a truncated or corrupt file and UnsafeCheckpointError for one that holds more.
    """
    try:
        return load_safely(file, device)
    except pickle.UnpicklingError as error:
        raise UnsafeCheckpointError(
            f"{file.name} holds more than tensors, and was not unpickled",
            got=telling_line(error),
            remedy="convert it to safetensors where you trust it",
        ) from error
    except Exception as error:  # torch raises a different type for each way in which a file can be cut
        raise UnreadableCheckpointError(f"{file.name} is truncated or corrupt", got=telling_line(error)) from error


def unwrapped(content: Any, name: str) -> dict[str, Any]:
    """The tensors in the content of a pickle called `name`: its only state dict, `{"model": {…}, "step": 5}`.

    Raises UnreadableCheckpointError where there is none, or several.
    """
    if is_state(content):
        return {name: value for name, value in content.items() if not _is_nothing(name, value)}
    entries = content.items() if isinstance(content, dict) else ()
    states = {str(key): unwrapped(value, name) for key, value in entries if is_state(value) and value}
    if len(states) == 1:
        return next(iter(states.values()))
    raise UnreadableCheckpointError(
        f"{name} holds {len(states)} state dicts" if states else f"{name} is not a state dict",
        got=", ".join(states) or _not_tensors(content),
        allowed="a dict of tensors by name, alone or as the only one in a dict",
        remedy=f"keep one: torch.save(torch.load({name!r})[{next(iter(states))!r}], {name!r})" if states else "",
    )


def _not_tensors(content: Any) -> str:
    import torch

    if not isinstance(content, dict):
        return type(content).__name__
    others = [
        f"{key!r}: {type(value).__name__}"
        for key, value in content.items()
        if not isinstance(value, torch.Tensor) and not _is_nothing(key, value)
    ]
    return f"{', '.join(others[:3])} among {len(content)} entries"


def is_state(content: Any) -> bool:
    """Whether something is a mapping of tensors, with nothing else but what `_is_nothing` of a model."""
    import torch

    if not isinstance(content, dict):
        return False
    others = [name for name, value in content.items() if not isinstance(value, torch.Tensor)]
    return all(_is_nothing(name, content[name]) for name in others) and (not others or len(others) < len(content))


def _is_nothing(name: Any, value: Any) -> bool:
    """Whether an entry of a state dict holds nothing: None, or what `Module.get_extra_state` gave besides tensors, as
    TransformerEngine's layers keep it."""
    import torch

    return value is None or (str(name).endswith("_extra_state") and not isinstance(value, torch.Tensor))


_LONGEST = 200
"""Characters of an error of another library that are quoted, to the end of a sentence."""


def telling_line(error: Exception) -> str:
    """The one telling line of an error that may be a page long."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    telling = [line for line in lines if "Unsupported" in line or "unsupported" in line]
    line = (telling or lines or [type(error).__name__])[0]
    return line if len(line) <= _LONGEST else line[:_LONGEST].rpartition(". " if ". " in line[:_LONGEST] else " ")[0]
