"""Contract and property: a counter of tokens that starts again on resuming is noticed, a steady one is not."""

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ptq_eval.checkpoints import Overrides, discover, warnings
from ptq_eval.checkpoints.growth import with_whole_counts
from ptq_eval.checkpoints.trainer_state import with_trainer_state
from ptq_eval.records import Checkpoint
from tests.checkpoints.support import codes, touch_checkpoint


def run_of(*readings, counter="num_input_tokens_seen"):
    return [Checkpoint("r", step, seen, None, location=str(step), tokens_counter=counter) for step, seen in readings]


def tokens(run):
    return [checkpoint.tokens for checkpoint in run]


@pytest.mark.parametrize(
    ("steps", "seen", "restart"),
    [
        ((98, 314, 980, 1765), (98, 314, 980 - 314, 1765 - 314), 980),  # at a checkpoint, growing all the same
        ((100, 200, 250), (100, 200, 50), 250),  # the counter falls
        ((100, 200), (100, 100), 200),  # the last one
        ((98, 980, 1765), (98, 980 - 314, 1765 - 314), 980),  # between two checkpoints, the nearer one deleted
    ],
)
@pytest.mark.parametrize("counter", ["num_input_tokens_seen", "total_flos"])
def test_a_restart_is_noticed_and_what_came_before_is_added(steps, seen, restart, counter):
    found = with_whole_counts(run_of(*zip(steps, (2048 * steps for steps in seen)), counter=counter))
    assert tokens(found) == [2048 * step for step in steps]
    assert [c.step for c in found if codes(c) == ["counter_restart"]] == [restart]
    (problem,) = next(c for c in found if c.step == restart).problems
    assert not problem.fatal
    for words in (counter, "started again at step", "resumed", "--tokens", "trajectory.yaml"):
        assert words in problem.message
    assert {c.tokens_source for c in found if c.step >= restart} == {"derived"}


def test_floating_point_operations_that_start_again(tmp_path):
    for step, flos in ((100, 100e12), (200, 200e12), (300, 100e12), (400, 200e12)):
        folder = touch_checkpoint(tmp_path / "run" / f"checkpoint-{step}")
        (folder / "trainer_state.json").write_text(json.dumps({"global_step": step, "total_flos": flos}))
    found = discover([tmp_path / "run"])
    per_step = found[0].tokens or 0
    assert [c.tokens for c in found] == pytest.approx([per_step, 2 * per_step, 3 * per_step, 4 * per_step])
    assert [codes(c) for c in found] == [[], [], ["counter_restart"], []]
    assert "total_flos / (6 · N_hf)" in found[2].problems[0].message


@pytest.mark.parametrize(
    ("seen", "doubted"),
    [
        ((98, 314), [0]),
        ((98 * 4, 314 * 4), [0]),
        ((98 * 64, 314 * 64), []),
        ((98 * 10**6, 314 * 10**6), []),
    ],
)
def test_a_counter_of_something_other_than_tokens_is_named_once(tmp_path, seen, doubted):
    for step, value in zip((98, 314), seen):
        folder = touch_checkpoint(tmp_path / "run" / f"checkpoint-{step}")
        (folder / "trainer_state.json").write_text(json.dumps({"global_step": step, "num_input_tokens_seen": value}))
    found = discover([tmp_path / "run"])
    assert [at for at, checkpoint in enumerate(found) if "counter_unit" in codes(checkpoint)] == doubted
    corrected = discover([tmp_path / "run"], overrides=Overrides(tokens_per_step=2048))
    assert not any("counter_unit" in codes(checkpoint) for checkpoint in corrected)


def test_counters_of_two_kinds_are_not_compared(tmp_path):
    states = [
        {"total_flos": 300e12},
        {"num_input_tokens_seen": 20},
        {"total_flos": 900e12},
        {"num_input_tokens_seen": 40},
    ]
    for number, state in enumerate(states, start=1):
        folder = touch_checkpoint(tmp_path / "run" / f"checkpoint-{number * 10}")
        (folder / "trainer_state.json").write_text(json.dumps({"global_step": number * 10, **state}))
    assert not any("counter_restart" in codes(c) for c in discover([tmp_path / "run"]))


@pytest.mark.parametrize("seen", [200704, 200704.0, "200704", "200704.0", "2.00704e5"])
def test_a_count_that_another_tool_wrote_is_read(tmp_path, seen):
    folder = touch_checkpoint(tmp_path / "run" / "checkpoint-98")
    state = {"global_step": 98.0 if isinstance(seen, float) else "98", "num_input_tokens_seen": seen}
    (folder / "trainer_state.json").write_text(json.dumps(state))
    (found,) = discover([tmp_path / "run"])
    assert (found.step, found.tokens, found.tokens_source, found.problems) == (98, 200704, "explicit", ())


def test_two_restarts():
    steps, seen = (100, 200, 300, 400), (100, 100, 200, 100)
    found = with_whole_counts(run_of(*zip(steps, (10 * s for s in seen))))
    assert tokens(found) == [1000, 2000, 3000, 4000]
    assert [codes(c) for c in found] == [[], ["counter_restart"], [], ["counter_restart"]]


