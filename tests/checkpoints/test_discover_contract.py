"""Contract and property: what `discover` finds in each layout, and what it refuses."""

import json
import random
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ptq_eval import plugins
from ptq_eval.checkpoints import CheckpointFormat, Position, discover, local_path
from ptq_eval.checkpoints.discover import _order
from ptq_eval.errors import (
    EmptyFolderError,
    NoCheckpointError,
    UnreadableCheckpointError,
)
from ptq_eval.records import Checkpoint


def steps(checkpoints):
    return [checkpoint.step for checkpoint in checkpoints]


def test_hf_trainer_is_explicit_and_sorted_by_number(trainer_run):
    found = discover([trainer_run])
    assert steps(found) == [200, 500, 1000]
    assert [c.tokens for c in found] == [200 * 4096, 500 * 4096, 1000 * 4096]
    first = found[0]
    assert (first.run, first.format, first.tokens_source) == ("small", "hf_trainer", "explicit")
    assert (first.learning_rate, first.schedule_phase) == (1e-3, "constant")
    assert first.params == first.params_total - 48 * 32
    assert first.architecture == "LlamaForCausalLM"
    assert local_path(first) == trainer_run / "checkpoint-200"


def test_tokens_from_flops_where_the_trainer_did_not_count(save_run, tmp_path):
    run = save_run(tmp_path / "r", ["checkpoint-10"])
    n_hf = discover([run])[0].params  # the head is tied, so Hugging Face's count is the true one
    state = {"global_step": 10, "num_input_tokens_seen": 0, "total_flos": 6.0 * n_hf * 12_800}
    (run / "checkpoint-10" / "trainer_state.json").write_text(json.dumps(state))
    (found,) = discover([run])
    assert (found.tokens, found.tokens_source) == (12_800, "derived")
    assert "total_flos" in found.tokens_note


def test_a_schedule_phase_of_its_own_and_step_zero(save_run, tmp_path):
    run = save_run(tmp_path / "r", ["checkpoint-0"], lambda _: {"global_step": 0, "schedule_phase": "annealed"})
    (found,) = discover([run])
    assert (found.tokens, found.tokens_source, found.schedule_phase) == (0, "derived", "annealed")


def test_a_broken_or_disagreeing_trainer_state_is_noted(trainer_run):
    (trainer_run / "checkpoint-200" / "trainer_state.json").write_text("{")
    (trainer_run / "checkpoint-500" / "trainer_state.json").write_text('{"global_step": 501}')
    found = discover([trainer_run])
    assert [[p.code for p in c.problems] for c in found] == [["unreadable_state"], ["step_disagrees"], []]
    assert found[0].tokens is None
    assert found[1].fatal


@pytest.mark.parametrize(
    ("folder", "labels", "tokens"),
    [
        ("pythia-70m", ["step1000", "step512"], [512 * 2**21, 1000 * 2**21]),
        ("mine", ["step1000", "step512"], [None, None]),
        (
            "OLMo-2-0425-1B",
            [
                "stage2-ingredient1-step1000-tokens3B",
                "stage1-step10000-tokens21B",
                "stage1-step9000-tokens19B",
            ],
            [9000 * 2**21, 10_000 * 2**21, (1_907_359 + 1000) * 2**21],
        ),
        ("SmolLM2-135M", ["step-240000", "step-2000"], [2000 * 2**20, 240_000 * 2**20]),
        ("amber", ["ckpt_010", "ckpt_009"], [10 * 3_495_886_848, 11 * 3_495_886_848]),
    ],
)
def test_labelled_folders(save_run, tmp_path, folder, labels, tokens):
    found = discover([save_run(tmp_path / folder, labels)])
    assert [c.tokens for c in found] == tokens
    assert {(c.run, c.format) for c in found} == {(folder, "numbered")}
    assert [c.revision for c in found] == sorted(labels, key=[c.revision for c in found].index)
    if None in tokens:
        assert "--tokens-per-step" in found[0].tokens_note


def test_hub_cache_places_snapshots_by_their_revisions(hub_cache):
    root = hub_cache(
        "EleutherAI/pythia-70m",
        {"aaa": ["step1000"], "bbb": ["main", "step143000"], "ccc": [], "ddd": ["refs/x"]},
    )
    (root / "snapshots" / "eee").mkdir()
    (root / "snapshots" / "eee" / "config.json").write_text("{}")
    for place in (root, root.parent, root.parent.parent):
        found = [c for c in discover([place]) if c.run == "EleutherAI/pythia-70m"]
        assert [c.revision for c in found] == ["step1000", "step143000", "ccc", "refs/x"]
        assert [c.tokens for c in found] == [1000 * 2**21, 143_000 * 2**21, None, None]
        assert {c.format for c in found} == {"hub_cache"}
        assert (local_path(found[0]) / "model.safetensors").is_file()


def test_hub_ids_need_no_network_to_be_found():
    found = discover(["hub:EleutherAI/pythia-70m@{step2000,step1000}"])
    assert steps(found) == [1000, 2000]
    assert found[0].location == "hub:EleutherAI/pythia-70m@step1000"
    assert (found[0].run, found[0].tokens, found[0].params) == ("EleutherAI/pythia-70m", 1000 * 2**21, None)
    assert discover(["hub:gpt2"])[0].revision == "main"
    with pytest.raises(NoCheckpointError, match="hub:org/name"):
        discover(["hub:a/b/c@{x"])


