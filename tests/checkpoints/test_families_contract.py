"""Contract: which runs are said to differ in their seed alone, and that names alone say nothing."""

import json

import pytest

from ptq_eval.checkpoints import discover
from ptq_eval.checkpoints.families import with_family
from ptq_eval.records import Checkpoint

ABOUT = {"config": {"width": 32, "seed": 0, "learning_rate": 0.003}, "text_digest": "abc", "device": "cpu"}


def family(folder, **changes):
    about = {**ABOUT, **{name: value for name, value in changes.items() if name in ABOUT}}
    about["config"] = {**ABOUT["config"], **{name: value for name, value in changes.items() if name not in ABOUT}}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "pretrain.json").write_text(json.dumps(about))
    return with_family(Checkpoint("any", 1, 1, 1), folder).family


def test_trainings_that_differ_in_their_seed_are_one_family(tmp_path):
    first = family(tmp_path / "a")
    assert first
    assert family(tmp_path / "b", seed=7, device="cuda") == first
    assert family(tmp_path / "c", seed=7, learning_rate=0.001) != first
    assert family(tmp_path / "d", text_digest="other") != first


def test_trunk_and_annealed_branches_are_families_of_their_own(tmp_path):
    family(tmp_path)
    parts = [with_family(Checkpoint("any", 1, 1, 1), tmp_path / part).family for part in ("trunk", "annealed")]
    assert all(parts)
    assert len(set(parts)) == 2


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"config": 3}', '{"config": {"width": 1}, "text_digest": ""}'])
def test_a_file_that_does_not_say_it_gives_no_family(tmp_path, text):
    (tmp_path / "pretrain.json").write_text(text)
    assert with_family(Checkpoint("seed1", 1, 1, 1), tmp_path).family == ""
    assert with_family(Checkpoint("seed1", 1, 1, 1), tmp_path / "nowhere").family == ""


@pytest.mark.parametrize(
    ("roots", "families"),
    [
        ([f"hub:EleutherAI/pythia-160m-seed{i}@step1000" for i in (1, 2)], 1),
        (["hub:EleutherAI/pythia-160m-seed1@step1000", "hub:EleutherAI/pythia-160m-data-seed1@step1000"], 2),
        (["hub:EleutherAI/pythia-160m-seed1@step1000", "hub:EleutherAI/pythia-70m-seed2@step1000"], 2),
        (["hub:allenai/DataDecide-c4-150M@{step500-seed-default,step500-seed-large-aux-2}"], 1),
    ],
)
def test_suites_with_several_seeds(roots, families):
    found = discover(roots)
    assert len({checkpoint.run for checkpoint in found}) == 2
    assert all(checkpoint.family for checkpoint in found)
    assert len({checkpoint.family for checkpoint in found}) == families


def test_a_suite_without_seeds_has_no_family():
    assert {checkpoint.family for checkpoint in discover(["hub:EleutherAI/pythia-160m@{step1000,step2000}"])} == {""}
