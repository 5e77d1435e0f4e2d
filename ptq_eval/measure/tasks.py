"""Tasks of lm-evaluation-harness, answered by the model of a session with the weights that a lane carries.

The harness asks and marks; its adapter for transformers is handed the model that is already loaded, so every variant
answers the same requests without being saved, loaded or served.  A task's trial keeps a digest of these requests with
their targets: other documents, examples or prompts are other questions, whose answers are never compared.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import json
import logging
import math
import traceback
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ptq_eval.config.run import RunConfig
from ptq_eval.errors import TaskError, did_you_mean
from ptq_eval.measure.evaluate import batch_size
from ptq_eval.measure.memory import out_of_memory
from ptq_eval.measure.session import Session
from ptq_eval.models.loading import load_tokenizer

LENGTH = 128
"""Tokens of a request that batches are sized for."""
SEED = 1234
"""Of the draw of examples before a question: the harness's own."""
GENERATED = "generate_until"
"""The type of tasks whose answer is text that the model continues with."""


def specs(config: RunConfig) -> list[dict[str, Any]]:
    """The field `task` of the trials that a run asks for, one per task; those of a group one by one.

    Raises TaskError where the harness is not installed, does not know a task or cannot read its documents.
    """
    if not config.tasks:
        return []
    folders = [str(Path(folder).resolve()) for folder in config.task_folder]
    for name in config.tasks:
        if name not in (known := _manager(name, tuple(folders)).all_tasks):
            near = did_you_mean(name, known)
            raise TaskError("lm-eval has no such task", got=name, remedy=f"{near or '`lm-eval ls tasks` lists them'}")
    found: dict[str, dict[str, Any]] = {}
    for asked in config.tasks:
        for name, task in _tasks(asked, tuple(folders)).items():
            _prepare(task, config.fewshot)
            found[name] = {
                "name": name,
                "asked": asked,
                "version": str(task.VERSION),
                "fewshot": task.config.num_fewshot or 0,
                "limit": config.task_limit,
                "bos": config.bos,
                "digest": _digest(name, task, config.task_limit),
                "folders": folders,
            }
    return list(found.values())


def answer(
    session: Session, spec: Mapping[str, Any], carried: Mapping[str, Any], simulation: Any = None
) -> dict[str, Any]:
    """The answers to a task with these parameters: per metric one value per document, in the documents' order.

    metrics: {"acc,none": [...]}.  responses: the log-likelihoods of the choices, or the text generated.  Raises
    TaskError if it cannot be answered, or the documents are not those of the plan any more.
    """
    from lm_eval.evaluator import evaluate  # pyright: ignore[reportMissingImports]

    name = spec["name"]
    task = _tasks(spec["asked"], tuple(spec["folders"]))[name]
    _prepare(task, spec["fewshot"])
    if _digest(name, task, spec["limit"]) != spec["digest"]:
        raise TaskError(f"the documents of {name} have changed since the run was planned", remedy="repeat the command")
    rounding = simulation.running() if simulation is not None else contextlib.nullcontext()
    adapter = _adapter(session, bool(spec["bos"]))
    with session.model.carrying(session.model.parameters_of(carried)), rounding, _quiet(), torch.inference_mode():
        try:
            found = evaluate(adapter, {name: task}, limit=spec["limit"], bootstrap_iters=0)
        except Exception as error:  # of a task's own code, or of requests that do not fit the model
            if out_of_memory(error):
                raise
            raise TaskError(f"{name} cannot be answered", got=_line(error)) from error
    return _columns(found["samples"][name], found["higher_is_better"].get(name, {}))


def generates(spec: Mapping[str, Any]) -> bool:
    """Whether a task asks for text."""
    return _tasks(spec["asked"], tuple(spec["folders"]))[spec["name"]].OUTPUT_TYPE == GENERATED


def _adapter(session: Session, bos: bool) -> Any:
    """The harness's adapter around the session's model."""
    from lm_eval.models.huggingface import HFLM  # pyright: ignore[reportMissingImports]

    model, work = session.model, session.work
    tokenizer = load_tokenizer(work.folder, False, work.checkpoint.name)
    adapter = HFLM(
        pretrained=model.module,  # pyright: ignore[reportArgumentType]
        backend="causal",
        tokenizer=tokenizer,  # pyright: ignore[reportArgumentType]
        max_length=model.max_length,
        batch_size=batch_size(model, LENGTH),
        add_bos_token=True if bos else None,
    )
    for kind in ("loglikelihood", "loglikelihood_rolling", GENERATED):
        setattr(adapter, kind, functools.partial(getattr(adapter, kind), disable_tqdm=True))
    return adapter


