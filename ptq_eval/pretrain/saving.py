"""What a training run leaves in its folder: every file and every checkpoint whole or not at all.

OUT/pretrain.json              what was trained, and on what; says whether a folder belongs to the same run
OUT/tokenizer/                 trained first
OUT/trunk/checkpoint-STEP/     as HF Trainer writes them; for wsd OUT/annealed/checkpoint-STEP/ too
OUT/state.pt                   weights, optimizer and step of the trunk: what resuming needs, and nothing else
OUT/log.jsonl                  step, loss and learning rate, once the run is done
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from ptq_eval.errors import OptionError, OutputMismatchError, UnreadableCheckpointError, full_disk
from ptq_eval.models.configuration import quiet_transformers


@contextlib.contextmanager
def writing(out: Path) -> Iterator[None]:
    """Turn the operating system's refusals to write under `out` into one OutputFullError."""
    with full_disk(out):
        try:
            yield
        except Exception as error:
            # safetensors and tokenizers pass on what the system said as text only
            said = re.search(r"os error (\d+)", str(error))
            if said is None:
                raise
            raise OSError(int(said[1]), os.strerror(int(said[1]))) from error


def write_whole(path: Path, content: bytes) -> None:
    """Replace a file atomically.  Raises OutputFullError."""
    partial = path.with_name(f".{path.name}.new")
    with writing(path.parent):
        try:
            partial.write_bytes(content)
            partial.replace(path)
        except OSError:
            partial.unlink(missing_ok=True)
            raise


def write_folder(folder: Path, fill: Callable[[Path], object]) -> None:
    """Replace `folder` by what `fill` writes into the folder it is given.  Raises OutputFullError."""
    partial = folder.with_name(f".{folder.name}.partial")
    with writing(folder.parent):
        shutil.rmtree(partial, ignore_errors=True)
        try:
            fill(partial)
        except Exception:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)


def save_checkpoint(folder: Path, model: Any, tokenizer: Any, trainer_state: Mapping[str, Any]) -> None:
    """Write a checkpoint as HF Trainer does, with the tokens seen in its `trainer_state.json`."""

    def fill(partial: Path) -> None:
        with quiet_transformers():
            model.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        (partial / "trainer_state.json").write_text(json.dumps(trainer_state, indent=1) + "\n")

    write_folder(folder, fill)


def keep_state(out: Path, state: Mapping[str, Any]) -> None:
    """Replace the state that resuming needs."""
    buffer = io.BytesIO()
    torch.save(dict(state), buffer)
    write_whole(out / "state.pt", buffer.getvalue())


def kept_state(out: Path, device: str) -> dict[str, Any] | None:
    """The state kept last, or None.  Raises UnreadableCheckpointError."""
    path = out / "state.pt"
    if not path.exists():
        return None
    try:
        return torch.load(path, weights_only=True, map_location=device)
    except Exception as error:  # torch raises a different type for each way in which a file can be damaged
        raise UnreadableCheckpointError(
            "the state kept for resuming is damaged",
            got=f"{path}: {type(error).__name__}",
            remedy="delete that file: the training starts over",
        ) from error


def described(out: Path) -> dict[str, Any] | None:
    """What `pretrain.json` says, or None where no run was begun.  Raises OutputMismatchError."""
    path = out / "pretrain.json"
    if not path.exists():
        return None
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
        return {"config": about["config"], "token_digest": about["token_digest"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise OutputMismatchError(
            "pretrain.json of the output folder is damaged",
            got=f"{path}: {error!r}",
            remedy="choose another folder, or delete this one",
        ) from error


def require_same(out: Path, **mine: Any) -> None:
    """Raise OptionError where `out` holds a run with another `config` or `token_digest`."""
    before, mine = described(out), json.loads(json.dumps(mine))
    if before is not None and any(before[name] != mine[name] for name in mine):
        raise OptionError(
            "the output folder holds a training run of other options or other text",
            got=out,
            remedy="choose another folder, or delete it",
        )
