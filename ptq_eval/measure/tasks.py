"""Tasks of lm-evaluation-harness: which there are, and what exactly they ask.

A task's trial keeps a digest of its requests with their targets: other documents, examples or prompts are other
questions, whose answers are never compared.  `answers` has a model answer them.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import json
import logging
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ptq_eval.config.run import RunConfig
from ptq_eval.errors import TaskError, did_you_mean

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
        for name in _tasks(asked, tuple(folders), config.fewshot):
            task, digest = _asked(name, asked, tuple(folders), config.fewshot, config.task_limit)
            found[name] = {
                "name": name,
                "asked": asked,
                "version": str(task.VERSION),
                "fewshot": task.config.num_fewshot or 0,
                "limit": config.task_limit,
                "bos": config.bos,
                "digest": digest,
                "folders": folders,
            }
    return list(found.values())


def planned(spec: Mapping[str, Any]) -> Any:
    """The task of a trial.  Raises TaskError if its documents are not those of the plan any more."""
    name, asked, folders = spec["name"], spec["asked"], tuple(spec["folders"])
    task, digest = _asked(name, asked, folders, spec["fewshot"], spec["limit"])
    if digest != spec["digest"]:
        raise TaskError(f"the documents of {name} have changed since the run was planned", remedy="repeat the command")
    return task


@functools.lru_cache(maxsize=256)
def _asked(name: str, asked: str, folders: tuple[str, ...], fewshot: int | None, limit: int | None) -> tuple[Any, str]:
    """A task, and the first 16 hexadecimal digits of SHA-256 over all its requests and their targets."""
    task = _tasks(asked, folders, fewshot)[name]
    with quiet():
        try:
            task.build_all_requests(limit=limit, rank=0, world_size=1)
        except Exception as error:  # whatever a task's own code and documents do
            raise TaskError(f"the requests of {name} cannot be made", got=line_of(error)) from error
    if not task.instances:
        raise TaskError(f"{name} has no documents", remedy="omit it")
    parts = [[one.request_type, one.doc_id, one.args, str(task.doc_to_target(one.doc))] for one in task.instances]
    return task, hashlib.sha256(json.dumps(parts, default=str).encode()).hexdigest()[:16]


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
        with quiet():
            from lm_eval.tasks import TaskManager

            return TaskManager(include_path=list(folders) or None, include_defaults=defaults)
    except ImportError as error:
        raise TaskError("lm-evaluation-harness is not installed", remedy='pip install "ptq-eval[tasks]"') from error
    except Exception as error:  # a task file that is not YAML
        raise TaskError(
            "the task files cannot be read",
            got=line_of(error),
            remedy="correct the file that is named, or give another --task-folder",
        ) from error


@functools.lru_cache(maxsize=64)
def _tasks(asked: str, folders: tuple[str, ...], fewshot: int | None) -> dict[str, Any]:
    """The tasks of a name, which may be a group's, by their own names, with `fewshot` examples (None: as each says)."""
    from lm_eval.tasks import get_task_dict

    try:
        with quiet():
            found = dict(_flat(get_task_dict([asked], _manager(asked, folders))))
            for task in found.values():
                if fewshot is not None:
                    task.set_config(key="num_fewshot", value=fewshot)
                task.set_fewshot_seed(SEED)
            return found
    except TaskError:
        raise
    except Exception as error:  # of the hub, of files, of a task's own code
        remedy = "its documents are fetched from the Hugging Face hub or read from the files that the task names"
        raise TaskError(f"the task {asked} cannot be loaded", got=line_of(error), remedy=remedy) from error


def _flat(tree: Mapping[Any, Any]) -> Iterator[tuple[str, Any]]:
    for name, task in tree.items():
        if isinstance(task, Mapping):
            yield from _flat(task)
        else:
            yield str(name), task


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the harness's log and progress bars."""
    logger = logging.getLogger("lm_eval")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logger.setLevel(before)


def line_of(error: Exception) -> str:
    """The kind of an error and its first line or, where it has no words, the line of code that raised it."""
    code = traceback.extract_tb(error.__traceback__)[-1].line or ""
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [code])[0][:160]}"
