"""Contract and recovery tests of studies: stacked runs are the runs by themselves, and survive being killed."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from functools import partial

import pytest
import torch
from safetensors.torch import load_file

from ptq_eval.config.options import declared
from ptq_eval.errors import OptionError
from ptq_eval.pretrain import PretrainConfig, pretrain
from ptq_eval.pretrain.schedule import branch_start
from ptq_eval.pretrain.stacked import trainer
from ptq_eval.pretrain.stacked.options import RunOptions
from ptq_eval.pretrain.stacked.plan import Leg, Run
from ptq_eval.pretrain.stacked.study import read, status, train

TOML = """
text = "{text}"
stack = {stack}
[run]
layers = 1
vocab = 300
context = 16
batch_size = 4
warmup = 4
validation_windows = 8
ratios = [1, 4]
learning_rate = 1e-2
[[grid]]
width = 8
seed = [0, 1]
schedule = ["constant", "wsd", "cosine"]
ema = [0.9]
lawa = [2]
lawa_every = 5
[[grid]]
size = ["8x1"]
weights = ["full", 4, "fp8_e4m3"]
activations = ["full", 8]
kv = ["full", 4]
low_precision_share = [0.25]
optimizer = ["muon"]
"""


def written(folder, text, stack=16, more=""):
    """A study in a folder."""
    (folder / "text.txt").write_text(text)
    (folder / "study.toml").write_text(TOML.format(text=folder / "text.txt", stack=stack) + more)
    return read(folder / "study.toml")


@pytest.fixture
def study(text, tmp_path):
    return partial(written, tmp_path, text)


@pytest.fixture(scope="module")
def trained(text, tmp_path_factory):
    """A study, and the folder that it was trained into."""
    folder = tmp_path_factory.mktemp("trained")
    planned = written(folder, text)
    train(planned, folder / "out")
    return planned, folder / "out"


def contents(folder):
    """{path: hash} of what a study leaves in its runs, but for states (zip files with dates)."""
    files = [path for path in sorted((folder / "runs").rglob("*")) if path.is_file() and path.suffix != ".pt"]
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def checkpoints(folder):
    return {p.parent.relative_to(folder).as_posix(): p for p in sorted((folder / "runs").rglob("model.safetensors"))}


class Killed(Exception):
    pass


def kill_at(call):
    calls = iter(range(1, 10**9))

    def progress(*_):
        if next(calls) == call:
            raise Killed

    return progress


def test_a_study_trains_every_run_of_its_grid(trained):
    planned, out = trained
    assert len(planned.runs) == 2 * (1 + 1 + 2) + 3 * 2 * 2
    assert all(run.saved == run.planned for run in status(planned, out))
    stacks = [json.loads(path.read_text()) for path in (out / "stacks").iterdir()]
    assert all(one["done"] for one in stacks)
    assert max(len(one["legs"]) for one in stacks) == 12
    parts = {path.parent.name for path in out.glob("runs/*/*/checkpoint-*")}
    assert {"trunk", "annealed", "ema-0.9", "lawa-2"} == parts
    wsd = next(run for run in planned.runs if run.options.schedule == "wsd")
    home = out / "runs" / wsd.name
    state = json.loads((home / "annealed" / f"checkpoint-{wsd.targets[0]}" / "trainer_state.json").read_text())
    assert (state["schedule_phase"], state["global_step"]) == ("annealed", wsd.targets[0])
    assert state["eval_loss"] == state["eval_loss_full_precision"]
    per_epoch = json.loads((home / "pretrain.json").read_text())["tokens_per_epoch"]
    assert 0 < state["epochs"] == state["epoch"] == wsd.targets[0] * 64 / per_epoch
    start = branch_start(wsd.targets[0], warmup=wsd.options.warmup, decay=wsd.options.decay)
    assert state["decay_steps"] == wsd.targets[0] - start
    assert (home / "starts" / f"step-{start}.pt").is_file()


def test_what_is_recorded_of_a_run_in_low_precision(trained):
    planned, out = trained
    run = next(r for r in planned.runs if (r.options.weights, r.options.activations, r.options.kv) == ("4", "8", "4"))
    first, last = (
        json.loads((out / "runs" / run.name / "trunk" / f"checkpoint-{s}" / "trainer_state.json").read_text())
        for s in run.targets
    )
    assert last["precision"] == {"weights": "4", "activations": "8", "kv": "4"}
    assert (first["in_low_precision"], last["in_low_precision"]) == (False, True)
    assert first["eval_loss"] == first["eval_loss_full_precision"]
    assert last["eval_loss"] != last["eval_loss_full_precision"]
    assert last["optimizer"] == "muon"


def test_a_run_does_not_depend_on_those_beside_it(study, tmp_path):
    together, apart = study(), study(stack=1)
    for planned, name in ((together, "together"), (apart, "apart")):
        train(replace(planned, runs=planned.runs[1:3] + planned.runs[-5::2]), tmp_path / name)
    one, other = checkpoints(tmp_path / "together"), checkpoints(tmp_path / "apart")
    assert one.keys() == other.keys()
    for name in one:
        # rounding can go either way for a number between two levels, so low precision is compared by its losses
        states = [json.loads((paths[name].parent / "trainer_state.json").read_text()) for paths in (one, other)]
        assert states[0]["eval_loss"] == pytest.approx(states[1]["eval_loss"], abs=1e-3)
        if set(states[0]["precision"].values()) == {"full"} and states[0]["optimizer"] == "adamw":
            a, b = load_file(one[name]), load_file(other[name])
            assert all(torch.allclose(a[key], b[key], atol=1e-4) for key in a)


@pytest.mark.parametrize("schedule", [pytest.param("constant", marks=pytest.mark.slow), "wsd"])
def test_oracle_a_stacked_run_is_that_of_pretrain(text, tmp_path, schedule):
    common = {"width": 16, "layers": 2, "vocab": 300, "context": 16, "batch_size": 4, "warmup": 4, "ratios": (1.0, 2.0)}
    pretrain(PretrainConfig(**common, schedule=schedule, seed=3), text, tmp_path / "one")
    (tmp_path / "text.txt").write_text(text)
    lines = [f"{name} = {list(value) if name == 'ratios' else value}" for name, value in common.items()]
    body = f'text = "{tmp_path / "text.txt"}"\n[run]\n' + "\n".join(lines) + "\nvalidation_windows = 0\n"
    (tmp_path / "study.toml").write_text(body + f'[[grid]]\nschedule = "{schedule}"\nseed = [3, 4]\n')
    planned = read(tmp_path / "study.toml")
    train(planned, tmp_path / "many")
    home = tmp_path / "many" / "runs" / planned.runs[0].name
    for path in sorted((tmp_path / "one").glob("*/checkpoint-*")):
        mine = home / path.relative_to(tmp_path / "one")
        a, b = load_file(path / "model.safetensors"), load_file(mine / "model.safetensors")
        assert a.keys() == b.keys()
        assert max(float((a[key] - b[key]).abs().max()) for key in a) < 1e-3
        own, other = (json.loads((each / "trainer_state.json").read_text()) for each in (path, mine))
        assert other.keys() - own.keys() == {"average", "precision_per", "low_precision_share"}
        assert {name: other[name] for name in own if name != "log_history"} == (
            {name: value for name, value in own.items() if name != "log_history"}
        )
    logs = [[json.loads(line) for line in (p / "log.jsonl").read_text().splitlines()] for p in (tmp_path / "one", home)]
    assert [entry["loss"] for entry in logs[0]] == pytest.approx([entry["loss"] for entry in logs[1]], abs=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize(("call", "seconds"), [(30, 0.0), (120, 1e9)])
def test_recovery_a_study_that_was_killed_ends_in_the_same_bits(study, tmp_path, monkeypatch, call, seconds):
    planned = study()
    planned = replace(planned, runs=planned.runs[1:4] + planned.runs[-2:])
    train(planned, tmp_path / "whole")
    monkeypatch.setattr(trainer, "KEEP_SECONDS", seconds)
    with pytest.raises(Killed):
        train(planned, tmp_path / "killed", progress=kill_at(call))
    assert contents(tmp_path / "killed").keys() < contents(tmp_path / "whole").keys()
    train(planned, tmp_path / "killed")
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


@pytest.mark.slow
def test_a_study_may_grow(study, tmp_path):
    train(study(), tmp_path / "out")
    before, steps = contents(tmp_path / "out"), []
    larger = study(more="[[grid]]\nwidth = 8\nseed = 7\n")
    train(larger, tmp_path / "out", progress=lambda what, done, total: steps.append(what))
    after = contents(tmp_path / "out")
    assert before.items() < after.items()
    assert set(steps) == {"stack 1 of 1, 1 runs"}


def test_another_text_under_the_same_name_is_refused(study, tmp_path):
    planned = study()
    train(replace(planned, runs=planned.runs[:1]), tmp_path / "out")
    (tmp_path / "text.txt").write_text("for item in items: total\n" * 2000)
    with pytest.raises(OptionError, match="another text"):
        train(planned, tmp_path / "out")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("weigths = 4", "unknown option"),
        ("weights = 2", "not a precision"),
        ("size = '8'", "WIDTHxLAYERS"),
        ("size = '8x1'\nwidth = 16", "size twice"),
        (f"seed = {list(range(101))}\nwarmup = {list(range(100))}", "10,100"),
        ("seed = []", "no values"),
        ("architecture = 'gpt2'", "llama"),
        ("schedule = 'cosin'", "unknown value"),
    ],
)
def test_studies_that_are_refused(study, line, said):
    with pytest.raises(OptionError, match=said):
        study(more=f"[[grid]]\n{line}\n")


@pytest.mark.parametrize("content", ["grid = []", "text = []"])
def test_a_study_without_runs_is_refused(tmp_path, content):
    (tmp_path / "study.toml").write_text(content)
    with pytest.raises(OptionError, match="no run"):
        read(tmp_path / "study.toml")


def test_a_grid_replaces_the_size_and_the_stage_that_are_common(tmp_path):
    own = ["", "width = 32", "size = '48x3'", "stage = 0"]
    grids = "".join(f"[[grid]]\nseed = {seed}\n{line}\n" for seed, line in enumerate(own))
    (tmp_path / "study.toml").write_text(f"[run]\nsize = '16x2'\nstage = 1\n{grids}")
    found = [(run.options.width, run.options.layers, run.stage) for run in read(tmp_path / "study.toml").runs]
    assert found == [(16, 2, 1), (32, 2, 1), (48, 3, 1), (16, 2, 0)]
    (tmp_path / "study.toml").write_text("[run]\nlayers = 5\n[[grid]]\nsize = '16x2'\n")
    assert [run.options.layers for run in read(tmp_path / "study.toml").runs] == [2]


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(OptionError, match="cannot be read"):
        read(tmp_path / "missing.toml")


@pytest.mark.parametrize(
    ("schedule", "rates"),
    [
        ("constant", [0.5, 1, 1, 1, 1, 1]),
        ("linear", [0.5, 1, 1, 0.75, 0.5, 0.25]),
        ("cosine", [0.5, 1, 1, 0.868198, 0.55, 0.231802]),
        ("inverse-sqrt", [0.5, 1, (2 / 3) ** 0.5, 0.5**0.5, 0.4**0.5, (1 / 3) ** 0.5]),
    ],
)
def test_golden_learning_rates(schedule, rates):
    leg = Leg(Run(RunOptions(schedule=schedule, warmup=2, learning_rate=1.0), "t", (6,)), 0, 6)
    assert [leg.rate(step) for step in range(6)] == pytest.approx(rates, abs=1e-6)


def test_averages_are_means_of_the_weights_so_far():
    from ptq_eval.pretrain.stacked.averages import Averages

    averages = Averages(RunOptions(ema=(0.5,), lawa=(2, 3), lawa_every=2), torch.zeros(1, 1))
    for step in range(1, 7):
        averages.update(torch.full((1, 1), float(step)), step)
        if step == 4:
            assert set(averages.found()) == {"ema-0.5", "lawa-2"}
    found = {name: float(weights) for name, (_, weights) in averages.found().items()}
    expected = 0.0
    for step in range(1, 7):
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * step
    assert found == pytest.approx({"ema-0.5": expected, "lawa-2": 5.0, "lawa-3": 4.0})


def test_a_name_says_every_option_that_is_not_default():
    """But for lists, which the hash alone holds: two names are never one."""
    other = {
        "width": 8, "layers": 1, "vocab": 300, "context": 16, "batch_size": 4, "schedule": "wsd", "learning_rate": 1e-2,
        "warmup": 4, "decay": 0.5, "weight_decay": 0.2, "clip": 2.0, "seed": 3, "optimizer": "muon", "data_seed": 5,
        "weights": 4, "activations": 8, "kv": "fp8_e4m3", "weights_per": "tensor", "activations_per": "token",
        "kv_per": "head", "low_precision_share": 0.5, "lawa_every": 5, "validation_windows": 8,
    }  # fmt: skip
    plain = Run(RunOptions(), "t", (6,)).name.rpartition("-")[0]
    for name, spec in declared(RunOptions).items():
        if name in other:
            assert Run(RunOptions(**{name: other[name]}), "t", (6,)).name.rpartition("-")[0] != plain
        else:
            assert spec.many or name == "architecture"
    lists = [RunOptions(ema=(0.5,)), RunOptions(lawa=(2,)), RunOptions(ratios=(1,)), RunOptions(betas=(0.8, 0.9))]
    assert len({Run(one, "t", (6,)).name for one in [RunOptions(), *lists]}) == 5


@pytest.mark.slow
def test_one_description_for_a_run_of_a_study_and_one_by_itself(study, text, tmp_path):
    planned = study()
    train(planned, tmp_path / "out")
    run = next(run for run in planned.runs if run.options.schedule == "constant" and run.options.weights == "full")
    config = {name: getattr(run.options, name) for name in declared(PretrainConfig)}
    pretrain(PretrainConfig(**config), text, tmp_path / "one", digest="of the text")
    mine, other = (
        json.loads((folder / "pretrain.json").read_text())
        for folder in (tmp_path / "one", tmp_path / "out" / "runs" / run.name)
    )
    assert other.keys() - mine.keys() == {"text"}
    same = ("params_non_embedding", "params_total", "tokens_per_step", "dtype", "torch")
    assert [mine[name] for name in same] == [other[name] for name in same]


@pytest.mark.slow
def test_stages_are_trained_in_their_order(study, tmp_path):
    planned = study(more='[[grid]]\nstage = 1\nwidth = 8\nschedule = "wsd"\nseed = [7, 8]\n')
    first, seen = planned.until(0), []
    later = {run.name for run in planned.runs} - {run.name for run in first.runs}
    assert len(later) == 2
    for stack in planned.stacks([]):
        names = {leg.run.name for leg in stack}
        assert names <= later or not names & later, "no stack waits for a later stage"
        seen.append((names <= later, bool(stack[0].branch)))
    assert seen == sorted(seen), "and within a stage trunks come before their branches"
    train(first, tmp_path / "out")
    assert all(run.saved == (run.name not in later) * run.planned for run in status(planned, tmp_path / "out"))


def test_a_tokenizer_is_trained_on_the_start_of_a_long_text(study, tmp_path, monkeypatch):
    planned = study()
    one = replace(planned, runs=planned.runs[:1])
    monkeypatch.setattr("ptq_eval.pretrain.stacked.study.TOKENIZER_CHARS", 2000)
    train(one, tmp_path / "out")
    text = tmp_path / "text.txt"
    text.write_text(text.read_text() + "a later word" * 2000)
    train(one, tmp_path / "longer")
    first, second = (next((tmp_path / name / "tokenizers").glob("*/tokenizer.json")) for name in ("out", "longer"))
    assert first.read_bytes() == second.read_bytes()
