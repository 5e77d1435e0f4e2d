"""Oracle and recovery of branches: they are what a training with that ending gives, and survive being killed."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from ptq_eval.config.endings import Branch, ProbeConfig
from ptq_eval.errors import ContinuationError, OptionError, OutputMismatchError, TextSourceError
from ptq_eval.pretrain import PretrainConfig, pretrain
from ptq_eval.pretrain.architectures import counts
from ptq_eval.pretrain.stacked import branches, study
from ptq_eval.pretrain.stacked.options import RunOptions

SHAPE = {"width": 8, "layers": 1, "vocab": 300, "context": 16, "batch_size": 4, "warmup": 4, "learning_rate": 1e-2}
TOKENS = SHAPE["context"] * SHAPE["batch_size"]
STEPS = (20, 40, 50)
RATIOS = [step * TOKENS / counts(RunOptions(**SHAPE))[0] for step in STEPS]
TOML = """
text = "{text}"
states = true
[run]
width = 8
layers = 1
vocab = 300
context = 16
batch_size = 4
warmup = 4
learning_rate = 1e-2
validation_windows = 8
ratios = {ratios}
[[grid]]
schedule = ["wsd", "inverse-sqrt", "linear"]
ema = [0.9]
[[grid]]
weights = [4]
low_precision_share = 0.2
"""


def of(*specs):
    return list(ProbeConfig(branch=specs).branch)


def weights(folder):
    return load_file(folder / "model.safetensors")


def near(one, other, **tolerance):
    mine, theirs = weights(one), weights(other)
    assert set(mine) == set(theirs)
    for name, tensor in mine.items():
        torch.testing.assert_close(tensor, theirs[name], **tolerance)


@pytest.fixture(scope="module")
def trained(text, tmp_path_factory):
    """{schedule, or "qat" for the run whose last fifth is in low precision: folder of the run}"""
    root = tmp_path_factory.mktemp("branches")
    (root / "text.txt").write_text(text)
    (root / "study.toml").write_text(TOML.format(text=root / "text.txt", ratios=RATIOS))
    planned = study.read(root / "study.toml")
    study.train(planned, root / "out")
    named = {("qat" if r.options.weights == "4" else r.options.schedule, r.options.ratios[-1]): r for r in planned.runs}
    return {name: root / "out" / "runs" / run.name for (name, ratio), run in named.items() if ratio == RATIOS[-1]}


def test_branches_are_what_a_training_with_that_ending_gives(trained, tmp_path):
    trunk = branches.read_trunk(trained["wsd"] / "trunk" / "checkpoint-40")
    made = branches.train(trunk, of("decay:20%", "qat:20%@4"), tmp_path / "out")
    assert {name: place.name for name, place in made.items()} == dict.fromkeys(
        ("trunk@50", "decay:20%", "qat:20%@4"), "checkpoint-50"
    )
    near(made["trunk@50"], trained["wsd"] / "trunk" / "checkpoint-50", rtol=1e-4, atol=1e-6)
    near(made["decay:20%"], trained["wsd"] / "annealed" / "checkpoint-50", rtol=1e-4, atol=1e-6)
    near(made["qat:20%@4"], trained["qat"] / "trunk" / "checkpoint-50", rtol=1e-4, atol=1e-6)
    states = {name: json.loads((place / "trainer_state.json").read_text()) for name, place in made.items()}
    assert {state["num_input_tokens_seen"] for state in states.values()} == {50 * TOKENS}
    assert [states[n]["in_low_precision"] for n in made] == [False, False, True]
    assert states["decay:20%"]["learning_rate"] < 2e-3 < states["qat:20%@4"]["learning_rate"]


def test_the_end_of_a_branch_can_be_continued(trained, tmp_path):
    trunk = branches.read_trunk(trained["wsd"] / "trunk" / "checkpoint-40")
    made = branches.train(trunk, of("qat:20%@3"), tmp_path / "out")
    plain, low = (branches.read_trunk(made[name]) for name in ("trunk@50", "qat:20%@3"))
    assert (plain.step, low.step) == (50, 50)
    assert (plain.options.weights, low.options.weights) == ("full", "3")


def test_both_at_once_decays_in_low_precision(trained, tmp_path):
    trunk = branches.read_trunk(trained["wsd"] / "trunk" / "checkpoint-40")
    made = branches.train(trunk, of("decay+qat:20%@3"), tmp_path / "out")
    state = json.loads((made["decay+qat:20%@3"] / "trainer_state.json").read_text())
    assert (state["in_low_precision"], state["precision"]["weights"]) == (True, "3")
    assert state["schedule_phase"] == "annealed"


def test_the_trunk_goes_on_from_its_own_end(trained, tmp_path):
    """Branches of two lengths: the trunk is trained once to the longer one's end, and is the same at both."""
    trunk = branches.read_trunk(trained["wsd"] / "trunk" / "checkpoint-20")
    legs = branches.legs(trunk, of("decay:50%", "decay:60%"), tmp_path / "out")
    assert [(leg.start, leg.end) for leg in legs.values()] == [(20, 40), (40, 50), (20, 40), (20, 50)]
    made = branches.train(trunk, of("decay:50%", "decay:60%"), tmp_path / "out")
    for step in (40, 50):
        place = trained["wsd"] / "trunk" / f"checkpoint-{step}"
        near(made[branches.trunk_name(step)], place, rtol=1e-4, atol=1e-6)


