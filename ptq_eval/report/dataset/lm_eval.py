"""Losses and answers as lm-eval writes its results: per model a results_DATE.json and a samples_TASK_DATE.jsonl.

Tools that read that format, `ptq-eval compare` among them, can read these.  A model is a checkpoint with a quantizer,
the task is the evaluation text, a document is a window.  The metrics are as for loglikelihood_rolling: per byte under
lm-eval's own names, where bytes are known, and per token, which it lacks, as `token_perplexity`.  Standard errors are
those of the degradation table, which know how the windows were drawn.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ptq_eval.records import FULL_PRECISION, Measurement
from ptq_eval.report.common.data import runtime_name
from ptq_eval.report.common.files import write_json, write_text
from ptq_eval.results.tasks import is_log_likelihood
from ptq_eval.runtime import columns_of
from ptq_eval.version import __version__

DATE = "1970-01-01T00-00-00.000000"
"""Of files that are the same whenever they are written."""

_MOST_NATS = 700.0
"""Of which the exponential is a number still."""


def write(folder: Path, measurements: Iterable[Measurement], errors: Mapping[str, float]) -> list[Path]:
    """Write every measurement below `folder`; `errors` are the standard errors of losses by key.

    Answers to tasks are in folders of their own, `MODEL-TASK`.
    """
    paths = []
    for m in measurements:
        if m.nll:
            paths += _write(folder / name_of(m), m, errors.get(m.trial.key(), math.nan))
        elif "answers" in m.details:
            paths += _write_answers(folder / name_of(m), m)
    return paths


def name_of(m: Measurement) -> str:
    """The folder of a model: checkpoint, quantizer, number format, and what distinguishes others of that name."""
    trial = m.trial
    words = [trial.checkpoint.name, trial.quantizer]
    if trial.scheme is not None:
        words.append(f"{trial.scheme.bits}bits" if trial.scheme.format == "int" else trial.scheme.format)
    if runtime := runtime_name(columns_of(trial)):
        words.append(runtime)
    if trial.task:
        words.append(trial.task["name"])
    if trial.quantizer != FULL_PRECISION:
        words.append(trial.key()[-8:])
    return re.sub(r"[^\w.@-]+", "-", "-".join(words))


def _write(folder: Path, m: Measurement, error: float) -> list[Path]:
    task = re.sub(r"[^\w.-]+", "-", m.trial.protocol)
    metrics = {"token_perplexity,none": m.perplexity, "loss,none": m.loss, "loss_stderr,none": error}
    if m.n_bytes and sum(m.n_bytes):
        byte = math.fsum(m.nll) / sum(m.n_bytes)
        metrics |= {"byte_perplexity,none": math.exp(byte), "bits_per_byte,none": m.bits_per_byte}
    names = [name.removesuffix(",none") for name in metrics if "stderr" not in name]
    results = {
        "results": {task: {"alias": task, **metrics}},
        "group_subtasks": {task: []},
        "configs": {task: {"task": task, "output_type": "loglikelihood_rolling", "metadata": {"version": 1.0}}},
        "versions": {task: 1.0},
        "n-shot": {task: 0},
        "higher_is_better": {task: dict.fromkeys(names, False)},
        "n-samples": {task: {"original": len(m.nll), "effective": len(m.nll)}},
        "config": {"model": "ptq-eval", "model_args": _arguments(m), "batch_size": None, "limit": None},
        "lm_eval_version": f"written by ptq-eval {__version__}",
        "model_name": folder.name,
        "model_name_sanitized": folder.name,
    }
    lines = "".join(json.dumps(_sample(m, task, place)) + "\n" for place in range(len(m.nll)))
    return [
        write_json(folder / f"results_{DATE}.json", results),
        write_text(folder / f"samples_{task}_{DATE}.jsonl", lines),
    ]


def _write_answers(folder: Path, m: Measurement) -> list[Path]:
    answers, about = m.details["answers"], m.trial.task
    task, higher = about["name"], answers["higher_is_better"]
    marks = {metric: np.asarray(found, float) for metric, found in answers["metrics"].items()}
    metrics: dict[str, Any] = {}
    for metric, found in marks.items():
        name, _, how = metric.partition(",")
        value, error = float(found.mean()), float(found.std(ddof=1) / math.sqrt(len(found))) if len(found) > 1 else None
        if is_log_likelihood(metric):
            value = math.exp(min(-value, _MOST_NATS))
            error = None if error is None else value * error  # to first order
        metrics |= {metric: value, f"{name}_stderr,{how}": "N/A" if error is None else error}
    count = len(answers["documents"])
    results = {
        "results": {task: {"alias": task, **metrics}},
        "group_subtasks": {task: []},
        "configs": {task: {"task": task, "num_fewshot": about["fewshot"], "metadata": {"version": about["version"]}}},
        "versions": {task: about["version"]},
        "n-shot": {task: about["fewshot"]},
        "higher_is_better": {task: {n.partition(",")[0]: up and not is_log_likelihood(n) for n, up in higher.items()}},
        "n-samples": {task: {"original": count, "effective": count}},
        "config": {"model": "ptq-eval", "model_args": _arguments(m), "batch_size": None, "limit": about["limit"]},
        "lm_eval_version": m.provenance.get("lm_eval", f"written by ptq-eval {__version__}"),
        "model_name": folder.name,
        "model_name_sanitized": folder.name,
    }
    filters = dict.fromkeys(metric.partition(",")[2] for metric in marks)
    lines = [json.dumps(_answer(answers, how, place)) + "\n" for how in filters for place in range(count)]
    return [
        write_json(folder / f"results_{DATE}.json", results),
        write_text(folder / f"samples_{task}_{DATE}.jsonl", "".join(lines)),
    ]


def _answer(answers: Mapping[str, Any], how: str, place: int) -> dict[str, Any]:
    values = {name.partition(",")[0]: v[place] for name, v in answers["metrics"].items() if name.endswith(f",{how}")}
    target = answers["targets"][place]
    return {
        "doc_id": place,
        "doc": {},
        "target": target,
        "arguments": {},
        "resps": answers["responses"][place],
        "filtered_resps": [each[0] for each in answers["responses"][place]],
        "filter": how,
        "metrics": list(values),
        "doc_hash": answers["documents"][place],
        "prompt_hash": answers["documents"][place],
        "target_hash": hashlib.sha256(target.encode()).hexdigest(),
        **values,
    }


def _arguments(m: Measurement) -> dict[str, Any]:
    trial, checkpoint = m.trial, m.trial.checkpoint
    about = {"run": checkpoint.run, "step": checkpoint.step, "tokens": checkpoint.tokens, "params": checkpoint.params}
    scheme = {n: v for n, v in vars(trial.scheme).items() if n != "layers"} if trial.scheme else {}
    asked = {**about, "quantizer": trial.quantizer, "options": dict(trial.options), **scheme}
    return {**asked, **columns_of(trial), "key": trial.key()}


def _sample(m: Measurement, task: str, place: int) -> dict[str, Any]:
    window = m.windows[place] if m.windows else place
    digest = hashlib.sha256(f"{m.trial.corpus}/{window}".encode()).hexdigest()
    values: dict[str, Any] = {"token_perplexity": [-m.nll[place], m.n_tokens[place]]}
    if m.n_bytes and m.n_bytes[place]:
        values |= {name: [-m.nll[place], m.n_bytes[place]] for name in ("byte_perplexity", "bits_per_byte")}
    return {
        "doc_id": window,
        "doc": {"text": task, "window": window},
        "target": "",
        "arguments": {},
        "resps": [[[str(-m.nll[place])]]],
        "filtered_resps": [[str(-m.nll[place])]],
        "filter": "none",
        "metrics": list(values),
        "doc_hash": digest,
        "prompt_hash": digest,
        "target_hash": digest,
        **values,
    }
