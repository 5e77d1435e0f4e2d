"""Contract: the files that are hashed are those that are loaded, whatever is beside them."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from ptq_eval.checkpoints.weights import read_weights
from ptq_eval.errors import UnreadableCheckpointError
from ptq_eval.models.language_model import LanguageModel
from ptq_eval.models.offload import OffloadedModel
from ptq_eval.models.weight_files import find_weights, pinned
from tests.support import models as core_models


@pytest.fixture
def folder(tmp_path):
    return core_models.save(tmp_path / "checkpoint-1", core_models.build("llama"))


@pytest.fixture
def other(folder):
    """Weights of the same names and shapes, all of them larger."""
    return {name: 2 * tensor for name, tensor in load_file(folder / "model.safetensors").items()}


def logits(folder):
    return LanguageModel.load(folder).logits(core_models.ids())


def test_other_files_change_nothing(folder, other):
    plain = logits(folder)
    torch.save(other, folder / "pytorch_model.bin")
    for name in ("model.fp16.safetensors", "consolidated.safetensors", "adapter_model.safetensors"):
        save_file(other, folder / name, metadata={"format": "pt"})
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "base_model_name_or_path": "absent"}))
    save_file(other, folder / "model-00001-of-00001.safetensors", metadata={"format": "pt"})
    index = {"weight_map": {name: "model-00001-of-00001.safetensors" for name in other}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert torch.equal(logits(folder), plain)
    assert len(find_weights(folder).unused(folder)) == 5


def test_a_file_named_in_the_configuration_is_not_loaded_instead(folder, other):
    plain = logits(folder)
    save_file(other, folder / "model.other.safetensors", metadata={"format": "pt"})
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**content, "transformers_weights": "model.other.safetensors"}))
    assert torch.equal(logits(folder), plain)


def test_shards_of_an_earlier_save_change_nothing(tmp_path, other):
    core_models.build("llama").save_pretrained(tmp_path / "m", max_shard_size="20KB")
    plain = logits(tmp_path / "m")
    save_file(other, tmp_path / "m" / "model-00001-of-00099.safetensors", metadata={"format": "pt"})
    assert torch.equal(logits(tmp_path / "m"), plain)


def test_an_index_that_points_elsewhere_is_refused(folder):
    (folder / "model.safetensors").rename(folder.parent / "elsewhere.safetensors")
    index = {"weight_map": {"lm_head.weight": "../elsewhere.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UnreadableCheckpointError, match="outside its folder"):
        find_weights(folder)


def test_the_links_are_gone_after_loading_and_stay_where_weights_are_read_later(folder, tmp_path):
    with pinned(folder) as place:
        assert {path.name for path in place.iterdir()} == {"config.json", "model.safetensors"}
    assert not place.exists()
    whole = logits(folder)
    parts = OffloadedModel.load_from_disk(folder, tmp_path / "scratch")
    assert torch.equal(parts.logits(core_models.ids()), whole)


def test_a_relative_folder_loads(folder, monkeypatch):
    plain = logits(folder)
    monkeypatch.chdir(folder.parent)
    assert torch.equal(logits(folder.name), plain)
    shutil.copytree(folder, folder.parent / "b#1")
    assert torch.equal(logits("b#1"), plain)


WRAPPED = {
    "model": lambda ts: {"model": ts},
    "state_dict": lambda ts: {"state_dict": ts, "epoch": 3, "rng": torch.zeros(4)},
    "optimizer beside": lambda ts: {"module": ts, "optimizer": {"state": {0: {"m": torch.zeros(2)}}, "lr": 1e-3}},
}


@pytest.mark.parametrize("kind", WRAPPED)
@pytest.mark.parametrize("offloaded", [False, True])
@pytest.mark.parametrize("zipped", [True, False])
def test_a_state_dict_within_a_dict_is_hashed_and_loaded(folder, kind, offloaded, zipped, tmp_path):
    plain, sha = logits(folder), read_weights((folder / "model.safetensors",)).sha
    content = WRAPPED[kind](load_file(folder / "model.safetensors"))
    torch.save(content, folder / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
    (folder / "model.safetensors").unlink()
    assert read_weights((folder / "pytorch_model.bin",)).sha == sha
    model = OffloadedModel.load_from_disk(folder, tmp_path / "scratch") if offloaded else LanguageModel.load(folder)
    assert torch.equal(model.logits(core_models.ids()), plain)


def test_of_several_state_dicts_none_is_chosen(folder):
    tensors = load_file(folder / "model.safetensors")
    torch.save({"model": tensors, "ema": tensors}, folder / "pytorch_model.bin")
    with pytest.raises(UnreadableCheckpointError, match=r"2 state dicts \| got model, ema") as raised:
        read_weights((folder / "pytorch_model.bin",))
    exec(raised.value.remedy.partition(": ")[2].replace("'pytorch_model.bin'", "FILE"),
         {"torch": torch, "FILE": folder / "pytorch_model.bin"})  # fmt: skip
    assert read_weights((folder / "pytorch_model.bin",)).tensors.keys() == tensors.keys()
