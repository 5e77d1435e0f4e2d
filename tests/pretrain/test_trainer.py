"""Contract and recovery tests of the training loop, on models of a few hundred to a few thousand parameters."""

from __future__ import annotations

import hashlib
import json
import random
from dataclasses import replace

import numpy as np
import pytest
import torch

from ptq_eval.errors import OptionError, UnknownPluginError
from ptq_eval.pretrain import PretrainConfig, pretrain
from ptq_eval.pretrain.architectures import ARCHITECTURES, configuration, counts, non_embedding
from ptq_eval.pretrain.schedule import branch_start

TINY = PretrainConfig(
    width=8, layers=1, vocab=300, context=16, batch_size=4, ratios=(0.5, 1.0, 2.0), warmup=4, seed=3, learning_rate=1e-2
)


def contents(folder):
    """{path: hash} of what a run leaves, but for the state kept for resuming (a zip file with dates)."""
    files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    return {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in files.items() if name != "state.pt"}


def steps_in(folder):
    return sorted(int(path.name.removeprefix("checkpoint-")) for path in folder.iterdir())


def state_of(checkpoint):
    return json.loads((checkpoint / "trainer_state.json").read_text())


def weights(checkpoint):
    from safetensors.torch import load_file

    return load_file(checkpoint / "model.safetensors")


@pytest.fixture(scope="module")
def finished(text, tmp_path_factory):
    """An uninterrupted run of each schedule."""
    torch.set_num_threads(1)
    return {
        schedule: pretrain(replace(TINY, schedule=schedule), text, tmp_path_factory.mktemp(schedule))
        for schedule in ("constant", "cosine", "wsd")
    }


class Killed(Exception):
    pass


def kill_at(call):
    """A progress callback that ends the run in its `call`-th step, branches included."""
    calls = iter(range(1, 10**9))

    def progress(done, total, loss):
        if next(calls) == call:
            raise Killed

    return progress


@pytest.mark.parametrize(
    ("schedule", "call"), [("constant", 2), ("constant", 20), ("cosine", 30), ("wsd", 9), ("wsd", 24)]
)
def test_recovery_an_interrupted_run_ends_in_the_same_bits(finished, text, tmp_path, schedule, call):
    config = replace(TINY, schedule=schedule)
    with pytest.raises(Killed):
        pretrain(config, text, tmp_path / "run", progress=kill_at(call))
    before = contents(tmp_path / "run")
    assert before.keys() < contents(finished[schedule]).keys()
    pretrain(config, text, tmp_path / "run")
    assert contents(tmp_path / "run") == contents(finished[schedule])


def test_recovery_an_interruption_while_saving_leaves_no_half_checkpoint(finished, text, tmp_path, monkeypatch):
    from transformers import PreTrainedTokenizerFast

    save = PreTrainedTokenizerFast.save_pretrained

    def fail(self, folder, *args, **kwargs):
        if "checkpoint" in str(folder):
            raise Killed
        return save(self, folder, *args, **kwargs)

    monkeypatch.setattr(PreTrainedTokenizerFast, "save_pretrained", fail)
    with pytest.raises(Killed):
        pretrain(TINY, text, tmp_path)
    assert not list((tmp_path / "trunk").glob("checkpoint-*"))
    monkeypatch.undo()
    pretrain(TINY, text, tmp_path)
    assert contents(tmp_path) == contents(finished["constant"])


def test_a_finished_run_is_left_as_it_is(finished, text):
    before = contents(finished["wsd"])
    steps = []
    pretrain(replace(TINY, schedule="wsd"), text, finished["wsd"], progress=lambda *step: steps.append(step))
    assert contents(finished["wsd"]) == before
    assert steps == []


def test_checkpoints_stand_at_the_ratios_asked_for(finished):
    about = json.loads((finished["constant"] / "pretrain.json").read_text())
    per_step, params = TINY.context * TINY.batch_size, about["params_non_embedding"]
    steps = [round(ratio * params / per_step) for ratio in TINY.ratios]
    assert steps_in(finished["constant"] / "trunk") == about["steps_saved"] == steps
    for step, ratio in zip(steps, TINY.ratios):
        state = state_of(finished["constant"] / "trunk" / f"checkpoint-{step}")
        assert state["global_step"] == step
        assert state["num_input_tokens_seen"] == step * per_step
        assert state["num_input_tokens_seen"] / params == pytest.approx(ratio, abs=per_step / params)
        assert (state["schedule_phase"], state["learning_rate"]) == ("constant", TINY.learning_rate)


def test_wsd_anneals_one_branch_for_each_target(finished):
    trunk, annealed = finished["wsd"] / "trunk", finished["wsd"] / "annealed"
    assert sorted(path.name for path in finished["wsd"].iterdir() if path.is_dir()) == [
        "annealed",
        "tokenizer",
        "trunk",
    ]
    assert steps_in(annealed) == steps_in(trunk) == steps_in(finished["constant"] / "trunk")
    for step in steps_in(annealed):
        state = state_of(annealed / f"checkpoint-{step}")
        assert (state["schedule"], state["schedule_phase"], state["global_step"]) == ("wsd", "annealed", step)
        assert 0 < state["learning_rate"] < TINY.learning_rate
        one, other = (weights(root / f"checkpoint-{step}") for root in (trunk, annealed))
        assert any(not torch.equal(one[name], other[name]) for name in one)


