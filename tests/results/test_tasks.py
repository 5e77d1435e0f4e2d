"""Oracle: paired changes of answers, and their tests, from records made here."""

import math

import numpy as np
import pytest
from scipy import stats

from ptq_eval.records import WEIGHTS_KEPT, CalibrationDraw, Checkpoint, Measurement, Scheme, Trial
from ptq_eval.results.tasks import COLUMNS, answered, entries

CHECKPOINT = Checkpoint("run", 100, 1000, 50, weights_sha="w")
TASK = {"name": "t", "asked": "t", "version": "1.0", "fewshot": 0, "limit": None, "bos": False, "digest": "d"}


def record(metrics, quantizer="rtn", higher=True, version="1", draw=None, task=TASK, failed=""):
    scheme = None if quantizer == WEIGHTS_KEPT else Scheme(4)
    trial = Trial(
        CHECKPOINT, "c", "p", quantizer=quantizer, quantizer_version=version, scheme=scheme,
        task={**task, "folders": []},
        calibration_corpus="" if draw is None else f"draw {draw}",
        calibration_draw=None if draw is None else CalibrationDraw("text", 8, 32, draw),
    )  # fmt: skip
    answers = {
        "metrics": {name: list(map(float, values)) for name, values in metrics.items()},
        "higher_is_better": dict.fromkeys(metrics, higher),
        "documents": [], "targets": [], "responses": [],
    }  # fmt: skip
    if failed:
        return Measurement(trial, status="failed", message=failed)
    return Measurement(trial, details={"answers": answers})


@pytest.fixture
def marks():
    draw = np.random.default_rng(0)
    before = draw.random(200) < 0.7
    after = np.where(draw.random(200) < 0.2, draw.random(200) < 0.3, before)
    return before.astype(float), after.astype(float)


def test_the_change_is_paired_by_document(marks):
    before, after = marks
    full, quantized = entries([record({"acc,none": before}, WEIGHTS_KEPT), record({"acc,none": after})])
    difference = after - before
    assert quantized["change"] == pytest.approx(after.mean() - before.mean())
    assert quantized["change_se"] == pytest.approx(math.sqrt(difference.var(ddof=1) / 200))
    assert quantized["score_fp"] == full["score_fp"] == full["score_q"] == pytest.approx(before.mean())
    assert (quantized["worse"], quantized["better"]) == ((difference < 0).sum(), (difference > 0).sum())
    assert full["change"] is None
    assert full["p"] is None
    assert set(quantized) == set(COLUMNS)


def test_marks_are_tested_by_mcnemar(marks):
    """Against the sum of binomial probabilities that are no larger than the one observed."""
    before, after = marks
    *_, quantized = entries([record({"acc,none": before}, WEIGHTS_KEPT), record({"acc,none": after})])
    n, k = quantized["worse"] + quantized["better"], quantized["worse"]
    chances = [math.comb(n, i) / 2**n for i in range(n + 1)]
    assert quantized["p"] == pytest.approx(sum(c for c in chances if c <= chances[k] * (1 + 1e-9)))


def test_other_values_are_tested_by_a_paired_t_test(marks):
    before, after = (values + np.linspace(0, 1, 200) for values in marks)
    *_, quantized = entries([record({"f1,none": before}, WEIGHTS_KEPT), record({"f1,none": after})])
    assert quantized["p"] == pytest.approx(stats.ttest_rel(after, before).pvalue)


def test_a_metric_whose_small_values_are_good_is_worse_where_it_rises():
    *_, one = entries(
        [record({"err,none": [0, 0, 1]}, WEIGHTS_KEPT, False), record({"err,none": [1, 1, 0]}, higher=False)]
    )
    assert (one["worse"], one["better"]) == (2, 1)


def test_of_a_perplexity_log_likelihoods_are_compared_of_which_more_is_better():
    """The harness says of a perplexity that less is better, and gives the documents' log-likelihoods for it."""
    before, after = np.array([-3.0, -4.0, -5.0, -6.0]), np.array([-4.0, -4.5, -5.5, -5.0])
    full, one = entries(
        [record({"perplexity,none": before}, WEIGHTS_KEPT, False), record({"perplexity,none": after}, higher=False)]
    )
    assert (one["metric"], one["higher_is_better"]) == ("log_likelihood,none", True)
    assert (one["worse"], one["better"]) == (3, 1)
    assert one["change"] == pytest.approx((after - before).mean())
    assert full["metric"] == "log_likelihood,none"


def test_answers_without_a_number_for_each_document_are_an_entry_without_a_metric():
    full, one = entries([record({}, WEIGHTS_KEPT), record({})])
    for entry in (full, one):
        assert entry["metric"] is None
        assert entry["status"] == "ok"
        assert entry["documents"] == 0  # of this fixture; of a failed answer they are unknown


def test_p_is_adjusted_over_all_entries(marks):
    before, after = marks
    both = {"acc,none": before, "acc_norm,none": before}, {"acc,none": after, "acc_norm,none": 1 - before}
    *_, first, second = entries([record(both[0], WEIGHTS_KEPT), record(both[1])])
    smaller, larger = sorted((first, second), key=lambda entry: entry["p"])
    assert smaller["p_adjusted"] == pytest.approx(min(1, 2 * smaller["p"]))
    assert larger["p_adjusted"] == pytest.approx(max(larger["p"], smaller["p_adjusted"]))


def test_nothing_changed_is_no_change():
    *_, one = entries([record({"acc,none": [0, 1]}, WEIGHTS_KEPT), record({"acc,none": [0, 1]})])
    assert (one["p"], one["change"], one["worse"], one["better"]) == (1.0, 0.0, 0, 0)


def test_draws_of_the_calibration_are_averaged():
    draws = [record({"acc,none": [1, 0]}, draw=0), record({"acc,none": [0, 0]}, draw=1)]
    *_, one = entries([record({"acc,none": [1, 1]}, WEIGHTS_KEPT), *draws])
    assert (one["score_q"], one["change"]) == (0.25, -0.75)


def test_other_questions_are_never_compared():
    other = record({"acc,none": [1, 1]}, WEIGHTS_KEPT, task={**TASK, "digest": "other"})
    *_, one = entries([other, record({"acc,none": [0, 1]})])
    assert one["change"] is None
    assert one["score_q"] == 0.5


def test_a_failed_answer_is_an_entry_with_its_reason():
    *_, one = entries([record({"acc,none": [1, 1]}, WEIGHTS_KEPT), record({}, failed="no memory")])
    assert (one["status"], one["message"], one["change"]) == ("failed", "no memory", None)


def test_the_newest_version_of_a_quantizer_answers():
    old, new = record({"acc,none": [1]}), record({"acc,none": [0]}, version="2")
    loss = Measurement(Trial(CHECKPOINT, "c", "p"), nll=(1.0,), n_tokens=(1,))
    assert answered([old, new, loss], [CHECKPOINT]) == [new]
    assert answered([old], []) == []
