"""Answers to tasks before and after quantization, paired by document.

The change of a metric is the mean over documents of (after − before); both models answer the same requests, so its
standard error, sd(after − before)/√n, is that of one mean.  Where every value is 0 or 1 the test is McNemar's exact
one: among documents whose mark changes, right to wrong and wrong to right are equally likely if nothing changed
(McNemar 1947).  Otherwise it is a paired t-test.  p is adjusted by Holm's procedure over all entries of a folder.
Of a perplexity, what a document has is the log-likelihood of its target, so that is compared.
Answers after quantization with several draws of calibration windows are their mean, document by document.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from scipy import stats

from ptq_eval.records import WEIGHTS_KEPT, Checkpoint, Measurement, Trial
from ptq_eval.results.over_rounding import holm
from ptq_eval.results.selection import cell_of, newest, place
from ptq_eval.runtime import COLUMNS as RUNTIME
from ptq_eval.runtime import columns_of, is_runtime

LOG_LIKELIHOODS = {"perplexity": "log_likelihood"}
"""Metrics whose value for one document is a log-likelihood in nats, by the name of that."""
_SAME = ("dtype", "device", "include_head", "include_embedding")
COLUMNS = (
    *("run", "step", "tokens", "params", "quantizer", "bits", "group_size", "symmetric", "format", "calibration"),
    *("options", *RUNTIME, "task", "version", "fewshot", "metric", "higher_is_better", "documents"),
    *("score_fp", "score_fp_se", "score_q", "score_q_se", "change", "change_se", "worse", "better", "p", "p_adjusted"),
    *("status", "message", "key", "loss_key"),
)
"""Columns of `tasks.csv`; `loss_key` is the key of the row of `degradation.csv` with the same weights."""


def answered(measurements: Iterable[Measurement], checkpoints: Sequence[Checkpoint]) -> list[Measurement]:
    """The records of answers of listed checkpoints, of the newest version of each quantizer."""
    return newest((m for m in measurements if m.trial.task), checkpoints)[0]


def entries(mine: Sequence[Measurement]) -> list[dict[str, Any]]:
    """One entry per variant, task and metric, with `COLUMNS`; those of full precision have scores alone."""
    full = {_asked(m.trial): m for m in mine if _is_full(m.trial) and "answers" in m.details}
    cells: dict[Any, list[Measurement]] = {}
    for m in mine:
        cells.setdefault(cell_of(m.trial), []).append(m)
    found = [entry for cell in cells.values() for entry in _entries(cell, full.get(_asked(cell[0].trial)))]
    adjusted = holm(np.array([math.nan if entry["p"] is None else entry["p"] for entry in found]))
    return [{**entry, "p_adjusted": None if p != p else float(p)} for entry, p in zip(found, adjusted)]


def values(m: Measurement, metric: str) -> np.ndarray:
    """A metric of every document [n]."""
    return np.asarray(m.details["answers"]["metrics"][metric], float)


def is_log_likelihood(metric: str) -> bool:
    """Whether the documents' values of a metric, `NAME,FILTER`, are log-likelihoods, of which more is better."""
    return metric.partition(",")[0] in LOG_LIKELIHOODS


def _entries(cell: Sequence[Measurement], reference: Measurement | None) -> list[dict[str, Any]]:
    usable = [m for m in cell if "answers" in m.details]
    m = (usable or cell)[0]
    about = _about(m)
    if not usable:
        return [about]
    answers, found = m.details["answers"], []
    if not answers["metrics"]:
        return [about | {"documents": len(answers["documents"])}]  # no metric is a number for each document
    for metric, stated in answers["higher_is_better"].items():
        after = np.mean([values(one, metric) for one in usable], axis=0)
        name, comma, how = metric.partition(",")
        known = {"metric": LOG_LIKELIHOODS.get(name, name) + comma + how, "documents": len(after)}
        higher = stated or is_log_likelihood(metric)
        entry = about | known | {"higher_is_better": higher}
        entry |= {"score_q": float(after.mean()), "score_q_se": _error(after)}
        if reference is not None:
            before = values(reference, metric)
            entry |= {"score_fp": float(before.mean()), "score_fp_se": _error(before)}
            if m is not reference:
                entry |= _change(before, after, higher)
        found.append(entry)
    return found


def _about(m: Measurement) -> dict[str, Any]:
    trial, checkpoint, scheme = m.trial, m.trial.checkpoint, m.trial.scheme
    entry = dict.fromkeys(COLUMNS)
    entry |= {name: getattr(checkpoint, name) for name in ("run", "step", "tokens", "params")}
    entry |= {"quantizer": trial.quantizer, "calibration": trial.calibration, "status": m.status, "message": m.message}
    entry |= {"options": json.dumps(dict(trial.options), sort_keys=True), "key": trial.key()}
    if scheme is not None:
        entry |= {name: getattr(scheme, name) for name in ("bits", "group_size", "symmetric", "format")}
    task = {"task": trial.task["name"], "version": trial.task["version"], "fewshot": trial.task["fewshot"]}
    return entry | columns_of(trial) | task | {"loss_key": replace(trial, task={}).key()}


def _change(before: np.ndarray, after: np.ndarray, higher: bool) -> dict[str, Any]:
    difference = after - before
    gain = difference if higher else -difference
    worse, better = int((gain < 0).sum()), int((gain > 0).sum())
    if set(np.unique([before, after])) <= {0.0, 1.0}:
        p = float(stats.binomtest(worse, worse + better).pvalue) if worse + better else 1.0
    elif worse + better:
        t = abs(float(difference.mean())) / error if (error := _error(difference)) > 0 else math.nan
        p = float(2 * stats.t.sf(t, len(difference) - 1))
    else:
        p = 1.0
    change = {"change": float(difference.mean()), "change_se": _error(difference), "worse": worse, "better": better}
    return {**change, "p": p if math.isfinite(p) else None}


def _error(sample: np.ndarray) -> float:
    return float(sample.std(ddof=1) / math.sqrt(len(sample))) if len(sample) > 1 else math.nan


def _is_full(trial: Trial) -> bool:
    return trial.quantizer == WEIGHTS_KEPT and not is_runtime(trial)


def _asked(trial: Trial) -> str:
    """What answers before and after quantization share."""
    task: Mapping[str, Any] = {n: v for n, v in trial.task.items() if n not in ("asked", "folders")}
    return json.dumps([place(trial.checkpoint), task, *(getattr(trial, name) for name in _SAME)], default=str)
