"""Contract: the section of tasks, and answers as lm-eval writes them, where metrics are no plain marks."""

import json
import math
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from ptq_eval.records import WEIGHTS_KEPT
from ptq_eval.report.dataset import lm_eval
from ptq_eval.report.run.tasks import section
from ptq_eval.results.tasks import entries
from tests.results.test_tasks import record

BEFORE, AFTER = np.linspace(-3, -2, 40), np.linspace(-5, -3, 40)


def page(*records):
    study = SimpleNamespace(
        fit={"tasks": entries(records)}, every=pd.DataFrame(), label_of=lambda entry: entry["quantizer"]
    )
    return section(study)


def test_a_loss_of_likelihood_is_called_worse():
    text = page(
        record({"perplexity,none": BEFORE}, WEIGHTS_KEPT, False), record({"perplexity,none": AFTER}, higher=False)
    )
    assert "**t, log_likelihood,none**: of 1 variant, 1 significantly worse, 0 significantly better" in text


def test_a_task_without_a_number_for_each_document_is_named_once():
    text = page(record({}, WEIGHTS_KEPT), record({}))
    assert text.count("**t**: no metric of this task is a number for each document, so nothing is compared.") == 1


def test_lm_evals_results_have_the_perplexity(tmp_path):
    lm_eval.write(tmp_path, [record({"perplexity,none": AFTER, "acc,none": AFTER > -4}, higher=False)], {})
    (path,) = tmp_path.rglob("results_*.json")
    content = json.loads(path.read_text())
    own = content["results"]["t"]
    assert own["perplexity,none"] == pytest.approx(math.exp(-AFTER.mean()))
    error = AFTER.std(ddof=1) / math.sqrt(len(AFTER))
    assert own["perplexity_stderr,none"] == pytest.approx(own["perplexity,none"] * error)
    assert content["higher_is_better"]["t"]["perplexity"] is False
    assert own["acc,none"] == pytest.approx(np.mean(AFTER > -4))
    lm_eval.write(tmp_path / "far", [record({"perplexity,none": [-2000.0, -1000.0]})], {})