def test_a_checkpoint_records_how_it_was_trained(finished):
    end = max(steps_in(finished["wsd"] / "trunk"))
    trunk, branch = (state_of(finished["wsd"] / part / f"checkpoint-{end}") for part in ("trunk", "annealed"))
    start = branch_start(end, warmup=TINY.warmup, decay=TINY.decay)
    assert (trunk["decay_steps"], branch["decay_steps"]) == (0, end - start)
    about = json.loads((finished["wsd"] / "pretrain.json").read_text())
    for state in (trunk, branch):
        assert (state["optimizer"], state["weight_decay"]) == ("adamw", TINY.weight_decay)
        assert (state["seed"], state["data_seed"]) == (TINY.seed, TINY.seed)
        assert state["precision"] == {"weights": "full", "activations": "full", "kv": "full"}
        assert state["in_low_precision"] is False
        assert state["epochs"] == state["epoch"] == end * 64 / about["tokens_per_epoch"]


def test_wsd_branches_do_not_disturb_the_trunk(finished):
    for step in steps_in(finished["constant"] / "trunk"):
        constant, wsd = (weights(finished[s] / "trunk" / f"checkpoint-{step}") for s in ("constant", "wsd"))
        assert all(torch.equal(constant[name], wsd[name]) for name in constant)


def test_cosine_says_that_it_decays(finished):
    states = [
        state_of(path) for path in sorted((finished["cosine"] / "trunk").iterdir(), key=lambda p: int(p.name[11:]))
    ]
    rates = [state["learning_rate"] for state in states]
    assert {state["schedule_phase"] for state in states} == {"decay"}
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] < 0.15 * TINY.learning_rate


@pytest.mark.parametrize("change", [{"seed": 4}, {"learning_rate": 2e-2}, {"ratios": (0.5, 1.0)}, {"schedule": "wsd"}])
def test_a_folder_of_another_run_is_refused_and_left_alone(finished, text, change):
    before = contents(finished["constant"])
    with pytest.raises(OptionError, match="another folder"):
        pretrain(replace(TINY, **change), text, finished["constant"])
    assert contents(finished["constant"]) == before


def test_a_folder_of_another_text_is_refused(finished, text):
    with pytest.raises(OptionError, match="other text"):
        pretrain(TINY, text + "one more line", finished["constant"])


def test_no_global_generator_is_touched(text, tmp_path):
    np.random.seed(1)  # noqa: NPY002
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()  # noqa: NPY002
    pretrain(replace(TINY, ratios=(0.2,)), text, tmp_path)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    assert np.array_equal(np.random.get_state()[1], before[2])  # noqa: NPY002


def test_the_weights_depend_on_the_seed_alone(text, tmp_path):
    config = replace(TINY, ratios=(0.2,))
    runs = []
    for name, seed, outside in (("a", 3, 0), ("b", 3, 99), ("c", 4, 0)):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(outside)
            out = pretrain(replace(config, seed=seed), text, tmp_path / name)
        runs.append(contents(out / "trunk"))
    assert runs[0] == runs[1] != runs[2]


@pytest.mark.parametrize("architecture", sorted(ARCHITECTURES))
def test_each_architecture_learns_and_loads_back(architecture, text, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    config = replace(
        TINY,
        architecture=architecture,
        width=16,
        batch_size=8,
        warmup=2,
        ratios=(1.5 if architecture == "llama" else 2.5,),
    )
    losses = []
    out = pretrain(config, text, tmp_path, progress=lambda done, total, loss: losses.append(loss))
    (folder,) = (out / "trunk").iterdir()
    model, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = torch.tensor([tokenizer(text)["input_ids"][:16]] * 1)
    with torch.no_grad():
        loss = model(input_ids=ids, labels=ids).loss.item()
    assert losses[0] == pytest.approx(np.log(config.vocab), rel=0.1)
    assert loss < losses[0] - 0.5


@pytest.mark.parametrize("architecture", sorted(ARCHITECTURES))
def test_oracle_params_counted_by_name(architecture):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_config(configuration(architecture, width=16, layers=2, vocab=300, context=16))
    outside = ("embed", "wte", "wpe", "lm_head")
    by_name = sum(p.numel() for name, p in model.named_parameters() if not any(word in name for word in outside))
    assert non_embedding(model) == by_name > 0
    options = PretrainConfig(architecture=architecture, width=16, layers=2, vocab=300, context=16)
    assert counts(options) == (by_name, model.num_parameters())


def test_senseless_architectures():
    with pytest.raises(UnknownPluginError, match="did you mean 'llama'"):
        configuration("lama", width=16, layers=1, vocab=300, context=16)
    for width in (0, 4, 20):
        with pytest.raises(OptionError, match="multiple of 8"):
            configuration("llama", width=width, layers=1, vocab=300, context=16)
