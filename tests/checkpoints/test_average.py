"""Oracle: averages of checkpoints against the mean of loaded models; whatever the files look like."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from ptq_eval.checkpoints import average, discover, local_path, verify, verify_all
from ptq_eval.errors import UnsupportedModelError
from tests.support import models

FIXTURES = Path(__file__).parent / "fixtures"


@pytest.fixture
def run(tmp_path, tokenizer):
    """run(architecture, dtype) -> the verified checkpoints of a run of three."""

    def make(architecture="llama", dtype=torch.float32, **changes):
        for place, step in enumerate((10, 20, 40)):
            model = models.build(architecture, seed=place, **changes).to(dtype)
            models.save(tmp_path / "run" / f"checkpoint-{step}", model, tokenizer, tokens=1000 * step)
        return verify_all(discover([tmp_path / "run"]))

    return make


def loaded(folder):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)


def slow_mean(members):
    """The mean of the state dicts of loaded models, in float64."""
    states = [loaded(local_path(one)).state_dict() for one in members]
    return {name: sum(state[name] for state in states) / len(states) for name in states[0]}


def written(members, folder):
    average.write_average(members, folder)
    return loaded(folder).state_dict()


def near(mine, slow):
    assert set(mine) == set(slow)
    for name, tensor in mine.items():
        torch.testing.assert_close(tensor, slow[name], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gpt-neox", "opt"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_average_is_the_mean_of_the_models(run, architecture, dtype, tmp_path):
    members = run(architecture, dtype)
    near(written(members, tmp_path / "mean"), slow_mean(members))
    with safe_open(tmp_path / "mean" / "model.safetensors", "pt") as stream:
        assert {stream.get_slice(name).get_dtype() for name in stream.keys()} == {"F32"}  # noqa: SIM118


def test_the_last_members_alone_are_averaged(run, tmp_path):
    members = run()
    near(written(members[-2:], tmp_path / "mean"), slow_mean(members[-2:]))


def test_pickles_and_shards_are_read_and_written_in_parts(run, tmp_path, monkeypatch):
    members = run()
    slow = slow_mean(members)
    first, second = (Path(one.location) for one in members[:2])
    torch.save(load_file(first / "model.safetensors"), first / "pytorch_model.bin")
    (first / "model.safetensors").unlink()
    loaded(second).float().save_pretrained(second, max_shard_size="20KB")
    (second / "model.safetensors").unlink(missing_ok=True)
    assert len(list(second.glob("model-*.safetensors"))) > 1
    monkeypatch.setattr(average, "SHARD", 20_000)
    near(written(members, tmp_path / "mean"), slow)
    assert len(list((tmp_path / "mean").glob("model-*.safetensors"))) > 1


@pytest.mark.parametrize("stored", ["lm_head.weight", "model.embed_tokens.weight"])
def test_tied_weights_are_stored_once(run, stored, tmp_path):
    """Also where checkpoints stored both."""
    members = run()
    for one in members:
        path = Path(one.location) / "model.safetensors"
        tensors = load_file(path)
        tied = tensors["model.embed_tokens.weight"]
        save_file({**tensors, "lm_head.weight": tied.clone()}, path, {"format": "pt"})
    average.write_average(members, tmp_path / "mean")
    names = set(load_file(tmp_path / "mean" / "model.safetensors"))
    assert "lm_head.weight" not in names
    assert "model.embed_tokens.weight" in names
    assert verify(average.averaged(members, "mean", tmp_path / "mean")).params_total == members[0].params_total


def test_buffers_are_the_last_ones_and_surplus_is_dropped(run, tmp_path):
    members = run("gpt2")
    for place, one in enumerate(members):
        path = Path(one.location) / "model.safetensors"
        mask = torch.full((1, 1, 8, 8), float(place))
        more = {"transformer.h.0.attn.bias": mask, "value_head.weight": torch.full((4,), float(place))}
        save_file({**load_file(path), **more}, path, {"format": "pt"})
    average.write_average(members, tmp_path / "mean")
    found = load_file(tmp_path / "mean" / "model.safetensors")
    assert found["transformer.h.0.attn.bias"].eq(2.0).all()
    assert "value_head.weight" not in found


def test_configuration_and_tokenizer_are_those_of_the_last(run, tmp_path):
    members = run()
    average.write_average(members, tmp_path / "mean")
    last = Path(members[-1].location)
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "mean" / name).read_bytes() == (last / name).read_bytes()
    found = verify(average.averaged(members, "mean", tmp_path / "mean"))
    assert not found.problems
    assert (found.tokens, found.step, found.schedule_phase) == (40_000, 40, "averaged")
    assert found.tokenizer_sha == members[-1].tokenizer_sha
    state = json.loads((tmp_path / "mean" / "trainer_state.json").read_text())
    assert state["average"] == {"kind": "mean", "checkpoints": 3, "steps": [10, 20, 40]}
    assert discover([tmp_path / "mean"])[0].tokens == 40_000


def test_a_tokenizer_in_the_runs_folder_is_found(run, tmp_path):
    members = run()
    for one in members:
        for path in Path(one.location).glob("token*"):
            shutil.move(path, tmp_path / "run" / path.name)
    average.write_average(members, tmp_path / "mean")
    assert (tmp_path / "mean" / "tokenizer.json").is_file()


@pytest.mark.parametrize("name", ["nanogpt/plain", "litgpt/neox", "olmo/untied", "torchtitan/flat", "olmo_core/llama"])
def test_checkpoints_of_other_formats_are_averaged(name, tmp_path):
    """Of one checkpoint twice, the mean is that checkpoint."""
    (one,) = verify_all(discover([FIXTURES / name]))
    average.write_average([one, one], tmp_path / "mean")
    mine, own = loaded(tmp_path / "mean"), loaded(local_path(one))
    ids = models.ids(2, 8, vocab=own.config.vocab_size)
    torch.testing.assert_close(mine(ids).logits, own(ids).logits)


def test_models_that_differ_have_no_average(run, tmp_path, tokenizer):
    members = run()
    folder = models.save(tmp_path / "other" / "checkpoint-80", models.build("llama", num_hidden_layers=1), tokenizer)
    (other,) = verify_all(discover([folder.parent]))
    with pytest.raises(UnsupportedModelError, match="do not have the same parameters"):
        average.write_average([other, *members], tmp_path / "mean")
    assert not (tmp_path / "mean").exists()