def test_where_a_restart_is_possible_d_is_unknown_and_the_question_names_both(tmp_path):
    for step, seen in ((980, 666), (1765, 1451)):
        folder = touch_checkpoint(tmp_path / "run" / f"checkpoint-{step}")
        state = {"global_step": step, "num_input_tokens_seen": 100 * seen}
        (folder / "trainer_state.json").write_text(json.dumps(state))
    found = discover([tmp_path / "run"])
    assert [(c.tokens, c.tokens_source) for c in found] == [(None, "unknown"), (None, "unknown")]
    (warning,) = warnings(found)
    for words in (
        "2 checkpoints",
        "the counter started again",
        "another size",
        "66,600 or 98,000",
        "--tokens-per-step",
    ):
        assert words in warning
    given_ = discover([tmp_path / "run"], overrides=Overrides(tokens_per_step=100))
    assert (tokens(given_), warnings(given_)) == ([98_000, 176_500], [])


@pytest.mark.parametrize("counter", ["num_input_tokens_seen", "total_flos"])
@pytest.mark.parametrize(
    ("restarts", "known"),
    [
        ({3138: 2000}, 3),  # before the last checkpoint
        ({980: 314, 3138: 980}, 2),  # from each checkpoint
        ({980: 600, 3138: 2000}, 2),  # two in a row
        ({314: 200, 980: 600, 3138: 2000}, 1),
        ({98: 90, 314: 90, 980: 90, 3138: 90}, 0),  # before the first one
        ({98: 50, 314: 50, 980: 50, 3138: 2000}, 0),
        ({98: 10, 314: 10, 980: 10, 3138: 10}, 0),
    ],
)
def test_d_is_unknown_from_a_restart_on_that_is_not_certain(restarts, known, counter):
    steps = (98, 314, 980, 3138)
    run = run_of(*((step, 2048 * (step - restarts.get(step, 0))) for step in steps), counter=counter)
    found = with_whole_counts(run)
    assert tokens(found) == [*(2048 * step for step in steps[:known]), *([None] * (4 - known))]
    for checkpoint in found[known:]:
        assert counter in checkpoint.tokens_note
        assert "started again" in checkpoint.tokens_note


@pytest.mark.parametrize(
    "rates",
    [(1, 2, 4, 4), (1, 1, 2, 2), (1, 1.5, 2, 2), (2, 2, 1, 1), (4, 2, 2, 2), (1, 1.2, 1.4, 1.6), (1, 0.99, 1.01, 1)],
)
def test_a_batch_that_grows_or_a_smaller_one_that_stays_is_no_restart(rates):
    steps, seen, run = (0, 98, 314, 980, 3138), 0, []
    for earlier, step, rate in zip(steps, steps[1:], rates):
        seen += round(2048 * rate * (step - earlier))
        run.append((step, seen))
    assert with_whole_counts(run_of(*run)) == run_of(*run)


@given(
    st.lists(st.integers(1, 10**6), min_size=1, max_size=6, unique=True),
    st.integers(1, 10**6),
    st.lists(st.floats(-0.002, 0.002), min_size=6, max_size=6),
)
def test_property_a_steady_counter_is_left_alone(steps, rate, noise):
    run = run_of(*((step, round(step * rate)) for step in sorted(steps)))
    assert with_whole_counts(run) == run
    restarted = run_of(*((step, step * rate - max(step - 500, 0) * rate) for step in sorted(steps)))
    other = [replace(checkpoint, tokens_counter="") for checkpoint in restarted]
    assert with_whole_counts(other) == other


def test_the_users_count_ends_the_question(tmp_path):
    for step, seen in ((10, 10), (20, 20), (30, 10)):
        folder = touch_checkpoint(tmp_path / "run" / f"checkpoint-{step}")
        (folder / "trainer_state.json").write_text(json.dumps({"global_step": step, "num_input_tokens_seen": seen}))
    assert tokens(discover([tmp_path / "run"])) == [10, 20, 30]
    given_ = discover([tmp_path / "run"], overrides=Overrides(tokens_per_step=50))
    assert [(c.tokens, codes(c)) for c in given_] == [(500, []), (1000, []), (1500, [])]


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
        ({"global_step": "many"}, "global_step is not a whole number, got 'many'"),
        ({"global_step": True}, "global_step is not a whole number, got True"),
        ({"global_step": 98, "num_input_tokens_seen": 0.5}, "num_input_tokens_seen is not a whole number, got 0.5"),
        ({"global_step": 98, "num_input_tokens_seen": -5}, "num_input_tokens_seen is negative, got -5"),
        ({"global_step": 98, "total_flos": -1e9}, "total_flos is negative, got -1000000000.0"),
        ({"global_step": 98, "max_steps": [1]}, "max_steps is not a whole number, got [1]"),
        ({"global_step": 98, "total_flos": "x"}, "total_flos is not a number, got 'x'"),
    ],
)
def test_what_is_wrong_with_a_state_is_said_in_words(tmp_path, state, words):
    folder = touch_checkpoint(tmp_path / "checkpoint-98")
    (folder / "trainer_state.json").write_text(json.dumps(state))
    (found,) = discover([tmp_path])
    (problem,) = [problem for problem in found.problems if problem.code == "unreadable_state"]
    assert problem.message.endswith(words)


@pytest.mark.parametrize(
    ("written", "epochs"), [(13.9, 13.9), (0, 0.0), ("many", None), (True, None), (-1, None), (None, None)]
)
def test_epochs_are_read_where_they_are_a_count(written, epochs, tmp_path):
    (tmp_path / "trainer_state.json").write_text(json.dumps({"global_step": 5, "epoch": written}))
    found = with_trainer_state(Checkpoint("r", 5, 100, 10), tmp_path)
    assert found.epochs == epochs
    assert not found.problems
