"""Answers to tasks of lm-evaluation-harness, by the model of a session with the weights that a case carries.

The harness marks them; its adapter for transformers is handed the model that is already loaded, so every variant
answers the same requests without being saved, loaded or served.
"""

from __future__ import annotations

import contextlib
import functools
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import PreTrainedModel

from ptq_eval.errors import MissingTokenizerError, TaskError
from ptq_eval.measure import tasks
from ptq_eval.measure.evaluate import batch_size
from ptq_eval.measure.memory import out_of_memory
from ptq_eval.measure.session import Session
from ptq_eval.measure.simulation import Simulation
from ptq_eval.models.loading import load_tokenizer

LENGTH = 128
"""Tokens of a request that batches are sized for."""


def answer(
    session: Session, spec: Mapping[str, Any], carried: Mapping[str, Any], simulation: Simulation | None = None
) -> dict[str, Any]:
    """The answers to a task with these parameters: per metric one value per document, in the documents' order.

    metrics: {"acc,none": [...]}.  responses: the log-likelihoods of the choices, or the text generated.  Raises
    TaskError if it cannot be answered, or the documents are not those of the plan any more.
    """
    from lm_eval.evaluator import evaluate

    name, task = spec["name"], tasks.planned(spec)
    over_tokens = simulation is not None and simulation.over_tokens
    if task.OUTPUT_TYPE == tasks.GENERATED:
        _require_generating(name, session, simulation)
    rounding = simulation.running() if simulation is not None else contextlib.nullcontext()
    adapter = _adapter(session, bool(spec["bos"]), alone=over_tokens)
    with session.model.carrying(session.model.parameters_of(carried)), rounding, tasks.quiet(), torch.inference_mode():
        try:
            found: Any = evaluate(adapter, {name: task}, limit=spec["limit"], bootstrap_iters=0)
        except Exception as error:  # of a task's own code, or of requests that do not fit the model
            if out_of_memory(error):
                raise
            raise TaskError(f"{name} cannot be answered", got=tasks.line_of(error)) from error
    return _columns(found["samples"][name], found["higher_is_better"].get(name, {}))


def _require_generating(name: str, session: Session, simulation: Simulation | None) -> None:
    """A text is continued token by token.  Raises TaskError where the model or what it rounds is for whole windows."""
    what, module = "", session.model.module
    if not (isinstance(module, PreTrainedModel) and module.can_generate()):
        what = f"{type(module).__name__} does not generate"
    elif simulation is not None and simulation.cache is not None:
        what = "a quantized cache is simulated for whole windows alone"
    elif simulation is not None and simulation.over_tokens:
        what = "activations that share a scale over tokens are simulated for whole windows alone"
    if what:
        raise TaskError(f"{name} asks for text, and {what}", remedy="omit it, or ask for tasks of log-likelihoods")


def _adapter(session: Session, bos: bool, alone: bool = False) -> Any:
    """The harness's adapter around the session's model; with `alone`, no request is filled up to another's length."""
    from lm_eval.models.huggingface import HFLM

    model, work = session.model, session.work
    try:
        tokenizer = load_tokenizer(work.folder, session.trust_remote_code, work.checkpoint.name)
    except MissingTokenizerError as error:  # windows of token ids need none
        raise TaskError(error.what, got=error.got, remedy="put the tokenizer's files beside the weights") from error
    options: dict[str, Any] = {
        "pretrained": model.module,
        "backend": "causal",
        "tokenizer": tokenizer,
        "max_length": model.max_length,
        "batch_size": 1 if alone else batch_size(model, LENGTH),
        "add_bos_token": True if bos else None,
    }
    adapter = HFLM(**options)
    for kind in ("loglikelihood", "loglikelihood_rolling", tasks.GENERATED):
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
