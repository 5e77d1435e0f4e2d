"""Contract and oracle: tasks of lm-evaluation-harness, answered by every variant of a checkpoint."""

import dataclasses
import sys

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from ptq_eval.config.run import RunConfig
from ptq_eval.errors import MissingTokenizerError, OptionError, TaskError
from ptq_eval.measure import answers
from ptq_eval.measure import tasks as harness
from ptq_eval.measure.cases import cells_of
from ptq_eval.measure.sweep import cost, sweep
from ptq_eval.models.loading import load_tokenizer
from ptq_eval.records import FULL_PRECISION, WEIGHTS_KEPT, Measurement, Trial
from tests.reference.rtn import rtn
from tests.support import tasks
from tests.support.steps import measured, planned

COUNT = 12


@pytest.fixture(scope="module")
def asked(source):
    return tasks.documents(source, COUNT)


@pytest.fixture(scope="module")
def folder(asked, tmp_path_factory, monkeypatch_module):
    monkeypatch_module.setenv("HF_DATASETS_CACHE", str(tmp_path_factory.mktemp("datasets")))
    return tasks.write(tmp_path_factory.mktemp("tasks"), asked)


@pytest.fixture(scope="module")
def monkeypatch_module():
    with pytest.MonkeyPatch.context() as patch:
        yield patch


@pytest.fixture(scope="module")
def options(small, folder):
    return {**small, "quantizers": ("rtn",), "bits": (3,), "tasks": (tasks.NAME,), "task_folder": (str(folder),)}


@pytest.fixture(scope="module")
def found(saved, options):
    """(workload, measurements) of RTN at 3 bits with a task."""
    return measured(saved("llama").parent, **options)


def log_likelihoods(model, tokenizer, documents):
    """[documents, 2]: of each choice after its context, one forward pass at a time.

    The harness counts white space at the end of the context to the choice, and cuts the beginning of what is too long.
    """
    rows = []
    for document in documents:
        row, context = [], f"{document['context']}\n"
        for choice in document["choices"]:
            before = tokenizer(context.rstrip())["input_ids"]
            whole = tokenizer(context + choice)["input_ids"]
            new = len(whole) - len(before)
            whole = whole[-model.config.max_position_embeddings - 1 :]
            with torch.inference_mode():
                logits = model(torch.tensor([whole[:-1]])).logits[0].double().log_softmax(-1)
            row.append(sum(float(logits[i - 1, whole[i]]) for i in range(len(whole) - new, len(whole))))
        rows.append(row)
    return np.array(rows)


def test_a_task_is_answered_by_full_precision_and_by_every_variant(found):
    work, records = found
    answers = [m for m in records if m.trial.task]
    assert [m.trial.quantizer for m in records if not m.trial.task] == [FULL_PRECISION, "rtn"]
    assert sorted(m.trial.quantizer for m in answers) == sorted([WEIGHTS_KEPT, "rtn"])
    assert all(m.status == "ok" and not m.nll for m in answers)
    assert all(len(m.details["answers"]["metrics"]["acc,none"]) == COUNT for m in answers)
    assert all("lm_eval" in m.provenance for m in answers)
    assert len({m.trial.key() for m in records}) == len(records) == len(work.trials)


@pytest.mark.parametrize("quantized", [False, True])
def test_answers_are_those_of_the_model_with_these_weights(found, saved, asked, quantized):
    """Against one forward pass per choice, with weights that are rounded here."""
    folder = saved("llama")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    if quantized:
        for name, module in model.named_modules():
            if isinstance(module, torch.nn.Linear) and name != "lm_head":
                module.weight.data = torch.from_numpy(rtn(module.weight.detach().numpy(), 3, 16)[1])
    wanted = log_likelihoods(model, AutoTokenizer.from_pretrained(folder), asked)
    (record,) = [m for m in found[1] if m.trial.task and (m.trial.quantizer == "rtn") is quantized]
    answers = record.details["answers"]
    mine = np.array([[response[0][0] for response in row] for row in answers["responses"]])
    assert mine == pytest.approx(wanted, rel=1e-5, abs=1e-4)
    gold = np.array([document["gold"] for document in asked])
    lengths = np.array([[len(choice) for choice in document["choices"]] for document in asked])
    assert answers["metrics"]["acc,none"] == (wanted.argmax(1) == gold).astype(float).tolist()
    assert answers["metrics"]["acc_norm,none"] == ((wanted / lengths).argmax(1) == gold).astype(float).tolist()


