"""Contract and property: a counter of tokens that starts again on resuming is noticed, a steady one is not."""

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ptq_eval.checkpoints import Overrides, discover
from ptq_eval.checkpoints.trainer_state import with_whole_counts
from ptq_eval.records import Checkpoint
from tests.checkpoints.support import codes, touch_checkpoint


def run_of(*readings):
    return [
        Checkpoint("r", step, seen, None, location=str(step), tokens_source="explicit", tokens_note="counted")
        for step, seen in readings
    ]


def tokens(run):
    return [checkpoint.tokens for checkpoint in run]


@pytest.mark.parametrize(
    ("steps", "seen", "restart"),
    [
        ((98, 314, 980, 1765), (98, 314, 980 - 314, 1765 - 314), 980),  # at a checkpoint, growing all the same
        ((100, 200, 250), (100, 200, 50), 250),  # the counter falls
        ((100, 500), (100, 400), 500),  # the last one
        ((98, 980, 1765), (98, 980 - 314, 1765 - 314), 980),  # between two checkpoints, the nearer one deleted
    ],
)
def test_a_restart_is_noticed_and_what_came_before_is_added(steps, seen, restart):
    found = with_whole_counts(run_of(*zip(steps, (2048 * steps for steps in seen))))
    assert tokens(found) == [2048 * step for step in steps]
    assert [c.step for c in found if codes(c) == ["counter_restart"]] == [restart]
    (problem,) = next(c for c in found if c.step == restart).problems
    assert not problem.fatal
    for words in ("started again at step", "resumed", "--tokens", "trajectory.yaml"):
        assert words in problem.message
    assert {c.tokens_source for c in found if c.step >= restart} == {"derived"}


def test_two_restarts():
    steps, seen = (100, 200, 300, 400), (100, 100, 200, 100)
    found = with_whole_counts(run_of(*zip(steps, (10 * s for s in seen))))
    assert tokens(found) == [1000, 2000, 3000, 4000]
    assert [codes(c) for c in found] == [[], ["counter_restart"], [], ["counter_restart"]]


def test_a_late_start_is_only_warned_of():
    found = with_whole_counts(run_of((980, 666), (1765, 1451)))
    assert tokens(found) == [666, 1451]
    assert [codes(c) for c in found] == [["counter_restart"], []]
    assert "from step 314 on" in found[0].problems[0].message


@given(
    st.lists(st.integers(1, 10**6), min_size=1, max_size=6, unique=True),
    st.integers(1, 10**6),
    st.lists(st.floats(-0.002, 0.002), min_size=6, max_size=6),
)
def test_property_a_steady_counter_is_left_alone(steps, rate, noise):
    run = run_of(*((step, round(step * rate)) for step in sorted(steps)))
    assert with_whole_counts(run) == run
    doubled = run_of(*((step, step * rate + max(step - 500, 0) * rate) for step in sorted(steps)))
    assert tokens(with_whole_counts(doubled)) == tokens(doubled)  # the batch doubled: D stays as it was counted
    other = [replace(checkpoint, tokens_source="label") for checkpoint in doubled]
    assert with_whole_counts(other) == other


def test_the_users_count_ends_the_question(tmp_path):
    for step, seen in ((10, 10), (20, 20), (30, 10)):
        folder = touch_checkpoint(tmp_path / "run" / f"checkpoint-{step}")
        (folder / "trainer_state.json").write_text(json.dumps({"global_step": step, "num_input_tokens_seen": seen}))
    assert tokens(discover([tmp_path / "run"])) == [10, 20, 30]
    given_ = discover([tmp_path / "run"], overrides=Overrides(tokens_per_step=5))
    assert [(c.tokens, codes(c)) for c in given_] == [(50, []), (100, []), (150, [])]


def test_a_log_with_gaps_nan_and_text_keeps_tokens_and_rate(tmp_path):
    log = [
        {"step": 1, "learning_rate": 0.1, "loss": float("nan")},
        {"step": 2, "learning_rate": float("nan")},
        {"step": 3, "learning_rate": "0.3"},
        {"step": 3, "learning_rate": "n/a"},
        {"learning_rate": 0.5},
        {"step": 3, "eval_loss": 1.0},
        "resumed",
        {"step": 9, "learning_rate": 0.9},
    ]
    folder = touch_checkpoint(tmp_path / "run" / "checkpoint-4")
    state = {"global_step": 4, "num_input_tokens_seen": 40, "log_history": log}
    (folder / "trainer_state.json").write_text(json.dumps(state))
    (found,) = discover([tmp_path / "run"])
    assert (found.tokens, found.learning_rate, found.problems) == (40, 0.3, ())


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ([], "it is not a JSON object"),
        ({}, "it has no global_step"),
        ({"global_step": "98"}, "global_step is not a number: '98'"),
        ({"global_step": 98, "max_steps": [1]}, "max_steps is not a number: [1]"),
    ],
)
def test_what_is_wrong_with_a_state_is_said_in_words(tmp_path, state, words):
    folder = touch_checkpoint(tmp_path / "checkpoint-98")
    (folder / "trainer_state.json").write_text(json.dumps(state))
    (found,) = discover([tmp_path])
    (problem,) = [problem for problem in found.problems if problem.code == "unreadable_state"]
    assert problem.message.endswith(words)
