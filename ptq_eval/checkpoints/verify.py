"""Look at what is inside the checkpoints, and say what is wrong before anything is measured.

`verify` reads one checkpoint's weights, configuration and tokenizer; `verify_all` compares all of them besides.
Neither raises for a bad checkpoint: a problem is recorded, and a fatal one keeps the checkpoint out of every fit.
Whether the model is any good is not judged here.
Whether the weights belong to the architecture is asked of transformers (`account`); what is stored besides, and what
is not as trained weights are, is judged in `surplus` and `oddities`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from ptq_eval.checkpoints.account import Account, load_account, was_buffer
from ptq_eval.checkpoints.adapters import adapter_beside
from ptq_eval.checkpoints.arrivals import Files, files_of
from ptq_eval.checkpoints.base import configuration_of, local_path, small_path
from ptq_eval.checkpoints.between import cross_checked
from ptq_eval.checkpoints.contents import placeholder, placeholder_of
from ptq_eval.checkpoints.foreign import foreign
from ptq_eval.checkpoints.problems import noted, settled
from ptq_eval.checkpoints.surplus import Finding, some, surplus_finding
from ptq_eval.errors import PtqEvalError, UnsafeCheckpointError, UnsupportedModelError
from ptq_eval.models.blueprint import blueprint
from ptq_eval.models.configuration import read_config
from ptq_eval.models.loading import tokenizer_fault, tokenizer_folder, tokenizer_sha
from ptq_eval.models.parameters import with_counts
from ptq_eval.models.tokenizers import same_tokenizer
from ptq_eval.models.weight_files import (
    Recipe,
    WeightFiles,
    find_weights,
    recipe,
    recipe_beside,
)
from ptq_eval.records import Checkpoint

if TYPE_CHECKING:
    from ptq_eval.checkpoints.weights import Sketch, WeightReport

Known: TypeAlias = "dict[tuple[Checkpoint, Files], tuple[Checkpoint, Sketch | None]]"
"""What was found in a checkpoint with these files."""

_OF_CONFIG = ("config_missing", "unsupported_model", "remote_code")
"""Problems of a configuration."""
_NARROW = ("F8_", "I", "U", "F4", "F6_", "BOOL")
"""How the types of quantized weights begin."""


def verify(checkpoint: Checkpoint, *, trust_remote_code: bool = False) -> Checkpoint:
    """The checkpoint with hashes and counts filled in, and with every problem found in its files.

    Problem codes: unreadable, missing_shard, unsafe_pickle, remote_code, nan_or_inf, huge_weights, not_loaded,
    config_missing, unsupported_model, not_a_model, already_quantized (all fatal), constant_weights, coarse_weights,
    untied_head, class_differs, dequantized, recipe_unused, surplus_weights, large_weights, adapter_beside,
    unused_files, missing_tokenizer, unreadable_tokenizer.  Remote code is run only when trusted.
    """
    return _examined(checkpoint, trust_remote_code)[0]


def verify_all(
    checkpoints: Sequence[Checkpoint],
    progress: Callable[[int, int, str], object] | None = None,
    *,
    trust_remote_code: bool = False,
    known: Known | None = None,
) -> list[Checkpoint]:
    """Every checkpoint verified and compared with the others, in the same order.

    A model in a run's folder that repeats one of its checkpoints is dropped, see `settled`.
    `progress(done, total, name)` is called once a checkpoint's files are read.  known: what earlier calls found, which
    is not read again unless a file has changed; this call adds to it.  Adds the codes identical_weights,
    steps_out_of_order, tokenizer_differs, model_differs (fatal), near_identical, tokens_off_line, tokens_unknown and
    stage_restart.
    """
    verified, sketches, known = [], [], {} if known is None else known
    for checkpoint in checkpoints:
        key = checkpoint, files_of(checkpoint)
        if key not in known:
            try:
                known[key] = _examined(checkpoint, trust_remote_code)
            except Exception as error:  # one checkpoint that is broken in a new way must not hide the others
                known[key] = noted(checkpoint, "unreadable", f"{type(error).__name__}: {error}"), None
        found, sketch = known[key]
        verified.append(found)
        sketches.append(sketch)
        if progress is not None:
            progress(len(verified), len(checkpoints), checkpoint.name)

    def same(one: Checkpoint, other: Checkpoint) -> bool:
        first, second = (tokenizer_folder(small_path(checkpoint)) for checkpoint in (one, other))
        return first is not None and second is not None and same_tokenizer(first, second, trust_remote_code)

    return settled(cross_checked(verified, sketches, same))


def _examined(checkpoint: Checkpoint, trust: bool) -> tuple[Checkpoint, Sketch | None]:
    """The checkpoint with what is wrong with it alone, and the sketch of its weights if they can be read."""
    if any(problem.code == "unreadable" for problem in checkpoint.fatal):
        return checkpoint, None  # found so, with the reason
    try:
        folder = local_path(checkpoint)
        for place in {folder, tokenizer_folder(folder) or folder}:
            if error := placeholder(place):
                raise error
        weights = find_weights(folder) if folder.is_dir() else WeightFiles((), (folder.name,))
        if error := placeholder_of(folder, weights):
            raise error
    except (PtqEvalError, OSError) as error:
        return noted(checkpoint, "unreadable", error if isinstance(error, PtqEvalError) else str(error)), None
    if not weights.files and not weights.missing and (other := foreign(folder)):
        return noted(checkpoint, "not_a_model", other), None
    checkpoint, found = _with_config(checkpoint, folder, trust)
    if found is not None and not found.dequantized:
        return checkpoint, None
    checkpoint, report = _with_weights(checkpoint, folder, weights)
    sketch = None
    if report is not None:
        checkpoint, sketch = _with_fit(checkpoint, folder, weights, report, found, trust)
    if any(problem.code in _OF_CONFIG for problem in checkpoint.problems):
        return checkpoint, sketch  # the tokenizer's class is named there too: what is wrong with it would be no news
    return _with_tokenizer(checkpoint, folder, trust), sketch


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
        return noted(checkpoint, "missing_shard", f"missing: {some(weights.missing)}"), None
    if not weights.files:
        what = "no weight file: model.safetensors, its shards or pytorch_model.bin"
        return noted(checkpoint, "unreadable", what), None
    try:
        report = read_weights(weights.files)
    except UnsafeCheckpointError as error:
        return noted(checkpoint, "unsafe_pickle", error), None
    except (PtqEvalError, OSError) as error:
        return noted(checkpoint, "unreadable", error if isinstance(error, PtqEvalError) else str(error)), None
    if adapter := adapter_beside(folder):
        used = some(path.name for path in weights.files)
        message = f"an adapter ({adapter}) is beside the weights and is not applied: {used} measured, without it"
        remedy = "to measure both, merge it (merge_and_unload of PEFT) and save the model into a folder of its own"
        checkpoint = noted(checkpoint, "adapter_beside", message, fatal=False, remedy=remedy)
    if unused := [name for name in weights.unused(folder) if not name.startswith("adapter_model")]:
        message = f"{some(path.name for path in weights.files)} measured; beside it, and not used: {some(unused)}"
        checkpoint = noted(checkpoint, "unused_files", message, fatal=False)
    return replace(checkpoint, weights_sha=report.sha), report


def _with_fit(
    checkpoint: Checkpoint, folder: Path, weights: WeightFiles, report: WeightReport, found: Recipe | None, trust: bool
) -> tuple[Checkpoint, Sketch | None]:
    """With what is wrong with its tensors; and the sketch of the parameters of a checkpoint that loads."""
    if message := _not_stored(weights, report):
        return noted(checkpoint, "not_loaded", message), None
    if checkpoint.fatal:
        return _with_sound(checkpoint, report, report.tensors), None
    try:
        plan = blueprint(folder, trust)
        account = load_account(plan, report.tensors, found)
    except Exception as error:  # whatever stops transformers here would stop the measurement later
        if found is None and (narrow := [n for n, (kind, _) in report.tensors.items() if kind.startswith(_NARROW)]):
            return _with_finding(checkpoint, folder, Finding("already_quantized", some(narrow))), None
        return noted(checkpoint, "not_loaded", f"transformers cannot load it: {str(error)[:200]}"), None
    narrow = [name for name in account.parameters if report.tensors[name][0].startswith(_NARROW)]
    finding = surplus_finding(plan.module, account, report)
    if finding is None and found is None and narrow:
        finding = Finding("already_quantized", some(narrow))
    if finding is not None:
        return _with_finding(checkpoint, folder, finding), None
    if narrow:
        message = f"stored as {found}: what is measured are these weights, dequantized on loading"
        checkpoint = noted(checkpoint, "dequantized", message, fatal=False)
    elif found is not None:
        message = f"config.json has a recipe ({found}), but the weights are plain floats: measured as stored"
        remedy = f"remove {found.key} from config.json, or measure the original where they were dequantized"
        checkpoint = noted(checkpoint, "recipe_unused", message, fatal=False, remedy=remedy)
    checkpoint = _with_account(checkpoint, account)
    from ptq_eval.checkpoints.oddities import oddities  # which needs numpy

    for finding in oddities(plan, account, report):
        checkpoint = noted(checkpoint, finding.code, finding.message, fatal=finding.fatal, remedy=finding.remedy)
    names = {name.removeprefix(f"{plan.module.base_model_prefix}."): name for name in account.parameters}
    sketch = None if account.missing or account.mismatched else report.sketch(names)
    return _with_sound(checkpoint, report, account.parameters), sketch


def _not_stored(weights: WeightFiles, report: WeightReport) -> str:
    """Why nothing can be loaded, whatever the architecture; "" where it can."""
    file = weights.files[0]
    if file.suffix == ".pt":
        return f"transformers does not look for {file.name}: call it pytorch_model.bin, or save it as safetensors"
    layout = {name: layout for name, layout in report.tensors.items() if not was_buffer(name, layout[1])}
    if complex_ones := [name for name, (kind, _) in layout.items() if kind.startswith(("C", "complex"))]:
        return f"complex numbers, which the weights of no language model are: {some(complex_ones)}"
    if empty := [name for name, (_, shape) in layout.items() if 0 in shape]:
        return f"placeholders without content, as DeepSpeed ZeRO-3 leaves them: {some(empty)}; run zero_to_fp32.py"
    return ""


def _with_account(checkpoint: Checkpoint, account: Account) -> Checkpoint:
    """With the parameters that would not load (absent, of another shape), and tensors that are none."""
    remedy = f"{configuration_of(checkpoint)} must belong to these weights"
    if account.missing:
        message = f"not in the weights: {some(account.missing)}"
        checkpoint = noted(checkpoint, "not_loaded", message, remedy=remedy)
    if account.mismatched:
        shapes = (f"{name} (got {list(got)}, expected {list(expected)})" for name, got, expected in account.mismatched)
        message = f"of another shape than the configuration says: {some(shapes)}"
        checkpoint = noted(checkpoint, "not_loaded", message, remedy=remedy)
    if account.surplus:
        message = f"not used by the model: {some(account.surplus)}"
        checkpoint = noted(checkpoint, "surplus_weights", message, fatal=False)
    return checkpoint


def _with_finding(checkpoint: Checkpoint, folder: Path, finding: Finding) -> Checkpoint:
    message = finding.message
    if finding.code == "already_quantized":
        by = recipe_beside(folder)
        what = f"quantized weights ({by})" if by else "quantized weights"
        message = f"{what} without their recipe in config.json: {message}"
    return noted(checkpoint, finding.code, message, remedy=finding.remedy)


def _with_sound(checkpoint: Checkpoint, report: WeightReport, parameters: Collection[str]) -> Checkpoint:
    """With the parameters that hold NaN, infinity or numbers that cannot be squared."""
    if bad := [name for name in report.non_finite if name in parameters]:
        checkpoint = noted(checkpoint, "nan_or_inf", f"NaN or infinity in {some(bad)}")
    if huge := [name for name in report.huge if name in parameters]:
        message = f"numbers above 9e18 in {some(huge)}: their squares overflow, and no training gives such weights"
        return noted(checkpoint, "huge_weights", message)
    if large := [name for name in report.large if name in parameters]:
        message = f"numbers beyond the range of float16, which trained weights do not reach: {some(large)}"
        checkpoint = noted(checkpoint, "large_weights", message, fatal=False)
    return checkpoint
