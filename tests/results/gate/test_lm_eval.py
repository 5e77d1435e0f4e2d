"""Contract and oracle: results of lm-eval with samples, paired by document."""

import hashlib
import json
import math

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy import stats

import ptq_eval
from ptq_eval.errors import DataFileError, NothingToFitError
from ptq_eval.results.gate.decision import Outcome
from ptq_eval.results.gate.pairs import Condition
from ptq_eval.results.gate.verdict import Verdict

DATE = "2026-11-29T10-00-00.123456"


def digest(text):
    return hashlib.sha256(str(text).encode()).hexdigest()


def lines(values, metric="acc", prompt="Q", filtered="none", **more):
    """Samples as lm-eval writes them, one per value."""
    return [
        {
            "doc_id": place, "doc": {"question": place}, "target": "a", "arguments": {}, "resps": [],
            "filter": filtered, "filtered_resps": [], "metrics": [metric], "doc_hash": digest(place),
            "prompt_hash": digest((prompt, place)), "target_hash": digest("a"), metric: value, **more,
        }
        for place, value in enumerate(values)
    ]  # fmt: skip


def write(folder, tasks, date=DATE, **summary):
    """A folder of results: `tasks` are samples by task."""
    folder = folder / "model"
    folder.mkdir(parents=True, exist_ok=True)
    about = {"results": {}, "higher_is_better": {}, "versions": dict.fromkeys(tasks, 1.0), "lm_eval_version": "0.4.13"}
    (folder / f"results_{date}.json").write_text(json.dumps({**about, **summary}))
    for task, samples in tasks.items():
        text = "".join(json.dumps(line) + "\n" for line in samples)
        (folder / f"samples_{task}_{date}.jsonl").write_text(text)
    return folder.parent


@pytest.fixture
def answers():
    rng = np.random.default_rng(0)
    old = (rng.random(400) < 0.6).astype(float)
    new = old.copy()
    new[np.flatnonzero(old)[:40]] = 0.0  # forty answers became wrong, five right
    new[np.flatnonzero(old == 0)[:5]] = 1.0
    return old.tolist(), new.tolist()


def test_answers_are_compared_by_mcnemars_test(tmp_path, answers):
    old, new = (write(tmp_path / n, {"arc": lines(v), "easy": lines(answers[0])}) for n, v in zip("ab", answers))
    found = ptq_eval.compare(old, new)
    assert (found.verdict, found.documents) == (Verdict.WORSE, True)
    [one] = found.worse
    assert one.pair.about == {"task": "arc", "filter": "none", "metric": "acc", "nats": False}
    assert one.adjusted_p == pytest.approx(2 * stats.binomtest(40, 45, 0.5, alternative="greater").pvalue)
    assert (one.pair.base, one.pair.new) == (pytest.approx(np.mean(answers[0])), pytest.approx(np.mean(answers[1])))
    assert one.pair.evidence.worsening == pytest.approx(35 / 400)
    assert ptq_eval.compare(new, old).verdict == Verdict.NOT_WORSE


def test_other_metrics_are_compared_by_a_paired_test_in_their_direction(tmp_path):
    rng = np.random.default_rng(1)
    old, new = rng.normal(0.5, 0.2, 200), rng.normal(0.0, 0.01, 200) + 0.05
    for name, sign in (("good", False), ("bad", True)):
        folders = [
            write(tmp_path / name / n, {"t": lines(v.tolist(), "ter")}, higher_is_better={"t": {"ter": sign}})
            for n, v in (("a", old), ("b", old + new))
        ]
        [one] = ptq_eval.compare(*folders).cells
        p = stats.ttest_1samp(new if not sign else -new, 0, alternative="greater").pvalue
        assert one.adjusted_p == pytest.approx(p)
        assert one.outcome == (Outcome.BETTER if sign else Outcome.WORSE)


