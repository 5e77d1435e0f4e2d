"""Contract and property: files that are cut, damaged, absent or unsafe are named; none raises or runs code."""

import os
import shutil

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ptq_eval.checkpoints import discover, error_for, verify, verify_all
from tests.checkpoints.support import codes, one


@pytest.mark.parametrize("keep", [0, 4, 100, -1])
def test_truncated_safetensors(save, tmp_path, keep):
    save(tmp_path / "m")
    file = tmp_path / "m" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    found = one(tmp_path / "m")
    assert codes(found) == ["unreadable"]
    assert found.fatal


@settings(max_examples=60, deadline=None)
@given(place=st.integers(0, 3000), byte=st.integers(0, 255))
def test_property_a_damaged_byte_never_raises(damaged, place, byte):
    checkpoint, file, content = damaged
    file.write_bytes(content[:place] + bytes([byte]) + content[place + 1 :])
    found = verify(checkpoint)
    assert found.fatal or len(found.weights_sha) == 64


@pytest.fixture(scope="module")
def damaged(save, tmp_path_factory):
    folder = tmp_path_factory.mktemp("damaged")
    save(folder)
    (checkpoint,) = discover([folder])
    return checkpoint, folder / "model.safetensors", (folder / "model.safetensors").read_bytes()


@pytest.mark.parametrize("what", ["shard", "index"])
def test_missing_shard(save, tmp_path, what):
    save(tmp_path / "m", max_shard_size="20KB")
    gone = next(iter(sorted((tmp_path / "m").glob("*-of-*" if what == "shard" else "*.index.json"))))
    gone.unlink()
    (problem,) = one(tmp_path / "m").problems
    assert (problem.code, problem.fatal) == ("missing_shard", True)
    assert gone.name in problem.message


class Payload:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt"])
def test_a_pickle_with_code_is_refused_and_does_not_run(save, tmp_path, name):
    import torch

    save(tmp_path / "m")
    (tmp_path / "m" / "model.safetensors").unlink()
    torch.save({"w": torch.zeros(2), "x": Payload(tmp_path / "ran")}, tmp_path / "m" / name)
    found = one(tmp_path / "m")
    assert codes(found) == ["unsafe_pickle"]
    assert not (tmp_path / "ran").exists()
    assert error_for(found, found.problems[0]).exit_code == 13


@pytest.mark.parametrize("content", ["cut", "text", "list"])
def test_a_corrupt_pickle(save, tmp_path, content):
    import torch

    save(tmp_path / "m")
    (tmp_path / "m" / "model.safetensors").unlink()
    file = tmp_path / "m" / "pytorch_model.bin"
    torch.save({"w": torch.zeros(5000)} if content == "cut" else [1, 2], file)
    if content != "list":
        file.write_bytes(file.read_bytes()[:5000] if content == "cut" else b"hello world")
    assert codes(one(tmp_path / "m")) == ["unreadable"]


def test_weights_absent(save_run, tmp_path):
    run = save_run(tmp_path / "r", ["step1"])
    (run / "step1" / "model.safetensors").unlink()
    assert codes(one(run)) == ["unreadable"]
    (checkpoint,) = discover([run])
    shutil.rmtree(run / "step1")
    assert codes(verify(checkpoint))[0] in ("config_missing", "missing_shard")


def test_a_hub_id_that_cannot_be_fetched(monkeypatch, tmp_path):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    (found,) = verify_all(discover(["hub:org/absent@step1"]))
    assert codes(found)[0] == "unreadable"


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("config.json", '{"a":' * 100_000 + "1" + "}" * 100_000, "nested too deeply"),
        ("model.safetensors.index.json", '{"weight_map": {"a": 5}}', "5 is no name of a file"),
    ],
)
def test_files_of_json_that_hold_something_else(save, tmp_path, name, content, said):
    save(tmp_path / "m")
    (tmp_path / "m" / "model.safetensors").rename(tmp_path / "m" / "model-00001-of-00001.safetensors")
    (tmp_path / "m" / name).write_text(content)
    assert said in one(tmp_path / "m").fatal[0].message


def test_bfloat16_shards_and_pickles(save, tmp_path):
    import torch

    save(tmp_path / "bf16", dtype=torch.bfloat16)
    save(tmp_path / "shards", max_shard_size="20KB")
    save(tmp_path / "bin")
    save(tmp_path / "pt")
    for folder, name in (("bin", "pytorch_model.bin"), ("pt", "model.pt")):
        weights = tmp_path / folder / "model.safetensors"
        from safetensors.torch import load_file

        torch.save(load_file(weights), tmp_path / folder / name)
        weights.unlink()
    found = {name: one(tmp_path / name) for name in ("bf16", "shards", "bin", "pt")}
    assert [codes(checkpoint) for checkpoint in found.values()] == [[], [], [], ["not_loaded"]]
    assert "pytorch_model.bin" in found["pt"].problems[0].message  # readable, but not by transformers
    assert len({checkpoint.weights_sha for checkpoint in found.values()}) == 2
