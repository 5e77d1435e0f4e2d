"""Results of lm-eval (the Language Model Evaluation Harness) with samples, paired by document.

With --log_samples it writes results_DATE.json, and for each task samples_TASK_DATE.jsonl: a line per document and
filter, with `doc_id`, hashes of document, prompt and target, and a value for each of its `metrics`.  A cell is a task,
a filter and a metric.  Values of metrics like acc and exact_match are compared as they are; of perplexities the log
likelihood is, per word, byte or document, in nats.  Metrics that are no mean over documents (f1, mcc, a corpus BLEU)
have no value per document that could be compared, and are skipped by name.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ptq_eval.errors import DataFileError, NothingToFitError
from ptq_eval.results.gate.decision import Evidence
from ptq_eval.results.gate.discordance import Discordance
from ptq_eval.results.gate.evidence import beyond
from ptq_eval.results.gate.pairs import Absence, Condition, Mismatch, Missing, Pair, Paired
from ptq_eval.sampling import mean_and_error

_SAMPLES = re.compile(r"samples_(.+)_(\d{4}-\d\d-\d\dT[\d.-]+)\.jsonl")
_RESULTS = re.compile(r"results_\d{4}-\d\d-\d\dT[\d.-]+\.json")
_DATE = re.compile(r"_(\d{4}-\d\d-\d\dT[\d.-]+)\.json")
_RATIOS = ("word_perplexity", "byte_perplexity", "bits_per_byte", "token_perplexity")
_LOGS = ("perplexity",)
_NO_VALUE = ("bypass",)
_HASHES = {"doc_hash": Condition.DOCUMENTS, "prompt_hash": Condition.PROMPT, "target_hash": Condition.TARGET}
Key = tuple[str, str, str]
"""Task, filter, metric."""
Values = dict[Key, dict[Any, list[tuple[float, float]]]]
"""(value, weight) of every line, by cell and document."""


@dataclass(frozen=True, eq=False)
class Documents:
    """The values of one cell by document: (value, weight); a higher value is worse."""

    values: Mapping[Any, tuple[float, float]]
    higher_is_better: bool
    nats: bool


@dataclass(eq=False)
class Tasks:
    """What a folder holds: cells, hashes by task and document, the versions of the tasks, metrics without a value per
    document."""

    name: str
    cells: dict[Key, Documents] = field(default_factory=dict)
    hashes: dict[tuple[str, str], dict[Any, str]] = field(default_factory=dict)
    versions: Mapping[str, Any] = field(default_factory=dict)
    skipped: set[str] = field(default_factory=set)
    version: str = ""


def is_lm_eval(path: Path) -> bool:
    """Whether the path has results of lm-eval, with samples or without: a folder, or the file of its results."""
    folder = path.parent if path.is_file() and path.suffix == ".json" else path
    if not folder.is_dir() or (folder / "run.json").exists():
        return False
    return any(_sample_files(folder)) or any(_RESULTS.fullmatch(one.name) for one in folder.rglob("results_*.json"))


def _sample_files(folder: Path) -> list[tuple[str, str, Path]]:
    """(task, date, path)."""
    found = [(m, path) for path in folder.rglob("samples_*.jsonl") if (m := _SAMPLES.fullmatch(path.name))]
    return [(m[1], m[2], path) for m, path in found]


def read(path: Path, name: str) -> Tasks:
    """The latest samples of each task.

    Raises NothingToFitError for several models in one folder, DataFileError for a file that is damaged.
    """
    date = m[1] if path.is_file() and (m := _DATE.search(path.name)) else ""
    files = [one for one in _sample_files(path.parent if path.is_file() else path) if date in ("", one[1])]
    if not files:
        raise NothingToFitError(
            "these results of lm-eval have no samples", got=name, remedy="lm_eval --log_samples --output_path FOLDER"
        )
    folders = sorted({file.parent for *_, file in files})
    if len(folders) > 1:
        raise NothingToFitError(
            "this folder holds results of several models",
            got=name,
            allowed=", ".join(folder.name for folder in folders),
            remedy="name the folder of one",
        )
    latest = {task: file for task, _, file in sorted(files)}
    summary = _summary(folders[0], max(date for _, date, _ in files))
    version = f"lm-eval {summary['lm_eval_version']}" if summary.get("lm_eval_version") else ""
    found = Tasks(name, versions=summary.get("versions") or {}, version=version)
    for task, file in latest.items():
        _add(found, task, file, (summary.get("higher_is_better") or {}).get(task) or {})
    return found


def _summary(folder: Path, date: str) -> dict[str, Any]:
    """The content of the results file of that date, empty where it is not there."""
    for path in folder.glob(f"*_{date}.json"):
        try:
            return dict(json.loads(path.read_text("utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise DataFileError("a results file of lm-eval cannot be read", got=f"{path}: {error}") from error
    return {}


def _add(found: Tasks, task: str, path: Path, directions: Mapping[str, Any]) -> None:
    values: Values = {}
    for number, text in enumerate(path.read_text("utf-8", "replace").split("\n"), 1):  # strings may hold other breaks
        try:
            if text.strip():
                _read_line(found, values, task, json.loads(text))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            what = f"{path.name} line {number}: {type(error).__name__}: {error}"
            raise DataFileError("a samples file of lm-eval is damaged", got=what, remedy="run lm_eval again") from error
    for key, documents in values.items():
        nats = key[2] in (*_RATIOS, *_LOGS)
        higher = not nats and bool(directions.get(key[2], True))
        sign = -1.0 if higher or nats else 1.0
        means = {d: (sign * _mean(v for v, _ in own), _mean(w for _, w in own)) for d, own in documents.items()}
        found.cells[key] = Documents(means, higher, nats)


def _read_line(found: Tasks, values: Values, task: str, line: Mapping[str, Any]) -> None:
    document, filtered = line["doc_id"], str(line.get("filter", "none"))
    for name in _HASHES:
        digest = str(line.get(name) or (_digest(line.get("doc")) if name == "doc_hash" else ""))
        found.hashes.setdefault((task, name), {})[document] = digest
    for metric in line.get("metrics") or _numbers_of(line):
        value = _value(metric, line.get(metric))
        if value is None:
            found.skipped.add(metric)
        else:
            values.setdefault((task, filtered, metric), {}).setdefault(document, []).append(value)


def _numbers_of(line: Mapping[str, Any]) -> list[str]:
    """The metrics of a line of an early version, which does not name them."""
    return [n for n, value in line.items() if n != "doc_id" and isinstance(value, (int, float, bool))]


def _value(metric: str, value: Any) -> tuple[float, float] | None:
    """(value, weight) of one document; None where it has none."""
    if metric in _RATIOS and isinstance(value, (list, tuple)) and len(value) == 2:
        total, weight = float(value[0]), float(value[1])
        return (total / weight, weight) if weight > 0 else None
    if metric in _NO_VALUE or not isinstance(value, (int, float)):
        return None
    return float(value), 1.0


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def _mean(values: Iterable[float]) -> float:
    return float(np.mean(list(values)))


def pair(base: Tasks, new: Tasks) -> Paired:
    """The cells of two results of lm-eval."""
    found = Paired()
    for key, old in base.cells.items():
        named = about(key, old)
        other = new.cells.get(key)
        if other is None:
            found.missing.append(Missing(named, Absence.NOT_THERE))
        elif different := next(_differences(key, base, new), None):
            found.mismatches.append(Mismatch(named, *different))
        else:
            found.pairs.append(_pair(named, old, other))
    found.added += [about(key, own) for key, own in new.cells.items() if key not in base.cells]
    return found


def about(key: Key, documents: Documents) -> dict[str, Any]:
    """What names a cell."""
    return dict(zip(("task", "filter", "metric"), key)) | {"nats": documents.nats}


def _differences(key: Key, base: Tasks, new: Tasks) -> Iterator[tuple[Condition, str, str]]:
    task = key[0]
    if (a := base.versions.get(task)) != (b := new.versions.get(task)) and None not in (a, b):
        yield Condition.VERSION, str(a), str(b)
    common = base.cells[key].values.keys() & new.cells[key].values.keys()
    if not common:
        a, b = (f"{len(side.cells[key].values)} documents" for side in (base, new))
        yield Condition.COMMON_WINDOWS, a, b
    for name, condition in _HASHES.items():
        mine, others = base.hashes[task, name], new.hashes[task, name]
        if apart := [d for d in common if mine[d] and others[d] and mine[d] != others[d]]:
            first = min(apart, key=str)
            a, b = (f"digest {one[first][:12]}" for one in (mine, others))
            yield condition, f"document {first} has {a}", b


def _pair(named: Mapping[str, Any], old: Documents, other: Documents) -> Pair:
    common = sorted(old.values.keys() & other.values.keys(), key=str)
    base, new = (np.array([side.values[d][0] for d in common]) for side in (old, other))
    weights = np.array([old.values[d][1] for d in common])
    with np.errstate(invalid="ignore"):
        difference, n = new - base, len(common)
    infinite = beyond(base, new)
    worsening, error = mean_and_error(difference * weights, weights) if infinite is None else (infinite, 0.0)
    discordance = None
    if set(np.unique([base, new])) <= {-1.0, 0.0, 1.0} and not named["nats"]:
        discordance = Discordance(n, int((difference > 0).sum()), int((difference < 0).sum()))
    sign = -1.0 if old.higher_is_better else 1.0
    means = [sign * float((side * weights).sum() / weights.sum()) for side in (base, new)]
    evidence = Evidence(worsening, error, float(n - 1), n, discordance=discordance)
    return Pair(
        base=means[0],
        new=means[1],
        evidence=evidence,
        changed=evidence,
        windows=(n, len(old.values), len(other.values)),
        luck_known=False,
        about=named,
        higher_is_better=old.higher_is_better,
    )