def test_perplexities_are_compared_in_nats_per_byte(tmp_path):
    old = [[-10.0 * n, n] for n in (5, 10, 20, 7)]
    new = [[-10.5 * n, n] for n in (5, 10, 20, 7)]
    folders = [write(tmp_path / n, {"wiki": lines(v, "byte_perplexity")}) for n, v in (("a", old), ("b", new))]
    [one] = ptq_eval.compare(*folders).cells
    assert one.pair.about["nats"]
    assert (one.pair.base, one.pair.new) == (pytest.approx(10), pytest.approx(10.5))
    assert one.outcome == Outcome.WORSE


@pytest.mark.parametrize(("metric", "broken"), [("byte_perplexity", [math.nan, 8]), ("perplexity", -math.inf)])
def test_a_value_that_is_not_finite_is_worse_than_any(tmp_path, metric, broken):
    whole = [-10.0, 8] if isinstance(broken, list) else -10.0
    sides = [whole] * 4, [whole, broken, whole, whole]
    folders = [write(tmp_path / n, {"wiki": lines(v, metric)}) for n, v in zip("ab", sides)]
    found = ptq_eval.compare(*folders)
    assert found.verdict == Verdict.WORSE
    assert found.worse[0].pair.evidence.worsening == math.inf
    assert found.skipped == ()
    assert ptq_eval.compare(*reversed(folders)).verdict == Verdict.NOT_WORSE


def test_results_without_samples_are_known_as_those_of_lm_eval(tmp_path, answers):
    folders = write(tmp_path / "a", {"arc": lines(answers[0])}), write(tmp_path / "b", {})
    with pytest.raises(NothingToFitError, match=r"have no samples.*--log_samples"):
        ptq_eval.compare(*folders)


def test_fewer_documents_are_compared_on_those_in_common(tmp_path, answers):
    old, new = answers
    folders = write(tmp_path / "a", {"arc": lines(old)}), write(tmp_path / "b", {"arc": lines(new[:150])})
    [one] = ptq_eval.compare(*folders).cells
    assert one.pair.windows == (150, 400, 150)
    assert one.pair.base == pytest.approx(np.mean(old[:150]))


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"prompt_hash": "other"}, Condition.PROMPT),
        ({"doc_hash": "other"}, Condition.DOCUMENTS),
        ({"target_hash": "other"}, Condition.TARGET),
    ],
)
def test_what_was_asked_must_not_differ(tmp_path, answers, change, what):
    old = write(tmp_path / "a", {"arc": lines(answers[0])})
    found = ptq_eval.compare(old, write(tmp_path / "b", {"arc": lines(answers[0], **change)}))
    assert (found.verdict, found.mismatches[0].what) == (Verdict.NOT_COMPARABLE, what)


def test_versions_of_a_task_must_not_differ(tmp_path, answers):
    old = write(tmp_path / "a", {"arc": lines(answers[0])})
    found = ptq_eval.compare(old, write(tmp_path / "b", {"arc": lines(answers[0])}, versions={"arc": 2.0}))
    assert found.mismatches[0].what == Condition.VERSION


def test_missing_tasks_are_missing_and_the_latest_samples_count(tmp_path, answers):
    old = write(tmp_path / "a", {"arc": lines(answers[0]), "easy": lines(answers[0])})
    new = write(tmp_path / "b", {"arc": lines(answers[1])}, date="2026-11-28T10-00-00.5")
    write(tmp_path / "b", {"arc": lines(answers[0])})
    found = ptq_eval.compare(old, new)
    assert found.verdict == Verdict.MISSING
    assert [one.about["task"] for one in found.missing] == ["easy"]
    assert found.cells[0].outcome == Outcome.SAME
    earlier = ptq_eval.compare(old, new / "model" / "results_2026-11-28T10-00-00.5.json")
    assert earlier.verdict == Verdict.WORSE


