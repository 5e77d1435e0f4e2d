"""Contract: a pointer, a link, a pipe or other content in place of a file is named, and what fetches the real one."""

import os

import pytest
import torch

from ptq_eval.checkpoints import discover, verify
from ptq_eval.errors import TrajectoryFileError
from tests.checkpoints.support import codes, only_problem


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_weights_that_are_a_broken_link(save, tmp_path, name):
    folder = tmp_path / "run" / "checkpoint-10"
    save(folder)
    (folder / "model.safetensors").unlink()
    (folder / name).symlink_to("../../blobs/0123")
    problem, error = only_problem(folder.parent)
    assert problem.code == "unreadable"
    assert f"{name} is a link to a file that does not exist" in str(error)
    assert "blobs/0123" in str(error)
    assert "rename" not in str(error)


@pytest.mark.parametrize(
    "name",
    ["model.safetensors", "config.json", "tokenizer.json", "pytorch_model.bin", "tokenizer_config.json", "vocab.json"],
)
@pytest.mark.parametrize("content", [b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", b""])
def test_pointers_and_placeholders(save, tmp_path, name, content):
    folder = tmp_path / "run" / "checkpoint-10"
    save(folder)
    if name == "pytorch_model.bin":
        (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(content)
    problem, error = only_problem(folder.parent)
    assert (problem.code, error.exit_code) == ("unreadable", 12)
    assert name in str(problem)
    assert "git lfs pull" in str(problem)


@pytest.mark.parametrize(
    "name",
    [
        "merges.txt",
        "special_tokens_map.json",
        "added_tokens.json",
        "spiece.model",
        "generation_config.json",
        "qwen.tiktoken",
        "modeling_x.py",
        "chat_template.jinja",
        "trainer_state.json",
    ],
)
@pytest.mark.parametrize("beside", [False, True])
def test_a_pointer_of_git_lfs_in_place_of_any_file(save, tmp_path, name, beside):
    folder = tmp_path / "run" / "checkpoint-10"
    save(folder)
    if beside:  # the tokenizer of a run is in its folder
        (folder / "tokenizer.json").rename(folder.parent / "tokenizer.json")
    (folder.parent if beside else folder).joinpath(name).write_text("version https://git-lfs.github.com/spec/v1\n")
    found = verify(discover([folder.parent])[0])
    assert [str(p) for p in found.problems if p.fatal] == [
        f"{name} is a git-lfs pointer, not the file itself | remedy: run `git lfs pull` in its repository"
    ]


def test_a_missing_shard_among_pointers_is_still_a_pointer(save, tmp_path):
    folder = tmp_path / "run" / "checkpoint-10"
    save(folder, max_shard_size="20KB")
    first, second, *_ = sorted(folder.glob("*-of-*"))
    first.write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    second.unlink()
    assert "git lfs pull" in str(only_problem(folder.parent)[0])


@pytest.mark.parametrize("stem", ["model.safetensors", "pytorch_model.bin"])
def test_an_index_that_is_a_pointer(save, tmp_path, stem):
    folder = tmp_path / "run" / "checkpoint-10"
    save(folder)
    (folder / "model.safetensors").unlink()
    (folder / f"{stem}.index.json").write_text("version https://git-lfs.github.com/spec/v1\n")
    assert f"{stem}.index.json is a git-lfs pointer" in str(only_problem(folder.parent)[0])


SPECIAL = {"folder": os.mkdir, "pipe": os.mkfifo, "device": lambda path: path.symlink_to("/dev/zero")}


@pytest.mark.parametrize("kind", SPECIAL)
@pytest.mark.parametrize(
    "name",
    ["model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors.index.json"],
)
def test_what_is_no_file_is_named_and_never_read(save, tmp_path, name, kind):
    """Reading from a pipe waits for a writer for ever."""
    folder = tmp_path / "run" / "checkpoint-10"
    save(folder)
    (folder / name).unlink(missing_ok=True)
    SPECIAL[kind](folder / name)
    problem, error = only_problem(folder.parent)
    assert (problem.code, error.exit_code) == ("unreadable", 12)
    assert f"{name} is a {kind}" in str(problem) or "device, not a file" in str(problem)


@pytest.mark.parametrize("kind", SPECIAL)
@pytest.mark.parametrize("shards", [True, False])
def test_a_shard_and_a_pickle_that_are_no_files(save, tmp_path, shards, kind):
    folder = tmp_path / "run" / "checkpoint-10"
    save(folder, **({"max_shard_size": "20KB"} if shards else {}))
    name = next(folder.glob("*-of-*")) if shards else folder / "pytorch_model.bin"
    (name if shards else folder / "model.safetensors").unlink()
    SPECIAL[kind](name)
    assert name.name in str(only_problem(folder.parent)[0])
    assert "not a file" in str(only_problem(folder.parent)[0])


@pytest.mark.parametrize("kind", SPECIAL)
def test_other_files_of_a_run_that_are_none(save, tmp_path, kind):
    folder = tmp_path / "run" / "checkpoint-10"
    save(folder)
    SPECIAL[kind](folder.parent / "pretrain.json")  # says only which runs differ in their seed
    SPECIAL[kind](folder / "trainer_state.json")
    found = verify(discover([folder.parent])[0])
    assert bool(found.fatal) == (kind != "folder")
    SPECIAL[kind](folder.parent / "trajectory.yaml")
    with pytest.raises(TrajectoryFileError, match=r"trajectory\.yaml cannot be read"):
        discover([folder.parent])


def test_a_broken_link_beside_whole_weights_is_no_problem(save, tmp_path):
    save(tmp_path / "r" / "step1")
    (tmp_path / "r" / "step1" / "model_ema.safetensors").symlink_to("nowhere")
    assert codes(verify(discover([tmp_path / "r"])[0])) == []


def test_a_pointer_that_is_not_needed_is_no_problem(save, tmp_path):
    save(tmp_path / "r" / "step1")
    (tmp_path / "r" / "step1" / "pytorch_model.bin").write_text("version https://git-lfs.github.com/spec/v1\n")
    found = verify(discover([tmp_path / "r"])[0])
    assert codes(found) == ["unused_files"]


def test_tensors_without_content_are_named(save, tmp_path):
    import torch
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "run" / "checkpoint-10"
    save(folder)
    tensors = {name: torch.empty(0) for name in load_file(folder / "model.safetensors")}
    save_file(tensors, folder / "model.safetensors")
    problem, _ = only_problem(folder.parent)
    assert problem.code == "not_loaded"
    assert "zero_to_fp32" in str(problem)


NOT_THE_FILE = {
    "Xet": (b"# xet version 0\nfilesize = 1\nhash = '0'\n", "hf download"),
    "git-annex": (b"/annex/objects/SHA256E-s9--0.safetensors\n", "git annex get"),
    "web page": (b"\n<!DOCTYPE html>\n<html><body>Sign in</body></html>", "hf auth login"),
    "web page ": (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "download it again"),
    "text": (b'{"error": "Access to model org/m is restricted"}', "fetch it again"),
    "text ": (b"Entry not found", "fetch it again"),
    "compressed": (b"\x1f\x8b\x08" + bytes(300), "decompress it"),
    "GGUF": (b"GGUF\x03\x00\x00\x00" + bytes(300), "measure the original"),
    "HDF5": (b"\x89HDF\r\n" + bytes(300), "fetch it again"),
}


@pytest.mark.parametrize("kind", NOT_THE_FILE)
@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_what_a_file_holds_instead_of_weights_is_named(save, tmp_path, kind, name):
    folder = tmp_path / "run" / "checkpoint-10"
    save(folder)
    (folder / "model.safetensors").unlink()
    content, remedy = NOT_THE_FILE[kind]
    (folder / name).write_bytes(content)
    problem, error = only_problem(folder.parent)
    assert error.exit_code == 12
    assert f"{name} is " in problem.message
    assert kind.strip() in problem.message
    assert remedy in problem.remedy
    assert "corrupt" not in str(problem)


@pytest.mark.parametrize("kind", ["Xet", "git-annex", "web page"])
def test_a_configuration_that_is_a_pointer_or_a_page(save, tmp_path, kind):
    folder = tmp_path / "run" / "checkpoint-10"
    save(folder)
    (folder / "config.json").write_bytes(NOT_THE_FILE[kind][0])
    assert f"config.json is a {kind}" in only_problem(folder.parent)[0].message.replace("pointer of ", "")


def test_weights_in_the_other_format_by_their_content(save, tmp_path):
    folder = tmp_path / "run" / "checkpoint-10"
    save(folder)
    weights = (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    assert "is a safetensors file" in only_problem(folder.parent)[0].message
    torch.save({"w": torch.zeros(3)}, folder / "model.safetensors")
    weights.unlink()
    assert "is a pickle of PyTorch" in only_problem(folder.parent)[0].message


@pytest.mark.parametrize(
    ("target", "by"),
    [("../.git/annex/objects/a", "git annex get"), ("../.dvc/cache/a", "dvc pull"), ("../../blobs/a", "hf download")],
)
def test_a_broken_link_is_fetched_by_what_made_it(save, tmp_path, target, by):
    folder = tmp_path / "run" / "checkpoint-10"
    save(folder)
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").symlink_to(target)
    assert by in only_problem(folder.parent)[0].remedy
