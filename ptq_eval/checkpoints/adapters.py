"""Adapters, LoRA and the like: the few weights that a finetuning adds to a model, and how to merge them into it.

PEFT and MLX both write an `adapter_config.json`, into the checkpoint's folder or one below it that is called after the
adapter (`adapter_model`, `default`).  What other libraries write is recognised by its name in `foreign`.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ptq_eval.errors import PtqEvalError, UnsupportedModelError
from ptq_eval.models.json_files import load_json

_CONFIG = "adapter_config.json"
_WEIGHTS = "adapter_model.*"
_PROMPTS = re.compile(r"PROMPT|PREFIX|P_TUNING|CPT", re.IGNORECASE)
"""Methods of PEFT that add inputs, not weights."""


def adapter_beside(folder: Path) -> str:
    """The kind of adapter (LoRA …) that is in a folder which holds a model's weights too; "" where there is none."""
    if not any(path.is_file() for path in folder.glob(_WEIGHTS)) and not (folder / _CONFIG).is_file():
        return ""
    return _text(_content(folder), "peft_type") or "PEFT"


def adapter(folder: Path, names: Iterable[str]) -> PtqEvalError | None:
    """The error for the first adapter among the names of files in a folder and below it; None where there is none."""
    for name in names:
        path = folder / name
        if (path.name == _CONFIG or fnmatch.fnmatchcase(path.name, _WEIGHTS)) and not path.is_dir():
            return _error(path.parent, name if "/" in name else None)
    return None


def _error(home: Path, found: str | None) -> PtqEvalError:
    content = _content(home)
    mlx = isinstance(content, dict) and "fine_tune_type" in content
    base = _text(content, "model" if mlx else "base_model_name_or_path")
    method = _text(content, "fine_tune_type" if mlx else "peft_type")
    if _PROMPTS.search(method):
        return UnsupportedModelError(
            f"an adapter ({method}), not a model: learned prompts cannot be merged into weights",
            got=found,
            allowed="whole models",
            remedy=f"measure its base model{f' {base}' if base else ''}, whose weights it leaves as they are",
        )
    into = f"its base model {base}" if base else "its base model, which is not recorded"
    return UnsupportedModelError(
        f"an adapter ({method or 'PEFT'}), not a model: merge it into {into}",
        got=found,
        allowed="whole models",
        # mlx_lm/fuse.py: its options
        remedy=f"mlx_lm.fuse --model {base or 'BASE'} --adapter-path {home} --save-path NEW, of mlx-lm"
        if mlx
        else f"PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained({(base or 'BASE')!r}), {str(home)!r})"
        ".merge_and_unload().save_pretrained(NEW)",
    )


def _content(home: Path) -> Any:
    try:
        return load_json(home / _CONFIG)
    except (OSError, ValueError):
        return {}


def _text(content: Any, key: str) -> str:
    """The text under a key of what a JSON file holds; "" where there is none."""
    value = content.get(key) if isinstance(content, dict) else None
    return value if isinstance(value, str) else ""