def test_metrics_without_a_value_per_document_are_skipped_by_name(tmp_path, answers):
    samples = [{**line, "metrics": ["acc", "f1"], "f1": [0, 1]} for line in lines(answers[0])]
    found = ptq_eval.compare(write(tmp_path / "a", {"t": samples}), write(tmp_path / "b", {"t": samples}))
    assert found.skipped == ("f1",)
    assert len(found.cells) == 1


def test_filters_are_cells_of_their_own(tmp_path, answers):
    samples = lines(answers[0], filtered="strict") + lines(answers[1], filtered="flexible")
    found = ptq_eval.compare(write(tmp_path / "a", {"t": samples}), write(tmp_path / "b", {"t": samples}))
    assert {one.pair.about["filter"] for one in found.cells} == {"strict", "flexible"}


def test_samples_of_an_early_version_name_no_metrics_and_have_no_hashes(tmp_path, answers):
    def early(values):
        return [{"doc_id": i, "doc": {"q": i}, "target": "a", "acc": v} for i, v in enumerate(values)]

    folders = [write(tmp_path / n, {"arc": early(v)}) for n, v in zip("ab", answers)]
    assert ptq_eval.compare(*folders).verdict == Verdict.WORSE


def test_the_stated_power_is_that_of_the_discordant_answers(tmp_path, answers):
    folders = [write(tmp_path / n, {"arc": lines(v)}) for n, v in zip("ab", answers)]
    [one] = ptq_eval.compare(*folders).cells
    assert 0.01 < one.smallest < 0.2
    assert one.needed > 400
    assert math.isfinite(one.needed)


def test_what_cannot_be_read_is_refused(tmp_path, answers):
    good = write(tmp_path / "good", {"arc": lines(answers[0])})
    bad = write(tmp_path / "bad", {"arc": lines(answers[0])})
    with (bad / "model" / f"samples_arc_{DATE}.jsonl").open("a") as handle:
        handle.write("{half a li")
    with pytest.raises(DataFileError, match="line 401"):
        ptq_eval.compare(good, bad)
    (tmp_path / "two" / "other").mkdir(parents=True)
    two = write(tmp_path / "two", {"arc": lines(answers[0])})
    (two / "other" / f"samples_arc_{DATE}.jsonl").write_text("")
    with pytest.raises(NothingToFitError, match="several models"):
        ptq_eval.compare(two, good)
    (tmp_path / "plain").mkdir()
    with pytest.raises(NothingToFitError, match="other is not"):
        ptq_eval.compare(good, tmp_path / "plain")


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=60))
def test_whatever_a_line_holds_it_is_read_or_refused_in_one_line(tmp_path, text):
    folder = write(tmp_path / "x", {"arc": lines([1.0, 0.0])})
    (folder / "model" / f"samples_arc_{DATE}.jsonl").write_bytes(b'{"doc_id": 7, "acc": 1}\n' + text)
    said = ""
    try:
        assert ptq_eval.compare(folder, folder).cells
    except DataFileError as error:
        said = str(error)
    assert "\n" not in said


def test_texts_may_hold_any_line_break(tmp_path):
    samples = [{**line, "doc": {"text": "a\u2028b\x0bc"}} for line in lines([1.0, 0.0])]
    folder = write(tmp_path / "x", {"arc": samples})
    path = folder / "model" / f"samples_arc_{DATE}.jsonl"
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in samples))
    assert ptq_eval.compare(folder, folder).verdict == Verdict.NOT_WORSE


@pytest.mark.parametrize("line", ['{"doc_id": [1], "acc": 1}', "[1]", '{"doc_id": 1, "metrics": 3}', "{}"])
def test_a_line_of_another_shape_is_refused(tmp_path, line):
    folder = write(tmp_path / "x", {"arc": lines([1.0, 0.0])})
    (folder / "model" / f"samples_arc_{DATE}.jsonl").write_text(line + "\n")
    with pytest.raises(DataFileError, match="line 1"):
        ptq_eval.compare(folder, folder)