def test_weights_are_quantized_once_and_losses_are_as_without_tasks(found, saved, small):
    work, records = found
    assert len(cells_of([t for t in work.trials if t.quantizer == "rtn"])) == 1
    _, alone = measured(saved("llama").parent, **{**small, "quantizers": ("rtn",), "bits": (3,)})
    known = {m.trial.key(): m for m in records}
    assert all(known[m.trial.key()].nll == m.nll and known[m.trial.key()].details == m.details for m in alone)


def test_a_missing_answer_is_measured_alone(found, saved, options):
    work, records = found
    for missing in [t for t in work.trials if t.task]:
        (again,) = list(sweep(work, [missing], tick=lambda amount: None))
        (before,) = [m for m in records if m.trial == missing]
        assert again.details["answers"] == before.details["answers"]


def test_progress_ends_at_its_cost(found):
    work, _ = found
    ticks = []
    list(sweep(work, work.trials, tick=ticks.append))
    assert sum(ticks) == pytest.approx(cost(work, work.trials))


def test_records_survive_json_and_keys_know_the_questions_only(found, asked, options, saved, tmp_path):
    work, records = found
    assert all(Measurement.from_dict(m.to_dict()).trial == m.trial for m in records)
    (trial,) = [t for t in work.trials if t.task and t.quantizer == "rtn"]
    moved = {**trial.task, "folders": ["elsewhere"], "asked": "a_group"}
    assert dataclasses.replace(trial, task=moved).key() == trial.key()
    assert "task" not in dataclasses.replace(trial, task={}).identity()
    same = tasks.write(tmp_path / "same", asked)
    other = tasks.write(tmp_path / "other", [*asked[:-1], {**asked[-1], "context": "Another"}])
    keys = {
        name: {t.key() for t in planned(saved("llama").parent, **{**options, **changed}).workloads[0].trials if t.task}
        for name, changed in {
            "same": {"task_folder": (str(same),)},
            "other": {"task_folder": (str(other),)},
            "fewer": {"task_limit": 3},
            "examples": {"fewshot": 1},
        }.items()
    }
    own = {t.key() for t in work.trials if t.task}
    assert keys["same"] == own
    assert all(keys[name].isdisjoint(own) for name in ("other", "fewer", "examples"))


def test_activations_are_rounded_while_a_task_is_answered(saved, options):
    _, records = measured(saved("llama").parent, **{**options, "bits": (), "activation_bits": (2,)})
    by_name = {(m.trial.quantizer, bool(m.trial.activations)): m.details["answers"] for m in records if m.trial.task}
    assert by_name[(WEIGHTS_KEPT, True)]["responses"] != by_name[(WEIGHTS_KEPT, False)]["responses"]


def test_documents_that_changed_since_the_plan_fail_by_name(saved, options, asked, tmp_path):
    folder = tasks.write(tmp_path / "changing", asked)
    work = planned(saved("llama").parent, **{**options, "task_folder": (str(folder),)}).workloads[0]
    tasks.write(folder, [*asked[:-1], {**asked[-1], "gold": 1 - asked[-1]["gold"]}])
    harness._asked.cache_clear()
    harness._tasks.cache_clear()
    harness._index.cache_clear()
    records = list(sweep(work, [t for t in work.trials if t.task], tick=lambda amount: None))
    assert all("have changed" in m.message and m.status == "failed" for m in records)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        pytest.param({"tasks": ("next_lime",)}, "did you mean 'next_line'", marks=pytest.mark.slow),  # reads every task
        ({"task_folder": ("/nowhere/at/all",)}, "not a folder"),
        pytest.param({"tasks": ("arc_easy",)}, "cannot be loaded", marks=pytest.mark.slow),
    ],
)
def test_what_cannot_be_asked_is_refused_before_anything_is_loaded(options, changed, words):
    with pytest.raises(TaskError, match=words):
        harness.specs(RunConfig(**{**options, **changed}))


def test_a_file_that_is_no_task_is_refused(options, tmp_path):
    (tmp_path / "odd.yaml").write_text("task: odd\ndataset_path: /nowhere\n", encoding="utf-8")
    with pytest.raises(TaskError, match="odd"):
        harness.specs(RunConfig(**{**options, "tasks": ("odd",), "task_folder": (str(tmp_path),)}))


def test_a_harness_that_is_not_installed_is_named(options, monkeypatch):
    harness._index.cache_clear()
    monkeypatch.setitem(sys.modules, "lm_eval.tasks", None)
    with pytest.raises(TaskError, match=r"ptq-eval\[tasks\]"):
        harness.specs(RunConfig(**options))
    harness._index.cache_clear()


