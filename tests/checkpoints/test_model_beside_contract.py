"""Contract: a model in a run's own folder or in `final` beside its checkpoints is used or named."""

import json
import shutil

import pytest

from ptq_eval.checkpoints import Overrides, discover, verify_all
from tests.checkpoints.support import codes, touch_checkpoint


def state(folder, step, seen):
    (folder / "trainer_state.json").write_text(json.dumps({"global_step": step, "num_input_tokens_seen": seen}))


def test_with_a_step_of_its_own_it_is_the_last_point(trainer_run, save):
    save(trainer_run, seed=9)
    state(trainer_run, 1500, 1500 * 4096)
    found = verify_all(discover([trainer_run]))
    assert [(c.run, c.step, c.tokens) for c in found[2:]] == [("small", 1000, 4_096_000), ("small", 1500, 6_144_000)]
    assert not any(c.problems for c in found)


def test_the_same_weights_as_a_checkpoint_are_measured_once(trainer_run):
    for name in ("model.safetensors", "config.json"):
        shutil.copy(trainer_run / "checkpoint-1000" / name, trainer_run)
    for final in (None, 1000, 1500):
        if final:
            state(trainer_run, final, final * 4096)
        found = verify_all(discover([trainer_run]))
        assert [(c.step, codes(c)) for c in found] == [(200, []), (500, []), (1000, ["model_beside"])]
        assert "the same weights" in found[2].problems[0].message
        assert not found[2].fatal


def test_other_weights_at_a_checkpoints_step_are_named_and_not_measured(trainer_run, save):
    save(trainer_run, seed=9)
    state(trainer_run, 500, 500 * 4096)
    found = verify_all(discover([trainer_run]))
    assert [(c.step, codes(c)) for c in found] == [(200, []), (500, ["model_beside"]), (1000, [])]
    assert "other weights" in found[1].problems[0].message


def test_without_a_step_it_is_measured_and_its_d_asked_for(trainer_run, save):
    save(trainer_run, seed=9)
    found = verify_all(discover([trainer_run]))
    assert [(c.run, c.step) for c in found[2:]] == [("small", 1000), ("small", None)]
    assert codes(found[3]) == ["tokens_unknown"]
    assert "has no step" in found[3].problems[0].message
    short = discover([trainer_run], overrides=Overrides(tokens=[1000, 2000, 3000]))
    assert [c.tokens for c in short] == [1000, 2000, 3000, None]
    assert [c.tokens for c in discover([trainer_run], overrides=Overrides(tokens=[1000, 2000, 3000, 4000]))] == [
        1000,
        2000,
        3000,
        4000,
    ]


def test_another_model_is_a_run_of_its_own(tmp_path):
    for step in (1, 2):
        touch_checkpoint(tmp_path / "step-run-7" / f"step_{step}")
    touch_checkpoint(tmp_path / "step-run-7", num_hidden_layers=5)
    found = discover([tmp_path / "step-run-7"])
    assert [(c.run, c.step) for c in found] == [("step-run-7", 1), ("step-run-7", 2), ("step-run-7/root", None)]


@pytest.mark.parametrize(
    "name", ["final", "best", "last", "latest", "main", "checkpoint_best", "step_final", "latest-unsharded"]
)
def test_a_folder_without_a_number_belongs_to_the_run_and_its_d_is_asked_for(trainer_run, save, name):
    save(trainer_run / name, seed=9)
    found = verify_all(discover([trainer_run]))
    assert [(c.run, c.step) for c in found] == [("small", 200), ("small", 500), ("small", 1000), ("small", None)]
    assert codes(found[3]) == ["tokens_unknown"]
    message = found[3].problems[0].message
    assert f"the model in {name} has no step" in message
    assert "trajectory.yaml" in message
    given = discover([trainer_run], overrides=Overrides(tokens=[1000, 2000, 3000, 4000]))
    assert [c.tokens for c in given] == [1000, 2000, 3000, 4000]
    touch_checkpoint(trainer_run / "final-hf")
    touch_checkpoint(trainer_run / "main-hf")
    several = discover([trainer_run], overrides=Overrides(tokens=[1000, 2000, 3000]))
    asked = [c.tokens_note for c in several if c.step is None]
    assert len(asked) >= 3
    assert all("of every checkpoint with --tokens, in the order of" in note for note in asked)


def test_a_folder_without_a_number_is_placed_by_its_trainer_state(trainer_run, save):
    save(trainer_run / "final", seed=9)
    state(trainer_run / "final", 1500, 1500 * 4096)
    found = verify_all(discover([trainer_run]))
    assert [(c.run, c.step, c.tokens) for c in found[2:]] == [("small", 1000, 4_096_000), ("small", 1500, 6_144_000)]
    assert not any(c.problems for c in found)


def test_copies_in_folders_without_a_number_are_measured_once(trainer_run, save):
    for name in ("final", "best"):
        shutil.copytree(trainer_run / "checkpoint-1000", trainer_run / name)
    (trainer_run / "best" / "trainer_state.json").unlink()
    found = verify_all(discover([trainer_run]))
    assert [(c.step, codes(c)) for c in found] == [(200, []), (500, []), (1000, ["model_beside"] * 2)]
    for name in ("final", "best"):
        shutil.rmtree(trainer_run / name)
        save(trainer_run / name, seed=9)
    found = verify_all(discover([trainer_run]))
    assert [(c.step, "model_beside" in codes(c)) for c in found[2:]] == [(1000, False), (None, True)]


def test_a_folder_without_a_number_that_holds_another_model_is_a_run_of_its_own(tmp_path):
    for name in ("step_98", "step_980", "final", "best"):
        touch_checkpoint(tmp_path / "small" / name, num_hidden_layers=5 if name == "final" else 2)
    found = discover([tmp_path / "small"])
    assert [(c.run, c.step) for c in found] == [("final", None), ("small", 98), ("small", 980), ("small", None)]


def test_among_several_runs_it_belongs_to_the_only_one_of_its_size(tmp_path):
    for name, layers in {"small-step1": 2, "small-step2": 2, "large-step1": 5, "large-step2": 5, "final": 5}.items():
        touch_checkpoint(tmp_path / "runs" / name, num_hidden_layers=layers)
    found = discover([tmp_path / "runs"])
    assert [(c.run, c.step) for c in found] == [
        ("runs/large-step", 1),
        ("runs/large-step", 2),
        ("runs/large-step", None),
        ("runs/small-step", 1),
        ("runs/small-step", 2),
    ]
    assert "the model in final has no step" in found[2].tokens_note


def test_among_runs_of_one_size_it_is_a_run_of_its_own_that_says_why(tmp_path, save):
    for i, name in enumerate(["small-step1", "small-step2", "large-step1", "large-step2", "final"]):
        save(tmp_path / "runs" / name, seed=i)
    final = next(c for c in verify_all(discover([tmp_path / "runs"])) if c.run == "runs/final")
    assert codes(final) == ["tokens_unknown"]
    assert (
        "the model in final may belong to any of the runs large-step, small-step; move it" in final.problems[0].message
    )
    state(tmp_path / "runs" / "final", 1500, 1500 * 4096)
    final = next(c for c in verify_all(discover([tmp_path / "runs"])) if c.run == "runs/final")
    assert (final.tokens, codes(final)) == (1500 * 4096, ["model_beside"])


def test_a_folder_called_final_alone_is_a_run(tmp_path):
    touch_checkpoint(tmp_path / "small" / "final")
    for root in (tmp_path / "small", tmp_path / "small" / "final"):
        assert [c.step for c in discover([root])] == [None]
