"""Contract: a model in a run's own folder, beside its checkpoints, is used or named."""

import json
import shutil

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
    assert "says no step" in found[3].problems[0].message
    short = discover([trainer_run], overrides=Overrides(tokens=[1, 2, 3]))
    assert [c.tokens for c in short] == [1, 2, 3, None]
    assert [c.tokens for c in discover([trainer_run], overrides=Overrides(tokens=[1, 2, 3, 4]))] == [1, 2, 3, 4]


def test_another_model_is_a_run_of_its_own(tmp_path):
    for step in (1, 2):
        touch_checkpoint(tmp_path / "step-run-7" / f"step_{step}")
    touch_checkpoint(tmp_path / "step-run-7", num_hidden_layers=5)
    found = discover([tmp_path / "step-run-7"])
    assert [(c.run, c.step) for c in found] == [("step-run-7", 1), ("step-run-7", 2), ("step-run-7/root", None)]