def test_hub_ids_open_from_the_local_cache(hub_cache, monkeypatch):
    from huggingface_hub import constants

    root = hub_cache("org/tiny", {"a" * 40: ["step5"]})
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(root.parent))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    (here,) = discover(["hub:org/tiny@step5"])
    assert (local_path(here) / "model.safetensors").is_file()
    (elsewhere,) = discover(["hub:org/tiny@step6"])
    with pytest.raises(UnreadableCheckpointError, match="cannot be fetched"):
        local_path(elsewhere)


def test_one_checkpoint_alone(save, save_run, tmp_path):
    save(tmp_path / "model")
    (alone,) = discover([tmp_path / "model"])
    assert (alone.run, alone.step, alone.tokens, alone.format) == ("model", None, None, "single")
    run = save_run(tmp_path / "pythia-70m", ["step8", "step16", "step32"])
    members = discover([run / "step16", run / "step8"])
    assert [(c.run, c.step, c.tokens) for c in members] == [
        ("pythia-70m", 8, 2**24),
        ("pythia-70m", 16, 2**25),
    ]


def test_several_runs_are_named_by_their_folders(save_run, save, tmp_path):
    root = tmp_path / "study"
    save_run(root / "n1", ["checkpoint-1", "checkpoint-2"])
    save_run(root / "deep" / "n2", ["checkpoint-1"])
    save_run(root / "n1" / "annealed", ["checkpoint-2"])
    save(root / "final")
    (root / "n1" / "latest").symlink_to("checkpoint-2")
    save(root / ".hidden" / "checkpoint-9")
    found = discover([root])
    assert [(c.run, c.step) for c in found] == [
        ("deep/n2", 1),
        ("final", None),
        ("n1", 1),
        ("n1", 2),
        ("n1/annealed", 2),
    ]


def test_runs_of_one_name_in_two_roots_stay_apart(save_run, tmp_path):
    for place in ("x", "y"):
        save_run(tmp_path / place / "run", ["checkpoint-1"])
    found = discover([tmp_path / "x" / "run", tmp_path / "y" / "run", tmp_path / "x" / "run"])
    assert [c.run for c in found] == ["x/run", "y/run"]


def test_nothing_there(tmp_path):
    with pytest.raises(EmptyFolderError):
        discover([tmp_path])
    with pytest.raises(EmptyFolderError):
        discover([tmp_path / "absent"])
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / "checkpoint-5").mkdir()
    with pytest.raises(NoCheckpointError, match="checkpoint-N"):
        discover([tmp_path])


@pytest.mark.parametrize(
    ("name", "what", "remedy"),
    [
        ("", "the name of the folder is empty", "write ."),
        (" ", "the name of the folder is empty", "write ."),
        ("run/checkpoint-1/model.safetensors", "a file, not a folder", "run/checkpoint-1"),
        ("run/notes.txt", "a file, not a folder", "give its folder"),
        ("run/all.tar.gz", "a file, not a folder", "unpack it"),
        ("rum", "no such folder", "did you mean 'run'?"),
        ("nowhere/at/all", "no such folder", "give a folder with checkpoints"),
    ],
)
def test_what_is_no_folder_is_called_what_it_is(save_run, tmp_path, monkeypatch, name, what, remedy):
    run = save_run(tmp_path / "run", ["checkpoint-1"])
    for file in ("notes.txt", "all.tar.gz"):
        (run / file).touch()
    monkeypatch.chdir(tmp_path)  # which does hold a run
    with pytest.raises(EmptyFolderError) as raised:
        discover([name])
    assert what in str(raised.value)
    assert remedy in raised.value.remedy


class Iterations(CheckpointFormat):
    name = "iterations"

    def position(self, model, label):
        number = label.removeprefix("iter_")
        return Position(int(number), 7 * int(number), "derived", "a plug-in") if number.isdigit() else None


def test_a_format_from_outside_reads_folders_and_revisions(save_run, hub_cache, tmp_path, monkeypatch):
    builtin = plugins.load_all("checkpoints")
    monkeypatch.setattr(plugins, "load_all", lambda kind: {**builtin, "iterations": Iterations})
    run = save_run(tmp_path / "run", ["iter_10", "iter_9"])
    assert [(c.step, c.tokens, c.format) for c in discover([run])] == [(9, 63, "iterations"), (10, 70, "iterations")]
    (cached,) = discover([hub_cache("org/name", {"abc": ["iter_4", "main"]})])
    assert (cached.revision, cached.tokens, cached.format) == ("iter_4", 28, "hub_cache")
    assert discover(["hub:org/name@iter_5"])[0].tokens == 35


def test_a_folder_that_may_not_be_read_is_one_line(trainer_run, monkeypatch):
    def denied(folder):
        raise PermissionError(13, "Permission denied", str(folder))

    monkeypatch.setattr("ptq_eval.checkpoints.base.subfolders", denied)
    with pytest.raises(EmptyFolderError, match="Permission denied"):
        discover([trainer_run])


@given(st.lists(st.integers(0, 10**7), unique=True, min_size=1), st.randoms(use_true_random=False))
def test_property_order_is_numeric_whatever_the_order_found(numbers, rng: random.Random):
    found = [Checkpoint("r", number, None, None, revision=f"step{number}") for number in numbers]
    rng.shuffle(found)
    assert steps(sorted(found, key=_order)) == sorted(numbers)


def test_importing_and_refusing_an_empty_folder_takes_no_torch(tmp_path):
    code = (
        "import sys, ptq_eval.checkpoints as c\n"
        "try: c.discover([sys.argv[1]])\n"
        "except Exception as error: print(type(error).__name__, 'torch' in sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert ran.stdout.split() == ["EmptyFolderError", "False"]
