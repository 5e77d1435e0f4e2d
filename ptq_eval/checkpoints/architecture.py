"""What the user says of a model's configuration: whole, for files that hold tensors alone, or what its files lack.

Written as the name of a `config.json` of transformers (or of YAML), as its content, or as a type of model that is meant
with all sizes that transformers has for it.  A configuration is whole where it has `model_type`.  Entries that are
mappings or lists are kept as JSON, so that a checkpoint with its entries can be compared and stored.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from ptq_eval.config.options import Kind
from ptq_eval.errors import PtqEvalError
from ptq_eval.models.json_files import load_json

WHOLE = "model_type"
"""The entry that a whole configuration has."""
_ALLOWED = "a config.json, its content, or a type of model such as gpt2"


def read_architecture(value: Any, *, name: str, error: type[PtqEvalError]) -> dict[str, Any]:
    """The entries of a configuration, nested ones as JSON.  Raises `error`."""
    content = _content(value, name, error) if isinstance(value, (str, Path)) else value
    if not isinstance(content, Mapping):
        raise error(f"{name} is not a mapping from names to values", got=repr(value)[:80], allowed=_ALLOWED)
    return {str(key): own if _is_single(own) else json.dumps(own, sort_keys=True) for key, own in content.items()}


def _content(value: str | Path, name: str, error: type[PtqEvalError]) -> Any:
    path = Path(value)
    try:
        if str(value).lstrip().startswith("{"):
            return json.loads(str(value))
        if path.is_file():
            return load_json(path) if path.suffix == ".json" else yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as problem:
        got = " ".join(str(problem).split())[:160]
        raise error(f"{name} cannot be read", got=f"{str(value)[:80]}: {got}", allowed=_ALLOWED) from problem
    if path.is_dir() and (path / "config.json").is_file():
        return _content(path / "config.json", name, error)
    if re.fullmatch(r"[a-z][a-z0-9_-]*", str(value)):
        return {WHOLE: str(value)}
    raise error(f"{name} names no file", got=repr(str(value)), allowed=_ALLOWED)


def _is_single(value: Any) -> bool:
    return value is None or isinstance(value, (str, int, float))


def given_entries(given: Mapping[str, Any]) -> dict[str, Any]:
    """The entries as a configuration has them: nested ones are no text."""
    return {name: _nested(value) if isinstance(value, str) else value for name, value in given.items()}


def _nested(text: str) -> Any:
    try:
        return json.loads(text) if text[:1] in ("{", "[") else text
    except ValueError:
        return text


ARCHITECTURE = Kind(read_architecture, "CONFIG", write=lambda value: json.dumps(given_entries(value), sort_keys=True))
