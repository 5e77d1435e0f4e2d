"""Look at what is inside the checkpoints, and say what is wrong before anything is measured.

`verify` reads one checkpoint's weights, configuration and tokenizer; `verify_all` compares the checkpoints of
each run besides.  Neither raises for a bad checkpoint: a problem is recorded, and a fatal one keeps the
checkpoint out of every fit.  Whether the weights fit the architecture is asked of transformers itself, which
knows its own renamings, by loading the file into a model on the meta device.  Whether the model is any good
is not judged here.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ptq_eval.checkpoints.discover import local_path
from ptq_eval.checkpoints.settled import settled
from ptq_eval.checkpoints.weights import WeightFiles, find_weights, read_weights
from ptq_eval.errors import PtqEvalError, UnsafeCheckpointError, UnsupportedModelError
from ptq_eval.models.counts import quiet_transformers, with_counts
from ptq_eval.records import Checkpoint

_SHOWN = 3
"""How many names a message spells out."""

_OTHER_TOKENIZER_FILES = (
    "tokenizer.model", "spiece.model", "vocab.json", "merges.txt", "vocab.txt", "tokenizer.tiktoken",
)  # fmt: skip


def verify(checkpoint: Checkpoint, *, trust_remote_code: bool = False) -> Checkpoint:
    """The checkpoint with hashes and counts filled in, and with every problem found in its files.

    Problem codes: unreadable, missing_shard, unsafe_pickle, remote_code, nan_or_inf, not_loaded,
    config_missing, unsupported_model (all fatal), surplus_weights, missing_tokenizer.  Remote code is run
    only when trusted.
    """
    try:
        folder = local_path(checkpoint)
        weights = find_weights(folder) if folder.is_dir() else WeightFiles((), (folder.name,))
    except (PtqEvalError, OSError) as error:
        return _noted(checkpoint, "unreadable", str(error))
    checkpoint = _with_config(checkpoint, folder, trust_remote_code)
    checkpoint = _with_weights(checkpoint, weights)
    if not checkpoint.fatal:
        checkpoint = _with_fit(checkpoint, folder, weights, trust_remote_code)
    where = tokenizer_folder(folder)
    if where is None:
        return _noted(checkpoint, "missing_tokenizer", "no tokenizer in the folder or beside it", fatal=False)
    return replace(checkpoint, tokenizer_sha=_tokenizer_sha(where))


def verify_all(
    checkpoints: Sequence[Checkpoint],
    progress: Callable[[int, int, str], object] | None = None,
    *,
    trust_remote_code: bool = False,
) -> list[Checkpoint]:
    """Every checkpoint verified and compared with its run, in the same order, see `settled` for what is then dropped.

    `progress(done, total, name)` is called once a checkpoint's files are read.  Adds the codes identical_weights,
    steps_out_of_order, tokenizer_differs, model_differs (fatal), tokens_unknown and stage_restart.
    """
    verified = []
    for checkpoint in checkpoints:
        verified.append(_verified(checkpoint, trust_remote_code))
        if progress is not None:
            progress(len(verified), len(checkpoints), checkpoint.name)
    runs: dict[str, list[int]] = defaultdict(list)
    for index, checkpoint in enumerate(verified):
        runs[checkpoint.run].append(index)
    for indices in runs.values():
        for index, checkpoint in zip(indices, _compared([verified[index] for index in indices])):
            verified[index] = checkpoint
    return settled(verified)


def _verified(checkpoint: Checkpoint, trust_remote_code: bool) -> Checkpoint:
    try:
        return verify(checkpoint, trust_remote_code=trust_remote_code)
    except Exception as error:  # one checkpoint that is broken in a new way must not hide the others
        return _noted(checkpoint, "unreadable", f"{type(error).__name__}: {error}")


def tokenizer_folder(folder: Path) -> Path | None:
    """Where a checkpoint's tokenizer is: in its own folder, else in the run's, else None."""
    names = ("tokenizer.json", *_OTHER_TOKENIZER_FILES)
    return next((place for place in (folder, folder.parent) if any((place / n).is_file() for n in names)), None)


def _noted(checkpoint: Checkpoint, code: str, message: str, *, fatal: bool = True) -> Checkpoint:
    """With one more problem, but never the same one twice."""
    noted = checkpoint.with_problem(code, message, fatal=fatal)
    return checkpoint if noted.problems[-1] in checkpoint.problems else noted


def _with_config(checkpoint: Checkpoint, folder: Path, trust_remote_code: bool) -> Checkpoint:
    try:
        return with_counts(checkpoint, folder, trust_remote_code)
    except UnsafeCheckpointError as error:
        return _noted(checkpoint, "remote_code", str(error))
    except UnsupportedModelError as error:
        return _noted(checkpoint, "unsupported_model", str(error))
    except PtqEvalError as error:
        return _noted(checkpoint, "config_missing", str(error))


def _with_weights(checkpoint: Checkpoint, weights: WeightFiles) -> Checkpoint:
    if weights.missing:
        return _noted(checkpoint, "missing_shard", f"missing: {_some(weights.missing)}")
    if not weights.files:
        return _noted(checkpoint, "unreadable", "no weight file: model.safetensors, its shards or pytorch_model.bin")
    try:
        report = read_weights(weights.files)
    except UnsafeCheckpointError as error:
        return _noted(checkpoint, "unsafe_pickle", str(error))
    except (PtqEvalError, OSError) as error:
        return _noted(checkpoint, "unreadable", str(error))
    checkpoint = replace(checkpoint, weights_sha=report.sha)
    if report.non_finite:
        return _noted(checkpoint, "nan_or_inf", f"NaN or infinity in {_some(report.non_finite)}")
    return checkpoint


def _with_fit(checkpoint: Checkpoint, folder: Path, weights: WeightFiles, trust_remote_code: bool) -> Checkpoint:
    """With the parameters that would not load: absent, of another shape, or unknown to the architecture."""
    from transformers import AutoConfig, AutoModelForCausalLM

    file = weights.files[0]
    if file.suffix == ".pt":
        message = f"transformers does not look for {file.name}: call it pytorch_model.bin, or save it as safetensors"
        return _noted(checkpoint, "not_loaded", message)
    try:
        with quiet_transformers():
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                folder,
                config=AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code),
                device_map="meta",
                output_loading_info=True,
                ignore_mismatched_sizes=True,
                trust_remote_code=trust_remote_code,
                weights_only=True,
                local_files_only=True,
            )
    except Exception as error:  # whatever stops transformers here would stop the measurement later
        return _noted(checkpoint, "not_loaded", f"transformers cannot load it: {str(error)[:200]}")
    info = loaded[1]
    if info["missing_keys"]:
        checkpoint = _noted(checkpoint, "not_loaded", f"not in the weights: {_some(info['missing_keys'])}")
    if info["mismatched_keys"]:
        names = [key if isinstance(key, str) else key[0] for key in info["mismatched_keys"]]
        checkpoint = _noted(checkpoint, "not_loaded", f"of another shape than the configuration says: {_some(names)}")
    if info["unexpected_keys"]:
        names = _some(info["unexpected_keys"])
        checkpoint = _noted(checkpoint, "surplus_weights", f"not used by the model: {names}", fatal=False)
    return checkpoint


def _some(names: Iterable[str]) -> str:
    names = sorted(names)
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _tokenizer_sha(folder: Path) -> str:
    """The vocabulary's hash: how `tokenizer.json` is laid out, and its state of padding, do not enter."""
    digest = hashlib.sha256()
    path = folder / "tokenizer.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        content = {key: value for key, value in content.items() if key not in ("truncation", "padding")}
        digest.update(json.dumps(content, sort_keys=True).encode())
    except (OSError, ValueError, AttributeError):
        for name in ("tokenizer.json", *_OTHER_TOKENIZER_FILES):
            if (folder / name).is_file():
                digest.update(name.encode() + b"\0" + (folder / name).read_bytes())
    return digest.hexdigest()


