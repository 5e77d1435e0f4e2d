"""Look at what is inside the checkpoints, and say what is wrong before anything is measured.

`verify` reads one checkpoint's weights, configuration and tokenizer; `verify_all` compares all of them besides.
Neither raises for a bad checkpoint: a problem is recorded, and a fatal one keeps the checkpoint out of every fit.
Whether the model is any good is not judged here.

Whether the weights belong to the architecture is asked of transformers (`load_account`), which is handed names, types
and shapes as tensors without content.  A buffer is no parameter: causal masks and rotary tables that older versions
stored are neither surplus nor a reason to exclude a checkpoint, whatever is in them.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ptq_eval.checkpoints.discover import local_path
from ptq_eval.checkpoints.foreign import foreign, placeholder
from ptq_eval.checkpoints.problems import cross_checked, noted, settled
from ptq_eval.errors import PtqEvalError, UnsafeCheckpointError, UnsupportedModelError
from ptq_eval.models.blueprint import Blueprint, blueprint
from ptq_eval.models.configuration import quiet_transformers, read_config
from ptq_eval.models.loading import same_tokenizer, tokenizer_fault, tokenizer_folder, tokenizer_sha
from ptq_eval.models.parameters import with_counts
from ptq_eval.models.weight_files import (
    Recipe,
    WeightFiles,
    dequantizing,
    find_weights,
    quantized_names,
    recipe,
    recipe_beside,
)
from ptq_eval.records import Checkpoint

if TYPE_CHECKING:
    from ptq_eval.checkpoints.weights import Sketch, WeightReport

_SHOWN = 3
"""How many names a message spells out."""

_NARROW = ("F8_", "I", "U", "F4", "F6_")
"""How the types of quantized weights begin."""


def verify(checkpoint: Checkpoint, *, trust_remote_code: bool = False) -> Checkpoint:
    """The checkpoint with hashes and counts filled in, and with every problem found in its files.

    Problem codes: unreadable, missing_shard, unsafe_pickle, remote_code, nan_or_inf, not_loaded, config_missing,
    unsupported_model, not_a_model, already_quantized (all fatal), dequantized, surplus_weights, unused_files,
    missing_tokenizer, unreadable_tokenizer.  Remote code is run only when trusted.
    """
    return _examined(checkpoint, trust_remote_code)[0]


def verify_all(
    checkpoints: Sequence[Checkpoint],
    progress: Callable[[int, int, str], object] | None = None,
    *,
    trust_remote_code: bool = False,
) -> list[Checkpoint]:
    """Every checkpoint verified and compared with the others, in the same order.

    A model in a run's folder that repeats one of its checkpoints is dropped, see `settled`.
    `progress(done, total, name)` is called once a checkpoint's files are read.  Adds the codes identical_weights,
    steps_out_of_order, tokenizer_differs, model_differs (fatal), near_identical, tokens_unknown and stage_restart.
    """
    verified, sketches = [], []
    for checkpoint in checkpoints:
        try:
            found, sketch = _examined(checkpoint, trust_remote_code)
        except Exception as error:  # one checkpoint that is broken in a new way must not hide the others
            found, sketch = noted(checkpoint, "unreadable", f"{type(error).__name__}: {error}"), None
        verified.append(found)
        sketches.append(sketch)
        if progress is not None:
            progress(len(verified), len(checkpoints), checkpoint.name)

    def same(one: Checkpoint, other: Checkpoint) -> bool:
        first, second = (tokenizer_folder(local_path(checkpoint)) for checkpoint in (one, other))
        return first is not None and second is not None and same_tokenizer(first, second, trust_remote_code)

    return settled(cross_checked(verified, sketches, same))


def _examined(checkpoint: Checkpoint, trust: bool) -> tuple[Checkpoint, Sketch | None]:
    """The checkpoint with what is wrong with it alone, and the sketch of its weights if they can be read."""
    try:
        folder = local_path(checkpoint)
        for place in {folder, tokenizer_folder(folder) or folder}:
            if error := placeholder(place):
                raise error
        weights = find_weights(folder) if folder.is_dir() else WeightFiles((), (folder.name,))
        if error := placeholder(folder, weights.files):
            raise error
    except (PtqEvalError, OSError) as error:
        return noted(checkpoint, "unreadable", error if isinstance(error, PtqEvalError) else str(error)), None
    if not weights.files and not weights.missing and (other := foreign(folder)):
        return noted(checkpoint, "not_a_model", other), None
    checkpoint, found = _with_config(checkpoint, folder, trust)
    if found is not None and not found.dequantized:
        return checkpoint, None
    checkpoint, report = _with_weights(checkpoint, folder, weights)
    if report is not None:
        checkpoint = _with_fit(checkpoint, folder, weights, report, found, trust)
    return _with_tokenizer(checkpoint, folder, trust), report.sketch if report is not None else None


def _with_tokenizer(checkpoint: Checkpoint, folder: Path, trust: bool) -> Checkpoint:
    """With the hash of its tokenizer, unless that cannot be loaded: such a one is not compared with the others."""
    where = tokenizer_folder(folder)
    if where is None:
        return noted(checkpoint, "missing_tokenizer", "no tokenizer in the folder or beside it", fatal=False)
    if error := tokenizer_fault(where, trust):
        # Not fatal: a text of token ids needs no tokenizer, and with another text the plan excludes the checkpoint.
        message = f"the tokenizer cannot be loaded, and a text needs one: {error.got}"
        return noted(checkpoint, "unreadable_tokenizer", message, fatal=False, remedy=error.remedy)
    return replace(checkpoint, tokenizer_sha=tokenizer_sha(where))


def _with_config(checkpoint: Checkpoint, folder: Path, trust: bool) -> tuple[Checkpoint, Recipe | None]:
    try:
        found = recipe(read_config(folder))
        if found is not None and not found.dequantized:
            remedy = f"measure the original; where these weights are the original, remove {found.key} from config.json"
            return noted(checkpoint, "already_quantized", f"quantized already ({found})", remedy=remedy), found
        checkpoint = with_counts(checkpoint, folder, trust)
    except UnsafeCheckpointError as error:
        return noted(checkpoint, "remote_code", error), None
    except UnsupportedModelError as error:
        return noted(checkpoint, "unsupported_model", error), None
    except PtqEvalError as error:
        return noted(checkpoint, "config_missing", error), None
    return checkpoint, found


def _with_weights(checkpoint: Checkpoint, folder: Path, weights: WeightFiles) -> tuple[Checkpoint, WeightReport | None]:
    from ptq_eval.checkpoints.weights import read_weights

    if weights.missing:
        return noted(checkpoint, "missing_shard", f"missing: {_some(weights.missing)}"), None
    if not weights.files:
        what = "no weight file: model.safetensors, its shards or pytorch_model.bin"
        return noted(checkpoint, "unreadable", what), None
    try:
        report = read_weights(weights.files)
    except UnsafeCheckpointError as error:
        return noted(checkpoint, "unsafe_pickle", error), None
    except (PtqEvalError, OSError) as error:
        return noted(checkpoint, "unreadable", error if isinstance(error, PtqEvalError) else str(error)), None
    if unused := weights.unused(folder):
        message = f"{_some(path.name for path in weights.files)} measured; beside it, and not used: {_some(unused)}"
        checkpoint = noted(checkpoint, "unused_files", message, fatal=False)
    return replace(checkpoint, weights_sha=report.sha), report


def _with_fit(
    checkpoint: Checkpoint, folder: Path, weights: WeightFiles, report: WeightReport, found: Recipe | None, trust: bool
) -> Checkpoint:
    """With the parameters that would not load (absent, of another shape, unknown), quantized or not finite."""
    file = weights.files[0]
    if file.suffix == ".pt":
        message = f"transformers does not look for {file.name}: call it pytorch_model.bin, or save it as safetensors"
        return noted(checkpoint, "not_loaded", message)
    empty = [name for name, (_, shape) in report.tensors.items() if 0 in shape]
    if empty:
        message = f"placeholders without content, as DeepSpeed ZeRO-3 leaves them: {_some(empty)}; run zero_to_fp32.py"
        return noted(checkpoint, "not_loaded", message)
    if checkpoint.fatal:
        return _with_finite(checkpoint, report.non_finite)
    try:
        account = load_account(blueprint(folder, trust), report.tensors, found)
    except Exception as error:  # whatever stops transformers here would stop the measurement later
        return noted(checkpoint, "not_loaded", f"transformers cannot load it: {str(error)[:200]}")
    narrow = [name for name in account.parameters if report.tensors[name][0].startswith(_NARROW)]
    if found is not None and narrow:
        message = f"stored as {found}: what is measured are these weights, dequantized on loading"
        checkpoint = noted(checkpoint, "dequantized", message, fatal=False)
    quantized = quantized_names(account.surplus, report.tensors) or (narrow if found is None else [])
    if quantized:
        by = recipe_beside(folder)
        what = f"quantized weights ({by})" if by else "quantized weights"
        message = f"{what} without their recipe in config.json: {_some(quantized)}"
        return noted(checkpoint, "already_quantized", message)
    if account.missing:
        checkpoint = noted(checkpoint, "not_loaded", f"not in the weights: {_some(account.missing)}")
    if account.mismatched:
        message = f"of another shape than the configuration says: {_some(account.mismatched)}"
        checkpoint = noted(checkpoint, "not_loaded", message)
    if account.surplus:
        message = f"not used by the model: {_some(account.surplus)}"
        checkpoint = noted(checkpoint, "surplus_weights", message, fatal=False)
    return _with_finite(checkpoint, [name for name in report.non_finite if name in account.parameters])


def _with_finite(checkpoint: Checkpoint, names: Collection[str]) -> Checkpoint:
    return noted(checkpoint, "nan_or_inf", f"NaN or infinity in {_some(names)}") if names else checkpoint


def _some(names: Iterable[str]) -> str:
    names = sorted(names)
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


Layout = Mapping[str, tuple[str, tuple[int, ...]]]
"""Type (as safetensors names it) and shape of each tensor, by name."""

_HISTORIC = re.compile(
    r"(^|[._])(masked_bias|causal_mask|attn_mask|attention_mask|bias_mask|inv_freq|original_inv_freq|rope\.freqs|freqs_cis"
    r"|cos_cached|sin_cached|cos_sin_cache|position_ids|token_type_ids|alibi|embed_positions\._float_tensor)$"
)
"""Buffers that some version of some library stored beside the weights: masks, rotary tables, positions."""

_MASK = re.compile(r"(^|\.)(attn|attention|self_attn|self_attention)\.bias$")
"""The causal mask of GPT-2, GPT-Neo and GPT-NeoX: a buffer called bias, with a row for each position."""


@dataclass(frozen=True)
class Account:
    """What loading would say: parameters `missing`, `mismatched` in shape, `surplus` tensors; and those used."""

    missing: tuple[str, ...]
    mismatched: tuple[str, ...]
    surplus: tuple[str, ...]
    parameters: frozenset[str]


def load_account(plan: Blueprint, tensors: Layout, recipe: Recipe | None = None) -> Account:
    """How `tensors` fit the architecture; nothing is read, and the same question is asked once.

    `recipe` is that of weights which are dequantized on loading.  Raises whatever stops transformers.
    """
    return _load_account(
        plan, tuple(sorted((name, kind, tuple(shape)) for name, (kind, shape) in tensors.items())), recipe
    )


@lru_cache(maxsize=64)
def _load_account(
    plan: Blueprint, tensors: tuple[tuple[str, str, tuple[int, ...]], ...], recipe: Recipe | None
) -> Account:
    import torch

    from ptq_eval.checkpoints.weights import TORCH_TYPES

    types = {ours: getattr(torch, name, torch.float32) for name, ours in TORCH_TYPES.items()}
    empty = {n: torch.empty(shape, dtype=types.get(k, torch.float32), device="meta") for n, k, shape in tensors}
    config = copy.deepcopy(plan.module.config)
    with quiet_transformers():
        loaded: Any = type(plan.module).from_pretrained(
            None,
            config=config,
            state_dict=empty,
            device_map="meta",
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            **(dequantizing(plan.content) if recipe else {}),
        )
    info = loaded[1]
    unexpected = set(info["unexpected_keys"])
    buffers = _buffers(plan.module, tensors)
    return Account(
        missing=tuple(sorted(info["missing_keys"])),
        mismatched=tuple(sorted(key if isinstance(key, str) else key[0] for key in info["mismatched_keys"])),
        surplus=tuple(sorted(unexpected - buffers)),
        parameters=frozenset(name for name, *_ in tensors) - unexpected - buffers,
    )


def _buffers(module: Any, tensors: Iterable[tuple[str, str, tuple[int, ...]]]) -> set[str]:
    """The stored tensors that are buffers of this architecture, were some once, or are ignored when it is loaded.

    Names count with or without the prefix of the model's body.
    """
    prefix = f"{module.base_model_prefix}."
    parameters = {name.removeprefix(prefix) for name, _ in module.named_parameters(remove_duplicate=False)}
    buffers = {name.removeprefix(prefix) for name, _ in module.named_buffers()}
    patterns = [_HISTORIC, *map(re.compile, module._keys_to_ignore_on_load_unexpected or ())]
    found = set()
    for name, _, shape in tensors:
        bare = name.removeprefix(prefix)
        historic = any(pattern.search(name) for pattern in patterns) or (_MASK.search(name) and len(shape) != 1)
        if bare not in parameters and (bare in buffers or historic):
            found.add(name)
    return found
