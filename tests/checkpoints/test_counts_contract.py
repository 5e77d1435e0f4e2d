"""Counts that the files of frameworks state: what no training can have is unknown, with the reason; no copy is lost."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml

from ptq_eval.checkpoints import discover, inspection_rows, verify_all
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