def test_options_of_tasks_need_a_task(small):
    with pytest.raises(OptionError, match="--task-limit"):
        RunConfig(**small, task_limit=3)


def test_a_trial_without_a_task_has_the_key_it_always_had(found):
    work, _ = found
    plain = [t for t in work.trials if not t.task]
    assert all("task" not in t.identity() for t in plain)
    assert all(Trial.from_dict({n: v for n, v in t.to_dict().items() if n != "task"}).key() == t.key() for t in plain)


def test_a_question_that_does_not_fit_the_model_fails_with_its_reason(saved, options, asked, tmp_path):
    long = [{**asked[0], "choices": [asked[0]["choices"][0] * 40, "short"]}]
    work = planned(
        saved("llama").parent, **{**options, "task_folder": (str(tasks.write(tmp_path / "long", long)),)}
    ).workloads[0]
    records = list(sweep(work, work.trials, tick=lambda amount: None))
    assert {m.status for m in records if not m.trial.task} == {"ok"}
    assert all(m.status == "failed" and "max_length" in m.message for m in records if m.trial.task)


def test_examples_of_an_earlier_run_do_not_stay(options):
    """Tasks are loaded once in a process, which may run several times."""
    asked = [harness.specs(RunConfig(**{**options, **more}))[0] for more in ({}, {"fewshot": 1}, {})]
    assert [spec["fewshot"] for spec in asked] == [0, 1, 0]
    assert asked[0] == asked[2]
    assert asked[0]["digest"] != asked[1]["digest"]


@pytest.fixture
def continuing(options, asked, tmp_path, monkeypatch):
    """Options of a task that asks for the next line as text."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    folder = tasks.write(tmp_path / "continued", asked[:3], "continued", continued=True)
    return {**options, "bits": (), "tasks": ("continued",), "task_folder": (str(folder),)}


def test_a_text_is_continued_by_the_model(saved, continuing):
    _, records = measured(saved("llama").parent, **continuing, activation_bits=(2,))
    answers = {bool(m.trial.activations): m.details["answers"] for m in records if m.trial.task}
    assert answers[True]["responses"] != answers[False]["responses"]


@pytest.mark.parametrize(
    ("rounded", "words"),
    [
        ({"kv_bits": (4,)}, "a quantized cache"),
        ({"activation_bits": (4,), "activation_per": "tensor"}, "activations that share a scale"),
    ],
)
def test_a_text_is_not_continued_by_what_is_for_whole_windows(saved, continuing, rounded, words):
    _, records = measured(saved("llama").parent, **continuing, **rounded)
    failed = [m for m in records if m.trial.task and m.status == "failed"]
    assert len(failed) == 1
    assert f"continued asks for text, and {words}" in failed[0].message
    assert {m.status for m in records if not m.trial.task} == {"ok"}


def test_requests_are_not_filled_up_where_tokens_share_a_scale(saved, options, asked, tmp_path):
    """Keys per channel: the answer to a question is the same whatever is asked besides."""
    rounded = {**options, "bits": (), "kv_bits": (2,)}
    answers = []
    for name, documents in (("few", asked[:1]), ("many", asked)):
        folder = tasks.write(tmp_path / name, documents)
        _, records = measured(saved("llama").parent, **{**rounded, "task_folder": (str(folder),)})
        answers += [m.details["answers"]["responses"][0] for m in records if m.trial.task and m.trial.cache]
    alone, among = (np.array([one[0][0] for one in each]) for each in answers)
    assert alone == pytest.approx(among, rel=1e-6)


@pytest.mark.parametrize("trusted", [False, True])
def test_a_tokenizer_with_code_of_its_own_is_loaded_where_it_is_trusted(found, monkeypatch, trusted):
    """One that cannot be loaded fails the tasks alone: windows of token ids need none."""

    def load(folder, trust, name):
        if not trust:
            raise MissingTokenizerError(f"{name}: its tokenizer cannot be loaded", got="own code")
        return load_tokenizer(folder, trust, name)

    monkeypatch.setattr(answers, "load_tokenizer", load)
    records = list(sweep(found[0], found[0].trials, tick=lambda amount: None, trust_remote_code=trusted))
    assert {m.status for m in records if not m.trial.task} == {"ok"}
    answered = [m for m in records if m.trial.task]
    assert {m.status for m in answered} == {"ok" if trusted else "failed"}
    assert trusted or all("its tokenizer cannot be loaded" in m.message for m in answered)