def _columns(samples: Sequence[Mapping[str, Any]], higher: Mapping[str, Any]) -> dict[str, Any]:
    """The samples of the harness, which has one per document and filter, as one list per column."""
    filters = list(dict.fromkeys(sample["filter"] for sample in samples))
    own = [sorted((s for s in samples if s["filter"] == each), key=lambda s: s["doc_id"]) for each in filters]
    metrics = {
        f"{metric},{each}": [float(sample[metric]) for sample in several]
        for each, several in zip(filters, own)
        for metric in several[0]["metrics"]
        if all(_is_number(sample[metric]) for sample in several)
    }
    return {
        "metrics": metrics,
        "higher_is_better": {name: higher.get(name.partition(",")[0]) is not False for name in metrics},
        "documents": [sample["doc_hash"] for sample in own[0]],
        "targets": [str(sample["target"]) for sample in own[0]],
        "responses": [json.loads(json.dumps(sample["resps"], default=str)) for sample in own[0]],
    }


def _is_number(value: Any) -> bool:
    return isinstance(value, bool | int | float) and math.isfinite(value)


def _prepare(task: Any, fewshot: int | None) -> None:
    if fewshot is not None:
        task.set_config(key="num_fewshot", value=fewshot)
    task.set_fewshot_seed(SEED)


def _digest(name: str, task: Any, limit: int | None) -> str:
    """The first 16 hexadecimal digits of SHA-256 over all requests of a task and their targets."""
    with _quiet():
        try:
            task.build_all_requests(limit=limit, rank=0, world_size=1)
        except Exception as error:  # whatever a task's own code and documents do
            raise TaskError(f"the requests of {name} cannot be made", got=_line(error)) from error
    if not task.instances:
        raise TaskError(f"{name} has no documents", remedy="omit it")
    parts = [[one.request_type, one.doc_id, one.args, str(task.doc_to_target(one.doc))] for one in task.instances]
    return hashlib.sha256(json.dumps(parts, default=str).encode()).hexdigest()[:16]


def _manager(name: str, folders: tuple[str, ...]) -> Any:
    """What knows a task: the files in the user's folders alone, which take no time to read, or the harness's too."""
    own = _index(folders, False) if folders else None
    return own if own is not None and name in own.all_tasks else _index(folders, True)


@functools.lru_cache(maxsize=8)
def _index(folders: tuple[str, ...], defaults: bool) -> Any:
    for folder in folders:
        if not Path(folder).is_dir():
            raise TaskError("--task-folder is not a folder", got=folder)
    try:
        with _quiet():
            from lm_eval.tasks import TaskManager  # pyright: ignore[reportMissingImports]

            return TaskManager(include_path=list(folders) or None, include_defaults=defaults)
    except ImportError as error:
        raise TaskError("lm-evaluation-harness is not installed", remedy='pip install "ptq-eval[tasks]"') from error
    except Exception as error:  # a task file that is not YAML
        raise TaskError("the task files cannot be read", got=_line(error), remedy="see --task-folder") from error


@functools.lru_cache(maxsize=64)
def _tasks(asked: str, folders: tuple[str, ...]) -> dict[str, Any]:
    """The tasks of a name, which may be that of a group, by their own names."""
    from lm_eval.tasks import get_task_dict  # pyright: ignore[reportMissingImports]

    try:
        with _quiet():
            return dict(_flat(get_task_dict([asked], _manager(asked, folders))))
    except TaskError:
        raise
    except Exception as error:  # of the hub, of files, of a task's own code
        remedy = "its documents are fetched from the Hugging Face hub or read from the files that the task names"
        raise TaskError(f"the task {asked} cannot be loaded", got=_line(error), remedy=remedy) from error


def _flat(tree: Mapping[Any, Any]) -> Iterator[tuple[str, Any]]:
    for name, task in tree.items():
        if isinstance(task, Mapping):
            yield from _flat(task)
        else:
            yield str(name), task


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the harness's log and progress bars."""
    logger = logging.getLogger("lm_eval")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logger.setLevel(before)


def _line(error: Exception) -> str:
    """The kind of an error and its first line or, where it has no words, the line of code that raised it."""
    code = traceback.extract_tb(error.__traceback__)[-1].line or ""
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [code])[0][:160]}"
