"""Contract: folders that differ in a word beside their number are branches of a run, or runs of their own."""

import pytest

from ptq_eval.checkpoints import discover
from tests.checkpoints.support import touch_checkpoint


@pytest.mark.parametrize(
    ("names", "branch", "of"),
    [
        ("step98 step490 step490-cooldown", "mine/step-cooldown", "mine/step"),
        ("checkpoint-98 checkpoint-490 checkpoint-490-cooldown", "mine/checkpoint-cooldown", "mine"),
        ("iter_1 iter_2 iter_3 iter_2-ema iter_3-ema", "mine/iter-ema", "mine/iter"),
    ],
)
def test_a_branch_of_a_run_is_named_as_one(tmp_path, names, branch, of):
    for name in names.split():
        touch_checkpoint(tmp_path / "mine" / name)
    noted = [(c.run, p) for c in discover([tmp_path / "mine"]) for p in c.problems if p.code == "branch"]
    [(run, problem)] = noted
    assert run == branch
    assert f"a branch of {of}," in problem.message
    assert not problem.fatal


def test_runs_of_unlike_names_are_no_branches(tmp_path):
    for name in ("small-step1", "small-step2", "large-step1"):
        touch_checkpoint(tmp_path / name)
    assert not any(checkpoint.problems for checkpoint in discover([tmp_path]))
