"""The output folder of a training run; every file and every checkpoint is written atomically.

OUT/pretrain.json              options, model size and text, by which a resumed run recognises its folder
OUT/tokenizer/                 trained before the model
OUT/trunk/checkpoint-STEP/     checkpoints as HF Trainer writes them; for wsd also OUT/annealed/checkpoint-STEP/
OUT/state.pt                   weights, optimizer state and step of the trunk, from which a run is resumed
OUT/starts/step-STEP.pt        the same at each checkpoint of the trunk, if states are kept
OUT/log.jsonl                  step, loss and learning rate, written when the run is complete
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from ptq_eval.errors import OptionError, OutputMismatchError, UnreadableCheckpointError, full_disk
from ptq_eval.models.configuration import quiet_transformers
from ptq_eval.pretrain.config import PretrainConfig
from ptq_eval.pretrain.data import Batches


@contextlib.contextmanager
def writing(out: Path) -> Iterator[None]:
    """Raise OutputFullError for any failure of the operating system to write under `out`."""
    with full_disk(out):
        try:
            yield
        except Exception as error:
            # safetensors and tokenizers report the system's error as text only
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
    """Replace `folder` with what `fill` writes into a temporary folder.  Raises OutputFullError."""
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
    """Write a checkpoint as HF Trainer does, with `trainer_state` as its `trainer_state.json`."""

    def fill(partial: Path) -> None:
        with quiet_transformers():
            model.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        (partial / "trainer_state.json").write_text(json.dumps(trainer_state, indent=1) + "\n")

    write_folder(folder, fill)


def training_record(
    config: PretrainConfig,
    batches: Batches,
    *,
    step: int,
    max_steps: int,
    rate: float,
    phase: str,
    decay_steps: int,
    log: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """What `trainer_state.json` of any checkpoint says, of a single run and of a run of a study.

    `rate` is the learning rate of the last step, `decay_steps` the steps of an annealed branch, 0 on a trunk, and `log`
    the losses so far.  The names are those of HF Trainer where it has one; `epochs` is its `epoch`.
    """
    tokens = step * config.context * config.batch_size
    epochs = tokens / batches.epoch_tokens
    return {
        "global_step": step,
        "max_steps": max_steps,
        "num_input_tokens_seen": tokens,
        "epoch": epochs,
        "epochs": epochs,
        "train_batch_size": config.batch_size,
        "learning_rate": rate,
        "weight_decay": config.weight_decay,
        "schedule": config.schedule,
        "schedule_phase": phase,
        "decay_steps": decay_steps,
        "seed": config.seed,
        "log_history": [*log, {"step": step, "learning_rate": rate}],
    }


def write_state(path: Path, state: Mapping[str, Any]) -> None:
    """Replace a file of tensors and plain values atomically.  Raises OutputFullError."""
    buffer = io.BytesIO()
    torch.save(dict(state), buffer)
    write_whole(path, buffer.getvalue())


def read_state(path: Path, device: str, remedy: str) -> dict[str, Any]:
    """What `write_state` wrote.  Raises UnreadableCheckpointError, with this remedy."""
    try:
        return torch.load(path, weights_only=True, map_location=device)
    except Exception as error:  # torch raises different types for different kinds of damage
        raise UnreadableCheckpointError(
            "the saved training state is damaged", got=f"{path}: {type(error).__name__}", remedy=remedy
        ) from error


def state_file(run: Path, step: int) -> Path:
    """Where a run keeps the state of its trunk after `step` steps, if it does."""
    return run / "starts" / f"step-{step}.pt"


def keep_state(out: Path, state: Mapping[str, Any]) -> None:
    """Replace the state from which the run can be resumed."""
    write_state(out / "state.pt", state)


def kept_state(out: Path, device: str) -> dict[str, Any] | None:
    """The last saved state, or None.  Raises UnreadableCheckpointError."""
    path = out / "state.pt"
    if not path.exists():
        return None
    return read_state(path, device, "delete that file to start the training again")


def describe(
    out: Path,
    config: PretrainConfig,
    batches: Batches,
    *,
    steps_saved: Sequence[int],
    params: tuple[int, int],
    text: Mapping[str, str],
    device: str,
) -> None:
    """Write `pretrain.json` of a run.  params: N and all parameters; text: what is said of the text.

    Raises OptionError if `out` holds a run with other options or another text, and OutputFullError.
    """
    tokens = config.context * config.batch_size
    about = {
        "config": asdict(config),
        **text,
        "token_digest": batches.digest,
        "tokens_per_epoch": batches.epoch_tokens,
        "tokens_per_step": tokens,
        "params_non_embedding": params[0],
        "params_total": params[1],
        "steps_saved": list(steps_saved),
        "epochs": steps_saved[-1] * tokens / batches.epoch_tokens,
        "device": device,
        "dtype": "bfloat16 autocast" if device.startswith("cuda") else "float32",
        "torch": torch.__version__,
    }
    require_same(out, config=about["config"], token_digest=about["token_digest"])
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
    write_whole(out / "pretrain.json", (json.dumps(about, indent=2) + "\n").encode())


def described(out: Path) -> dict[str, Any] | None:
    """`config` and `token_digest` from `pretrain.json`, or None without it.  Raises OutputMismatchError."""
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
    """Raise OptionError if `out` holds a run with another `config` or `token_digest`."""
    before, mine = described(out), json.loads(json.dumps(mine))
    if before is not None and any(before[name] != mine[name] for name in mine):
        raise OptionError(
            "the output folder holds a training run with other options or another text",
            got=out,
            remedy="choose another folder, or delete it",
        )
