"""Contract: what is wrong between the checkpoints of a run, and the rows that show it."""

import itertools
import json
import shutil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ptq_eval.checkpoints import Overrides, discover, inspection_rows, verify_all, warnings
from ptq_eval.checkpoints.between import _longest_rise
from tests.checkpoints.support import codes, llama_config, write_tokenizer


def test_identical_weights_are_found_and_progress_is_told(trainer_run):
    shutil.copy(trainer_run / "checkpoint-200" / "model.safetensors", trainer_run / "checkpoint-1000")
    reported = []
    found = verify_all(discover([trainer_run]), progress=lambda *seen: reported.append(seen))
    assert [codes(c) for c in found] == [[], [], ["identical_weights"]]
    assert "small@200" in found[2].fatal[0].message
    assert reported == [(1, 3, "small@200"), (2, 3, "small@500"), (3, 3, "small@1000")]


def test_a_tokenizer_that_differs(trainer_run):
    write_tokenizer(trainer_run / "checkpoint-500", words=("a", "c"))
    path = trainer_run / "checkpoint-1000" / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text()), indent=7))  # laid out otherwise, the same content
    found = verify_all(discover([trainer_run]))
    assert [codes(c) for c in found] == [[], ["tokenizer_differs"], []]
    assert found[1].fatal


def test_another_model_in_the_run(trainer_run, save):
    save(trainer_run / "checkpoint-500", seed=9, config=llama_config(num_hidden_layers=1))
    found = verify_all(discover([trainer_run]))
    assert [codes(c) for c in found] == [[], ["model_differs"], []]


def test_a_first_checkpoint_of_another_model_does_not_exclude_the_others(trainer_run, save):
    save(trainer_run / "checkpoint-200", seed=9, config=llama_config(num_hidden_layers=1))
    found = verify_all(discover([trainer_run]))
    assert [codes(c) for c in found] == [["model_differs"], [], []]
    assert "small@500" in found[0].fatal[0].message


def test_a_first_checkpoint_with_another_tokenizer_does_not_exclude_the_others(trainer_run):
    write_tokenizer(trainer_run / "checkpoint-200", words=("a", "c"))
    found = verify_all(discover([trainer_run]))
    assert [codes(c) for c in found] == [["tokenizer_differs"], [], []]


@pytest.mark.parametrize("change", [{"num_hidden_layers": 3}, {"hidden_size": 48}, {"vocab_size": 96}])
def test_a_checkpoint_that_cannot_be_loaded_is_no_reference_for_the_only_other_one(trainer_run, change):
    shutil.rmtree(trainer_run / "checkpoint-1000")
    path = trainer_run / "checkpoint-200" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    first, second = verify_all(discover([trainer_run]))
    assert "not_loaded" in codes(first)
    assert not second.problems


def test_tokens_of_an_excluded_checkpoint_do_not_exclude_later_ones(trainer_run):
    (trainer_run / "checkpoint-200" / "model.safetensors").write_bytes(b"")
    overrides = Overrides(tokens={200: 9000, 500: 4000, 1000: 6000})
    found = verify_all(discover([trainer_run], overrides=overrides))
    assert [bool(c.fatal) for c in found] == [True, False, False]


def test_steps_out_of_order_with_tokens(trainer_run):
    overrides = Overrides(tokens={200: 5000, 500: 4000, 1000: 6000})
    found = verify_all(discover([trainer_run], overrides=overrides))
    assert [codes(c) for c in found] == [[], ["steps_out_of_order"], []]
    assert found[1].fatal


def test_one_d_that_is_too_high_excludes_itself_alone(trainer_run):
    overrides = Overrides(tokens={200: 5_000_000, 500: 5000, 1000: 6000})
    found = verify_all(discover([trainer_run], overrides=overrides))
    assert [codes(c) for c in found] == [["steps_out_of_order"], [], []]
    (problem,) = found[0].problems
    assert problem.message.startswith("D = 5,000,000 is not below the 5,000 of ")


@given(st.lists(st.integers(0, 9), max_size=9))
def test_as_few_as_possible_are_out_of_order(numbers):
    kept = _longest_rise(numbers)
    rising = [
        places
        for places in itertools.chain.from_iterable(
            itertools.combinations(range(len(numbers)), size) for size in range(len(numbers), -1, -1)
        )
        if all(numbers[a] < numbers[b] for a, b in itertools.pairwise(places))
    ]
    assert tuple(kept) == rising[0]  # the longest, and of those the earliest


def test_unknown_tokens_are_asked_for_once_in_a_run(save_run, tmp_path):
    save_run(tmp_path / "mine", ["step1", "step2", "step3"])
    save_run(tmp_path / "yours", ["none", "of", "them", "step1", "step2"])
    for folder in ("none", "of", "them"):
        shutil.rmtree(tmp_path / "yours" / folder)  # so that no weights are those of the other run
    found = verify_all(discover([tmp_path]))
    assert [codes(c) for c in found] == [["tokens_unknown"], [], [], ["tokens_unknown"], []]
    (problem,) = found[0].problems
    assert not problem.fatal
    for words in ("3 checkpoints", "--tokens-per-step", "--tokens", "trajectory.yaml"):
        assert words in problem.message
    assert warnings(found) == [f"{c.name}: {c.problems[0].message}" for c in (found[0], found[3])]


def test_stage_2_restarts_are_noted_and_are_not_out_of_order(save_run, tmp_path):
    labels = ["stage1-step10000-tokens21B", "stage2-ingredient1-step1000-tokens3B"]
    found = verify_all(discover([save_run(tmp_path / "OLMo-2-0425-1B", labels)]))
    assert [codes(c) for c in found] == [[], ["stage_restart"]]
    assert not found[1].fatal


def test_a_stage_whose_start_is_not_known_gets_one_message(save_run, tmp_path):
    labels = ["stage1-step10000", "stage2-step1000"]
    found = verify_all(discover([save_run(tmp_path / "mine", labels)]))
    assert [codes(c) for c in found] == [["tokens_unknown"], ["tokens_unknown"]]
    assert "counted from the start of stage2" in found[1].problems[0].message


def test_inspection_rows(trainer_run):
    shutil.copy(trainer_run / "checkpoint-200" / "model.safetensors", trainer_run / "checkpoint-1000")
    found = verify_all(discover([trainer_run]))
    rows = inspection_rows(found)
    assert list(rows[0]) == [
        "run", "step", "revision", "tokens", "tokens_source", "tokens_note", "params", "tokens_per_param", "format",
        "learning_rate", "schedule_phase", "stage", "weights_sha", "problems", "fatal",
    ]  # fmt: skip
    assert rows[0]["tokens_per_param"] == pytest.approx(200 * 4096 / found[0].params)
    assert rows[0]["weights_sha"] == found[0].weights_sha[:12]
    assert rows[0]["problems"] == ""
    assert rows[2]["problems"].startswith("!identical_weights: ")
    json.dumps(rows)
