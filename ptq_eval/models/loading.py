"""Loading a model and its tokenizer from a folder; every failure becomes one PtqEvalError.

Weights are safetensors, or pickles of tensors only; no code from a checkpoint runs unless the user trusts it.
"""

from __future__ import annotations

import hashlib
import json
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from ptq_eval.errors import (
    DeviceError,
    MissingTokenizerError,
    PtqEvalError,
    UnreadableCheckpointError,
    UnsafeCheckpointError,
    UnsupportedModelError,
)
from ptq_eval.models.configuration import auto_class, configuration, quiet_transformers, read_config
from ptq_eval.models.json_files import file_content
from ptq_eval.models.weight_files import dequantizing, pinned

if TYPE_CHECKING:
    import torch
    from torch import nn


def from_pretrained(
    folder: Path, dtype: torch.dtype, trust: bool, name: str, scratch: Path | None = None, **options: Any
) -> Any:
    """The module in `folder`.  Raises a PtqEvalError, also where parameters are not among the weights.

    Only the files that `weight_files` names are read.  `options` go to transformers: `device_map` and `offload_folder`
    for a model larger than memory, whose files stay linked below `scratch`.
    """
    from transformers import GenerationConfig

    try:
        content = read_config(folder)
        config = configuration(folder, trust)
        with quiet_transformers(), pinned(folder, scratch) as place:
            module, info = auto_class(config).from_pretrained(
                place,
                config=config,
                generation_config=GenerationConfig(),  # else it is read from config.json, mark at its beginning or not
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
    if missing := sorted(info.get("missing_keys", ())):
        raise UnreadableCheckpointError(
            f"{name}: {len(missing)} parameters of the model are not in the checkpoint",
            got=", ".join(missing[:3]),
            remedy="check that config.json belongs to these weights",
        )
    return module


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


_OTHER_FILES = (
    "tokenizer.model", "spiece.model", "vocab.json", "merges.txt", "vocab.txt", "tokenizer.tiktoken",
)  # fmt: skip

PARTS = (
    "version", "added_tokens", "normalizer", "pre_tokenizer", "post_processor", "decoder", "model",
)  # fmt: skip
"""The entries of `tokenizer.json` that say what a tokenizer does; the library refuses entries that it does not know."""


def tokenizer_folder(folder: Path) -> Path | None:
    """Where a checkpoint's tokenizer is: in its own folder, else in the run's (`RUN/step_98`, `RUN/step_98/hf`)."""
    names = ("tokenizer.json", *_OTHER_FILES)
    folder = folder.absolute()
    places = [folder, folder.parent, *_run_above(folder)]
    return next((place for place in places if any((place / n).is_file() for n in names)), None)


INNER = ("hf", "huggingface", "model")
"""Names of folders within a checkpoint's (`global_step_98/actor/huggingface`)."""


def _run_above(folder: Path) -> list[Path]:
    """The folders up to the run's where a checkpoint is one or two levels below the folder with its number."""
    numbered = lambda place: any(map(str.isdigit, place.name))
    levels = 2 if folder.name.lower() in INNER else 1
    for level, above in enumerate(folder.parents[:levels]):
        if any(numbered(place) for place in above.iterdir() if place.is_dir()):
            return []
        if numbered(above):
            return list(folder.parents[1 : level + 2])
    return []


def tokenizer_sha(folder: Path) -> str:
    """The hash of a tokenizer's content: the layout of its files and the state of padding do not enter.

    The settings beside `tokenizer.json` do, since they may choose another class, which tokenizes in another way.
    """
    digest = hashlib.sha256()
    path = folder / "tokenizer.json"
    try:
        content = json.loads(file_content(path))
        content = {key: value for key, value in content.items() if key not in ("truncation", "padding")}
        digest.update(json.dumps(content, sort_keys=True).encode())
    except (OSError, ValueError, AttributeError):
        for name in ("tokenizer.json", *_OTHER_FILES):
            if (folder / name).is_file():
                digest.update(name.encode() + b"\0" + (folder / name).read_bytes())
    for name, settings in tokenizer_settings(folder).items():
        digest.update(f"{name}\0{json.dumps(settings, sort_keys=True)}".encode())
    return digest.hexdigest()


_SETTINGS = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "config.json")
_OF_CONFIG = ("model_type", "tokenizer_class")
"""What transformers reads in the model's `config.json` to choose the tokenizer's class."""


def tokenizer_settings(folder: Path) -> dict[str, Any]:
    """What is set beside a tokenizer's vocabulary, by file; a file that cannot be read sets nothing."""
    found = {}
    for name in _SETTINGS:
        try:
            content = json.loads(file_content(folder / name))
        except (OSError, ValueError):
            continue
        if name == "config.json" and isinstance(content, dict):
            content = {key: content[key] for key in _OF_CONFIG if key in content}
        found[name] = content
    return found


def tokenizer_fault(folder: Path, trust_remote_code: bool = False) -> MissingTokenizerError | None:
    """Why the tokenizer in `folder` cannot be loaded, or None where it can; the same files are tried once."""
    digest = hashlib.sha256()
    for path in tokenizer_files(folder):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    key = digest.hexdigest(), trust_remote_code
    if key not in _FAULTS:
        _FAULTS[key] = _tokenizer_fault(folder, trust_remote_code)
    return _FAULTS[key]


_FAULTS: dict[tuple[str, bool], MissingTokenizerError | None] = {}


def tokenizer_files(folder: Path) -> list[Path]:
    """The files in a folder that are read for its tokenizer, `config.json` included."""
    read = lambda path: path.name in (*_OTHER_FILES, "config.json") or "token" in path.name
    return sorted(path for path in folder.iterdir() if path.is_file() and read(path))


def _tokenizer_fault(folder: Path, trust_remote_code: bool) -> MissingTokenizerError | None:
    try:
        with quiet_transformers():
            load_tokenizer(folder, trust_remote_code, folder.name)
    except MissingTokenizerError as error:
        return error
    return None


def load_tokenizer(folder: Path, trust: bool, name: str) -> Callable[..., Mapping[str, Any]]:
    """The tokenizer in `folder` or beside it.  Raises MissingTokenizerError."""
    home = tokenizer_folder(folder)
    remedy = "put the tokenizer's files beside the weights, or use token ids (.bin, .npy) as text"
    if home is None:
        raise MissingTokenizerError(f"{name} has no tokenizer", got=folder.name, remedy=remedy)
    from transformers import AutoTokenizer

    try:
        readable = {**_without_unknown_entries(home), **_with_config(home, trust)}
        loaded: Any = AutoTokenizer.from_pretrained(home, trust_remote_code=trust, local_files_only=True, **readable)
        return loaded
    except Exception as error:  # the tokenizers library raises bare Exception
        what = f"{name}: its tokenizer cannot be loaded"
        raise MissingTokenizerError(what, got=_first_line(error), remedy=remedy) from error


def _with_config(folder: Path, trust: bool) -> dict[str, Any]:
    """The configuration as it is read here, which transformers might refuse to read for the tokenizer's class."""
    try:
        return {"config": configuration(folder, trust)}
    except PtqEvalError:
        return {}


def _without_unknown_entries(folder: Path) -> dict[str, Any]:
    """How transformers gets a `tokenizer.json` that has entries which the library refuses; usually there are none."""
    from tokenizers import Tokenizer

    path = folder / "tokenizer.json"
    content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    known = {key: content[key] for key in (*PARTS, "truncation", "padding") if key in content}
    return {} if known == content else {"tokenizer_object": Tokenizer.from_str(json.dumps(known))}