def test_a_single_run_can_be_branched_too(text, tmp_path):
    (tmp_path / "text.txt").write_text(text)
    config = PretrainConfig(**SHAPE, ratios=tuple(RATIOS[1:]), schedule="wsd")
    pretrain(config, text, tmp_path / "run", source=str(tmp_path / "text.txt"), states=True)
    trunk = branches.read_trunk(tmp_path / "run" / "trunk" / "checkpoint-40")
    made = branches.train(trunk, of("decay:20%"), tmp_path / "out")
    near(made["trunk@50"], tmp_path / "run" / "trunk" / "checkpoint-50", rtol=1e-3, atol=1e-5)
    near(made["decay:20%"], tmp_path / "run" / "annealed" / "checkpoint-50", rtol=1e-3, atol=1e-5)
    shutil.rmtree(tmp_path / "run" / "starts")
    assert branches.read_trunk(tmp_path / "run" / "trunk" / "checkpoint-50").step == 50  # its last state is kept
    with pytest.raises(ContinuationError, match="state of the optimizer at step 40 was not kept"):
        branches.read_trunk(tmp_path / "run" / "trunk" / "checkpoint-40")


def test_a_decay_starts_at_the_rate_of_the_trunk(trained, tmp_path):
    trunk = branches.read_trunk(trained["inverse-sqrt"] / "trunk" / "checkpoint-40")
    legs = branches.legs(trunk, of("decay:20%", "qat:20%"), tmp_path / "out")
    assert legs["decay:20%"].rate(40) == pytest.approx(legs["trunk@50"].rate(40))
    assert legs["decay:20%"].rate(49) == pytest.approx(legs["trunk@50"].rate(40) / 10)
    assert legs["qat:20%@4"].rate(49) == legs["trunk@50"].rate(49)


def test_the_branch_is_its_share_of_the_whole():
    assert [Branch("decay", share).end(900) for share in (0.1, 0.5, 0.001)] == [1000, 1800, 901]


class Killed(Exception):
    pass


def test_an_interrupted_training_goes_on_and_further_branches_leave_the_others(trained, tmp_path, monkeypatch):
    trunk = branches.read_trunk(trained["wsd"] / "trunk" / "checkpoint-40")
    whole = branches.train(trunk, of("decay:20%", "qat:20%"), tmp_path / "whole")
    monkeypatch.setattr("ptq_eval.pretrain.stacked.trainer.KEEP_SECONDS", 0.0)
    for call in (3, 5, 9):
        count = iter(range(1, 10**6))

        def progress(*_, call=call, count=count):
            if next(count) == call:
                raise Killed

        with pytest.raises(Killed):
            branches.train(trunk, of("decay:20%", "qat:20%"), tmp_path / "out", progress=progress)
    made = branches.train(trunk, of("decay:20%", "qat:20%"), tmp_path / "out")
    for name, place in made.items():
        near(place, whole[name], rtol=0, atol=0)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("out/runs/*/*/*/model.safetensors")}
    branches.train(trunk, of("decay:20%", "decay:30%"), tmp_path / "out")
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_a_folder_belongs_to_one_checkpoint(trained, tmp_path):
    first, other = (branches.read_trunk(trained["wsd"] / "trunk" / f"checkpoint-{step}") for step in (20, 40))
    branches.train(first, of("decay:50%"), tmp_path / "out")
    with pytest.raises(OutputMismatchError, match="branches from another checkpoint"):
        branches.train(other, of("decay:50%"), tmp_path / "out")


@pytest.mark.parametrize("part", ["annealed/checkpoint-50", "ema-0.9/checkpoint-40", "trunk"])
def test_only_a_trunk_can_be_continued(trained, part):
    with pytest.raises(ContinuationError, match=r"not a checkpoint of the trunk .* remedy: averages need no training"):
        branches.read_trunk(trained["wsd"] / part)


def test_a_schedule_that_ends_has_no_trunk_beyond(trained):
    with pytest.raises(ContinuationError, match="schedule of this run ends at its D"):
        branches.read_trunk(trained["linear"] / "trunk" / "checkpoint-50")


def test_another_text_is_refused(trained, text, tmp_path):
    (tmp_path / "other.txt").write_text(text + "more" * 100)
    folder = trained["wsd"] / "trunk" / "checkpoint-40"
    with pytest.raises(OptionError, match="trained on another text"):
        branches.read_trunk(folder, str(tmp_path / "other.txt"))
    with pytest.raises(TextSourceError):
        branches.read_trunk(folder, str(tmp_path / "none.txt"))


def test_damage_is_said(trained, tmp_path):
    run = shutil.copytree(trained["wsd"], tmp_path / "run")
    folder = run / "trunk" / "checkpoint-40"
    shutil.copyfile(run / "trunk" / "checkpoint-20" / "model.safetensors", folder / "model.safetensors")
    with pytest.raises(ContinuationError, match="not those of the state"):
        branches.read_trunk(folder)
    (folder / "model.safetensors").write_bytes(b"x")
    with pytest.raises(ContinuationError, match="cannot be read"):
        branches.read_trunk(folder)
    for content in ("{}", "[]", "{"):
        (run / "pretrain.json").write_text(content)
        with pytest.raises(ContinuationError):
            branches.read_trunk(folder)
