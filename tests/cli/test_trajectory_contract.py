"""Contract: folders, ids, trajectory files and corrections that do not lead to checkpoints say so in one line."""

import json
import shutil

import pytest

from tests.cli.support import save_checkpoint


def test_folders_without_checkpoints(ptq_eval, quick, tmp_path):
    (tmp_path / "nothing").mkdir()
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "notes.txt").write_text("no checkpoint here")
    for command in ("run", "inspect"):
        ptq_eval(command, tmp_path / "nothing").refuses(10, "an empty folder", str(tmp_path / "nothing"), "remedy")
        ptq_eval(command, tmp_path / "missing").refuses(10, "no such folder", str(tmp_path / "missing"), "remedy")
        ptq_eval(command, tmp_path / "notes").refuses(11, "no checkpoint", "checkpoint-N (HF Trainer)", "remedy")
        ptq_eval(command, tmp_path / "notes" / "notes.txt").refuses(10, "notes.txt")
    assert list((tmp_path / "work").iterdir()) == []


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"tokens: {100: [", "cannot be read"),
        (b"\x00\xff\x00", "cannot be read"),
        (b"tokens_per_stp: 5", "did you mean 'tokens_per_step'?"),
        (b"tokens_per_step: many", "trajectory.yaml is not a whole number"),
        (b"- params: 5M", "is not a mapping of keys | got a list | allowed: tokens_per_step,"),
        (b"runs: [run]", "is not a mapping from names | got a list | allowed: runs: {RUN: {params: 1B}}"),
        (b"runs: {run: {runs: {run: {params: 5M}}}}", "cannot hold runs"),
        (b"runs: &a {run: {runs: *a}}", "cannot hold runs"),
        (b"[" * 700, "nested too deeply"),
        (b"params: 7", "params in"),
        (b"schedule_phase: [constant]", "allowed: warmup, constant, decay, annealed"),
        (b"tokens: {150: 9M}", "no checkpoint at a step"),
        (b"exclude: [100, 200, 300]", "every checkpoint is excluded"),
    ],
)
def test_a_bad_trajectory_file(ptq_eval, trajectory, quick, content, said):
    (trajectory / "trajectory.yaml").write_bytes(content)
    ptq_eval("run", trajectory, *quick).refuses(26, said)


@pytest.mark.parametrize("name", ["trajectory.yml", "Trajectory.yaml", "TRAJECTORY.YML", "trajectories.yaml"])
def test_a_bad_name_of_the_trajectory_file(ptq_eval, trajectory, name):
    (trajectory / name).write_text("tokens_per_step: 2M")
    ptq_eval("inspect", trajectory).refuses(26, name, "rename it to trajectory.yaml")


def test_a_folder_in_place_of_the_trajectory_file(ptq_eval, trajectory):
    (trajectory / "trajectory.yaml").mkdir()
    ptq_eval("inspect", trajectory).refuses(26, "trajectory.yaml cannot be read")


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--tokens", "1e9"), "there is 1 count of tokens for 3 checkpoints"),
        (("--exclude", "150"), "no checkpoint at a step"),
    ],
)
def test_corrections_that_do_not_fit(ptq_eval, material, flags, said):
    ptq_eval("inspect", material.run, *flags).refuses(2, said)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--tokens-per-step", "0"), "--tokens-per-step is too small"),
        (("--params", "-3"), "--params is too small"),
        (("--exclude", "first"), "an entry of --exclude is not a whole number"),
    ],
)
def test_corrections_that_cannot_be_read(ptq_eval, material, flags, said):
    ptq_eval("inspect", material.run, *flags).refuses(2, said)


@pytest.mark.parametrize("million", ["1e6", "1M", "1_000_000", "1000000"])
def test_counts_as_people_write_them(ptq_eval, material, million):
    answer = ptq_eval("inspect", material.run, "--json", "--tokens-per-step", million, "--exclude", "2e2,0.3k")
    assert [json.loads(line)["tokens"] for line in answer.out.splitlines()] == [100 * 10**6]


def test_corrections_are_taken_up(ptq_eval, material):
    flags = ("--tokens", "1e6,2e6", "--params", "1000", "--exclude", "200")
    answer = ptq_eval("inspect", material.run, "--json", *flags)
    assert (answer.code, answer.err) == (0, "")
    rows = [json.loads(line) for line in answer.out.splitlines()]
    assert [(row["step"], row["tokens"], row["params"]) for row in rows] == [(100, 10**6, 1000), (300, 2 * 10**6, 1000)]


@pytest.mark.parametrize("state", ['{"global_step": 200', "[]", '{"global_step": "two hundred"}', '{"total_flos": {}}'])
def test_a_senseless_trainer_state_leaves_the_tokens_unknown(ptq_eval, trajectory, state):
    (trajectory / "checkpoint-200" / "trainer_state.json").write_text(state)
    answer = ptq_eval("inspect", trajectory)
    assert "Traceback" not in answer.err
    assert "unreadable_state" in answer.out or "step_disagrees" in answer.out


def test_identical_and_unordered_checkpoints_are_named(ptq_eval, trajectory):
    shutil.copy(trajectory / "checkpoint-100" / "model.safetensors", trajectory / "checkpoint-300")
    answer = ptq_eval("inspect", trajectory)
    answer.refuses(26, "tiny@300", "the same weights as tiny@100")


def test_a_hub_id_without_network(ptq_eval, quick):
    for command in (["inspect"], ["run", *quick]):
        answer = ptq_eval(*command, "hub:no-such-organisation/no-such-model@{step1,step2}")
        answer.refuses(12, "hub:no-such-organisation/no-such-model@step1", "the network")
    ptq_eval("run", "hub:a/b/c@d@e", *quick).refuses(11, "not a hub id", "hub:org/name@{rev,rev}")


def test_fused_experts_are_refused_by_name(ptq_eval, material, quick, tmp_path):
    from transformers import AutoModelForCausalLM, MixtralConfig

    config = MixtralConfig(
        vocab_size=300, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, num_local_experts=2, max_position_embeddings=32,
    )  # fmt: skip
    folder = tmp_path / "experts"
    shutil.copytree(material.run / "checkpoint-100", folder)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    ptq_eval("run", folder, *quick).refuses(23, "fused expert", "model.layers.0.mlp.experts")


def test_a_model_wider_than_its_tokenizer_or_narrower(ptq_eval, material, quick, tmp_path):
    text = material.evaluation.read_text()
    save_checkpoint(tmp_path / "narrow", text, vocab_size=260)
    answer = ptq_eval("run", tmp_path / "narrow", "-o", tmp_path / "out", *quick)
    answer.refuses(17, "outside the model's vocabulary", "0 to 259", "remedy")
