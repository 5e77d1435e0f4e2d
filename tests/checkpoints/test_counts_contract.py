"""Counts that the files of frameworks state: what no training can have is unknown, with the reason; no copy is lost."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml

from ptq_eval.checkpoints import discover, inspection_rows, verify_all, warnings
from ptq_eval.checkpoints.counts import count_in, with_tokens
from ptq_eval.report import inspection_table
from tests.checkpoints.support import codes, nanochat_run

FIXTURES = Path(__file__).parent / "fixtures"
ABSURD = [-3, 2.5, "many", 10**18, float("nan"), True, [1]]


def nanogpt(root, **changes):
    """A folder of nanoGPT by the changes of each file; None takes an entry away."""
    root.mkdir(parents=True)
    saved = torch.load(FIXTURES / "nanogpt" / "plain" / "ckpt.pt", weights_only=True)
    for place, (name, own) in enumerate(changes.items()):
        entries = {key: value for key, value in {**saved, **own}.items() if value is not None}
        entries["model"] = {key: tensor + place / 1000 for key, tensor in saved["model"].items()}
        torch.save(entries, root / f"{name}.pt")
    return root


def printed(found):
    from rich.console import Console

    console = Console(width=1000)
    with console.capture() as capture:
        console.print(inspection_table(inspection_rows(found)))
    return capture.get()


def test_every_copy_of_a_nanogpt_checkpoint_is_one_whatever_its_name(tmp_path):
    names = {"ckpt": {"iter_num": 100}, "ckpt_50": {"iter_num": 50}, "my best (copy) #1": {"iter_num": 25}}
    folder = nanogpt(tmp_path / "out", **names)
    torch.save({"tokens": torch.ones(3)}, folder / "data.pt")
    (folder / "cut.pt").write_bytes((folder / "ckpt.pt").read_bytes()[:200])
    found = verify_all(discover([folder]))
    assert {c.step for c in found if not c.fatal} == {25, 50, 100}
    assert [c.revision for c in found if c.fatal] == ["cut"]


def test_copies_are_found_without_one_of_the_usual_name(tmp_path):
    names = {"model at 100": {"iter_num": 100}, "model at 50": {"iter_num": 50}}
    folder = nanogpt(tmp_path / "out", **names)
    (folder / "model at 70.pt").write_bytes((folder / "model at 50.pt").read_bytes()[:200])
    found = verify_all(discover([folder]))
    assert {c.step for c in found if not c.fatal} == {50, 100}
    assert {c.format for c in found} == {"nanogpt"}
    assert [c.revision for c in found if c.fatal] == ["model at 70"]


@pytest.mark.parametrize("value", ABSURD)
def test_an_absurd_step_of_nanogpt_is_unknown_with_the_reason(tmp_path, value):
    folder = nanogpt(tmp_path / "out", ckpt={"iter_num": 100}, ckpt_80={"iter_num": value})
    found = {c.revision: c for c in verify_all(discover([folder]))}
    assert (found["ckpt"].step, found["ckpt_80"].step, found["ckpt_80"].tokens) == (100, None, None)
    assert "iter_num of the file is" in found["ckpt_80"].tokens_note
    assert "tokens_unknown" in codes(found["ckpt_80"])


@pytest.mark.parametrize("value", ABSURD)
def test_an_absurd_batch_is_unknown_with_the_reason(tmp_path, value):
    saved = nanogpt(tmp_path / "nanogpt", ckpt={"config": {"gradient_accumulation_steps": value}})
    nanochat_run(tmp_path / "nanochat", "E", (10,), meta={"total_batch_size": value})
    for form, file, entry in (
        ("litgpt", "hyperparameters.yaml", "global_batch_size"),
        ("olmo", "config.yaml", "global_train_batch_size"),
        ("olmo_core", "config.json", "global_batch_size"),
    ):
        shutil.copytree(FIXTURES / form, tmp_path / form)
        for path in (tmp_path / form).rglob(file):
            options = yaml.safe_load(path.read_text())
            part = {"litgpt": "train", "olmo_core": "data_loader"}.get(form)
            (options[part] if part else options)[entry] = value
            path.write_text(json.dumps(options) if file.endswith("json") else yaml.safe_dump(options))
        for path in (tmp_path / form).rglob("train.pt"):
            path.unlink()
    for folder in (saved, tmp_path / "nanochat", *(tmp_path / form for form in ("litgpt", "olmo", "olmo_core"))):
        found = discover([folder])
        assert found
        for checkpoint in found:
            assert checkpoint.tokens is None, checkpoint
            assert ", not a whole number from 1 to" in checkpoint.tokens_note, checkpoint


def with_batches(form, root, batches):
    """A run of a fixture's checkpoint at steps 100, 200 …, whose files state one batch each."""
    source, sub, file, part, entry = {
        "litgpt": ("llama/step-00000250", "step-{:08}", "hyperparameters.yaml", "train", "global_batch_size"),
        "olmo": ("tied/step250-unsharded", "step{}-unsharded", "config.yaml", "", "global_train_batch_size"),
        "olmo_core": ("llama/step250", "step{}", "config.json", "data_loader", "global_batch_size"),
    }[form]
    for place, batch in enumerate(batches, 1):
        folder = root / sub.format(100 * place)
        shutil.copytree(FIXTURES / form / source, folder, ignore=shutil.ignore_patterns("train.pt"))
        options = yaml.safe_load((folder / file).read_text())
        (options[part] if part else options)[entry] = batch
        (folder / file).write_text(json.dumps(options) if file.endswith("json") else yaml.safe_dump(options))
    return root


