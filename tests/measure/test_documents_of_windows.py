"""Oracle: from a text in any form to the errors of its deltas, the document of each window is that of naive code."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from ptq_eval.corpora import read
from ptq_eval.early_stop import StopRule
from ptq_eval.models.loading import load_tokenizer
from ptq_eval.records import Checkpoint, Measurement, Sample, Scheme, Trial
from ptq_eval.results.store import Store
from ptq_eval.results.table import tabulate
from ptq_eval.sampling import design_of
from tests.support.steps import measured, planned

UNEQUAL = ["short. ", "a long one " * 400, *(f"article {i} " * 20 for i in range(6)), "w " * 900, "end"]
SEQ_LEN = 16


def _jsonl(path, documents):
    path.write_text("".join(json.dumps({"text": document}) + "\n" for document in documents))


def _parquet(path, documents):
    pytest.importorskip("pyarrow", reason="the extra that reads Parquet")
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.table({"text": documents}), path)


def _marked(path, documents):
    path.write_text("<|endoftext|>".join(documents))


def _plain(path, documents):
    path.write_text(" ".join(documents))


FORMS = {"jsonl": _jsonl, "parquet": _parquet, "txt": _marked}
TEXTS = {
    "unequal": UNEQUAL,
    "one": ["the only document " * 300],
    "a window each": [f"number {i} of many, " * 2 for i in range(60)],
}


def expected(spec, folder):
    """The index of the document of each window's middle token, found letter by letter."""
    text = read(spec)
    assert text.text is not None
    starts = [0] if text.documents is None else text.documents.tolist()
    tokenizer = load_tokenizer(folder, False, "any")
    ends = [end for _, end in tokenizer(text.text, return_offsets_mapping=True)["offset_mapping"]]
    middles = [ends[first + SEQ_LEN // 2] - 1 for first in range(0, len(ends) - SEQ_LEN + 1, SEQ_LEN)]
    return [max(i for i, start in enumerate(starts) if start <= middle) for middle in middles]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", TEXTS)
def test_windows_know_their_documents_whatever_the_form(form, name, saved, small, tmp_path):
    path, folder = tmp_path / f"text.{form}", saved("llama")
    FORMS[form](path, TEXTS[name])
    options = {**small, "quantizers": ("rtn",), "eval_text": str(path), "seq_len": SEQ_LEN}
    ways = ({"eval_windows": None, "eval_sample": "first"}, {"eval_windows": 20, "eval_sample": "spread"})
    every, some = (planned(folder.parent, **{**options, **way}).workloads[0].evaluation for way in ways)
    documents = expected(str(path), folder)
    marked = read(str(path)).documents is not None
    assert every.sample.documents == (tuple(documents) if marked else ())
    assert marked or (name, form) == ("one", "txt")
    places = [np.flatnonzero((every.ids == window).all(axis=1)).tolist() for window in some.ids]
    assert not marked or all(d in [documents[p] for p in at] for d, at in zip(some.sample.documents, places))
    assert len(some.sample.documents) == (20 if marked else 0)
    assert every.digest != some.digest
    assert "spread-seed0" in some.protocol
    assert "nonoverlap" in every.protocol


def test_a_text_without_marks_has_errors_of_passages(saved, small, tmp_path):
    _plain(tmp_path / "text.txt", UNEQUAL)
    options = {**small, "quantizers": ("rtn",), "eval_text": str(tmp_path / "text.txt"), "eval_sample": "first"}
    sample = planned(saved("llama").parent, **options).workloads[0].evaluation.sample
    assert sample.documents == ()
    assert design_of(sample, 12).covers == "passages"


def test_every_record_keeps_the_documents_and_its_row_has_their_error(trajectory, small, tmp_path):
    _jsonl(tmp_path / "text.jsonl", [f"document {i} says {'so ' * (7 * i)}" for i in range(40)])
    options = {
        **small, "quantizers": ("rtn",), "bits": (3,), "eval_text": str(tmp_path / "text.jsonl"),
        "eval_windows": None, "eval_sample": "first",
    }  # fmt: skip
    work, found = measured(trajectory, **options)
    with Store(tmp_path / "out").writer() as writer:
        for measurement in found:
            writer.append(measurement)
    stored = Store(tmp_path / "out").measurements()
    documents = work.evaluation.sample.documents
    assert len(documents) == len(work.evaluation.ids) > 40
    assert all(m.trial.sample is not None and m.trial.sample.documents == documents for m in stored)
    table, _ = tabulate(stored, [work.checkpoint])
    (row,) = table[table["quantizer"] == "rtn"].to_dict("records")
    full, quantized = sorted(stored, key=lambda m: m.trial.scheme is not None)
    assert row["covers"] == "texts"
    assert row["documents"] == len(set(documents))
    assert row["delta_se"] == pytest.approx(clustered(quantized, full, documents), rel=1e-9)


def clustered(quantized, full, documents):
    """The standard error of delta between groups of whole documents of at least n^(1/3) windows, in loops."""
    n, least = len(documents), math.ceil(len(documents) ** (1 / 3))
    groups: list[list[int]] = []
    for i, document in enumerate(documents):
        if not groups or (document != documents[i - 1] and len(groups[-1]) >= least):
            groups.append([])
        groups[-1].append(i)
    if len(groups[-1]) < least:
        groups[-2] += groups.pop()
    gaps = [(a - b) / t for a, b, t in zip(quantized.nll, full.nll, full.n_tokens)]
    mean = math.fsum(gaps) / n
    totals = [math.fsum(gaps[i] - mean for i in group) / n for group in groups]
    return math.sqrt(len(groups) / (len(groups) - 1) * math.fsum(total**2 for total in totals))


def test_every_user_of_an_error_counts_a_document_once():
    """Windows of one document that are all alike: twice as many of them tell nothing more.

    Of early stopping, of the row, of the comparison with rounding, and of the bootstrap.
    """
    errors = [_errors(copies) for copies in (6, 12)]
    assert errors[1] == pytest.approx(errors[0], rel=0.02)
    assert not any(settled for *_, settled in errors)


def _errors(copies):
    rng, n = np.random.default_rng(0), 30
    documents = tuple(np.repeat(np.arange(n), copies).tolist())
    sample, size = Sample("first", None, documents), n * copies
    before = 300 + np.repeat(rng.normal(0, 30, n), copies)
    after = {name: before + 10 + np.repeat(rng.normal(0, 4, n), copies) for name in ("rtn", "awq")}
    trial = Trial(Checkpoint("run", 1, 1000, 10, weights_sha="w"), "digest", "protocol", sample=sample)
    records = [Measurement(trial, tuple(before), (100,) * size, (300,) * size)]
    for name, nll in after.items():
        own = replace(trial, quantizer=name, scheme=Scheme(3))
        records.append(Measurement(own, tuple(nll), (100,) * size, (300,) * size, (1.0,) * size, (50,) * size))
    table, windows = tabulate(records, [trial.checkpoint])
    (row,) = table[table["quantizer"] == "awq"].to_dict("records")
    losses = windows[row["key"]]
    weights = losses.design.deviations(4000, 0)
    drawn = float(np.std(weights @ (losses.after - losses.before) / size))
    rule = StopRule(row["delta_se"] / row["delta"] * 0.9, floor=0.0)
    order = rule.order(size)
    settled = rule.settled(before[order].tolist(), after["awq"][order].tolist(), 100, design_of(sample, size))
    return row["delta_se"], row["over_rounding_se"], drawn, settled