def _compared(run: Sequence[Checkpoint]) -> list[Checkpoint]:
    """The checkpoints of one run, in order, with what is wrong between them."""
    compared: list[Checkpoint] = []
    for checkpoint in run:
        earlier = list(compared)
        checkpoint = _against_first(checkpoint, earlier)
        checkpoint = _against_order(checkpoint, earlier)
        if checkpoint.tokens is None:
            message = f"D is not known, so this is measured but not fitted: {checkpoint.tokens_note}"
            checkpoint = _noted(checkpoint, "tokens_unknown", message, fatal=False)
        compared.append(checkpoint)
    return compared


def _against_first(checkpoint: Checkpoint, earlier: Sequence[Checkpoint]) -> Checkpoint:
    twin = next((e for e in earlier if checkpoint.weights_sha and e.weights_sha == checkpoint.weights_sha), None)
    if twin:
        checkpoint = _noted(checkpoint, "identical_weights", f"the same weights as {twin.name}")
    for attribute, code, what in (
        ("tokenizer_sha", "tokenizer_differs", "the tokenizer"),
        ("params_total", "model_differs", "the number of parameters"),
    ):
        mine = getattr(checkpoint, attribute)
        first = next((e for e in earlier if getattr(e, attribute)), None)
        if mine and first and getattr(first, attribute) != mine:
            checkpoint = _noted(checkpoint, code, f"{what} differs from that of {first.name}")
    return checkpoint


def _against_order(checkpoint: Checkpoint, earlier: Sequence[Checkpoint]) -> Checkpoint:
    """D must grow with the step, within a stage: later stages may branch from an earlier point."""
    same = [e for e in earlier if e.stage == checkpoint.stage and e.step is not None and e.tokens is not None]
    if checkpoint.step is not None and checkpoint.tokens is not None and same:
        last = max(same, key=lambda e: e.tokens or 0)
        if checkpoint.tokens <= (last.tokens or 0):
            message = f"D = {checkpoint.tokens:,} is not above the {last.tokens:,} of {last.name}"
            checkpoint = _noted(checkpoint, "steps_out_of_order", message)
    restarted = (
        checkpoint.stage
        and earlier
        and any(e.stage != checkpoint.stage and (e.step or 0) > (checkpoint.step or 0) for e in earlier)
    )
    if restarted:
        message = f"{checkpoint.stage} counts its steps from 0 again ({checkpoint.tokens_note})"
        checkpoint = _noted(checkpoint, "stage_restart", message, fatal=False)
    return checkpoint