@pytest.mark.parametrize("form", ["nanogpt", "nanochat", "litgpt", "olmo", "olmo_core"])
def test_d_is_unknown_from_the_checkpoint_on_whose_files_state_another_batch(tmp_path, form):
    """The step at which a resumed training began to use it is not stored, and the last batch was not that of all."""
    batches = (512, 512, 1024, 1024)
    if form == "nanogpt":
        names = {
            f"ckpt_{100 * place}": {
                "iter_num": 100 * place,
                "config": {"gradient_accumulation_steps": batch, "batch_size": 1, "block_size": 32},
            }
            for place, batch in enumerate(batches, 1)
        }
        folder = nanogpt(tmp_path / "run", **names)
    elif form == "nanochat":
        folder = nanochat_run(tmp_path / "run", "E", (100, 200, 300, 400))
        for path, batch in zip(sorted(folder.rglob("meta_*.json")), batches):
            path.write_text(json.dumps({**json.loads(path.read_text()), "total_batch_size": batch}))
    else:
        folder = with_batches(form, tmp_path / "run", batches)
    found = discover([folder])
    per_step = found[0].tokens // 100
    assert [c.tokens for c in found] == [100 * per_step, 200 * per_step, None, None]
    least, most = 300 * per_step, 400 * per_step
    assert f"D at step 300 is from {least:,} to {most:,}" in found[2].tokens_note
    assert found[3].tokens_note == found[2].tokens_note
    given = discover([folder], overrides={"tokens_per_step": per_step})
    assert [c.tokens for c in given] == [100 * k * per_step for k in (1, 2, 3, 4)]


@pytest.mark.parametrize("value", [*ABSURD, 0])
def test_a_count_that_no_training_has_is_ignored_with_the_reason(tmp_path, value):
    shutil.copytree(FIXTURES / "olmo" / "tied" / "step250-unsharded", tmp_path / "olmo" / "step250-unsharded")
    torch.save({"global_train_tokens_seen": value}, tmp_path / "olmo" / "step250-unsharded" / "train.pt")
    shutil.copytree(FIXTURES / "nanotron" / "tp2" / "250", tmp_path / "nanotron" / "250")
    path = tmp_path / "nanotron" / "250" / "checkpoint_metadata.json"
    content = json.loads(path.read_text())
    content["metas"]["consumed_tokens_total"] = value
    path.write_text(json.dumps(content))
    for form, entry in (("olmo", "global_train_tokens_seen of train.pt"), ("nanotron", "consumed_tokens_total")):
        (found,) = discover([tmp_path / form])
        assert (found.tokens, found.tokens_source) == (64_000, "derived")
        (problem,) = [problem for problem in found.problems if problem.code == "count_ignored"]
        assert entry in problem.message
        assert "not a whole number from 1 to" in problem.message
        assert any(entry in line for line in warnings([found]))


@pytest.mark.parametrize("option", ["warmdown_ratio", "warmup_ratio"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), "much", None])
def test_a_share_of_the_schedule_that_is_no_share_leaves_the_checkpoint_readable(tmp_path, option, value):
    options = {"num_iterations": 20, "warmdown_ratio": 0.5, option: value}
    (found,) = discover(
        [nanochat_run(tmp_path / "run", "E", (10,), meta={"total_batch_size": 64, "user_config": options})]
    )
    assert found.tokens is not None
    assert not found.fatal


def test_the_reason_is_said_of_one_that_is_excluded_too(tmp_path):
    folder = nanogpt(tmp_path / "out", ckpt={"iter_num": 100}, ckpt_20={"iter_num": None}, ckpt_60={"config": None})
    shutil.copy(folder / "ckpt_20.pt", folder / "ckpt_21.pt")
    found = verify_all(discover([folder]))
    assert any(c.fatal and c.tokens is None for c in found)
    text = printed(found)
    assert "the file has no iter_num" in text
    assert "D: not known of ckpt_21: the file has no iter_num; give D of every checkpoint with --tokens" in text
    assert "config of the file has no gradient_accumulation_steps" in text


@pytest.mark.parametrize("value", [200, "200", 200.0])
def test_a_text_that_is_a_whole_number_is_one(value):
    assert count_in({"step": value}, "step", "the file") == (200, "")


def test_more_steps_and_tokens_than_any_training_has_are_unknown():
    assert with_tokens(10**10, 8, "step × batch").step is None
    assert with_tokens(10**9, 10**9, "step × batch").tokens is None


def test_a_state_dict_with_an_absurd_step_says_so(tmp_path):
    from tests.checkpoints.test_converted_damaged import CONFIG, plain_llama

    torch.save({"model": plain_llama(CONFIG), "step": -5}, tmp_path / "weights.pt")
    (found,) = discover([tmp_path], overrides={"architecture": CONFIG})
    assert found.step is None
    assert "step of the file is -5" in found.tokens_note
