"""Contract and property: every kind of bad checkpoint is named; none raises or runs code; each has its exit code."""

import os
import shutil

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ptq_eval.checkpoints import Overrides, discover, error_for, verify, verify_all, warnings
from ptq_eval.models.loading import tokenizer_folder
from ptq_eval.records import Problem
from tests.checkpoints.support import codes, llama_config, write_tokenizer


def one(folder, **options):
    return verify(discover([folder])[0], **options)


def edit(folder, change):
    """Rewrite a folder's weights with `change(tensors)`."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def configs():
    import transformers as t

    small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 48}
    wide = {**small, "intermediate_size": 64, "num_key_value_heads": 2}
    return {
        "llama": llama_config(),
        "gpt2": t.GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=48, n_positions=16),
        "neox": t.GPTNeoXConfig(**small, intermediate_size=64),
        "opt": t.OPTConfig(**small, ffn_dim=64, word_embed_proj_dim=32, max_position_embeddings=16),
        "olmo2": t.Olmo2Config(**wide),
        "qwen3": t.Qwen3Config(**wide, head_dim=8),
        "mixtral": t.MixtralConfig(**wide, num_local_experts=2),
    }


@pytest.mark.parametrize("kind", ["llama", "gpt2", "neox", "opt", "olmo2", "qwen3", "mixtral"])
def test_a_sound_checkpoint_has_no_problem(save, tmp_path, kind):
    model = save(tmp_path / "m", config=configs()[kind])
    found = one(tmp_path / "m")
    assert codes(found) == []
    assert len(found.weights_sha) == len(found.tokenizer_sha) == 64
    assert found.params_total == model.num_parameters()
    assert 0 < found.params_quantized <= found.params < found.params_total


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


def test_verifying_twice_changes_nothing(save, tmp_path):
    save(tmp_path / "m", tokenizer=False)
    found = one(tmp_path / "m")
    assert codes(found) == ["missing_tokenizer"]
    assert verify(found) == found


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_and_inf(save, tmp_path, value):
    save(tmp_path / "m")
    edit(tmp_path / "m", lambda t: t["model.norm.weight"].__setitem__(3, value))
    (problem,) = one(tmp_path / "m").problems
    assert (problem.code, problem.fatal) == ("nan_or_inf", True)
    assert "model.norm.weight" in problem.message


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


def test_parameters_that_do_not_load(save, tmp_path):
    import torch

    for name in ("absent", "surplus", "shape"):
        save(tmp_path / name)
    edit(tmp_path / "absent", lambda t: t.pop("model.layers.1.mlp.up_proj.weight"))
    edit(tmp_path / "surplus", lambda t: t.update({"extra.weight": torch.ones(2)}))
    edit(tmp_path / "shape", lambda t: t.update({"model.norm.weight": torch.ones(16)}))
    absent, surplus, shape = (one(tmp_path / name) for name in ("absent", "surplus", "shape"))
    assert codes(absent) == codes(shape) == ["not_loaded"]
    assert absent.fatal
    assert shape.fatal
    assert "layers.1.mlp.up_proj" in absent.problems[0].message
    assert "model.norm.weight" in shape.problems[0].message
    assert codes(surplus) == ["surplus_weights"]
    assert not surplus.fatal


def test_an_untied_head_is_needed_and_a_tied_one_is_not(save, tmp_path):
    save(tmp_path / "tied")
    save(tmp_path / "untied", config=llama_config(tie_word_embeddings=False))
    edit(tmp_path / "untied", lambda t: t.pop("lm_head.weight"))
    assert codes(one(tmp_path / "tied")) == []
    assert codes(one(tmp_path / "untied")) == ["not_loaded"]


def test_configuration_absent_unknown_or_with_code(save_run, tmp_path):
    run = save_run(tmp_path / "r", ["step1", "step2", "step3"])
    (run / "step1" / "config.json").unlink()
    (run / "step2" / "config.json").write_text('{"model_type": "no-such-model"}')
    (run / "step3" / "config.json").write_text('{"model_type": "new", "auto_map": {"AutoConfig": "c.C"}}')
    found = [verify(checkpoint) for checkpoint in discover([run])]
    assert [codes(c) for c in found] == [["config_missing"], ["unsupported_model"], ["remote_code"]]
    assert all(c.fatal and c.params is None and c.weights_sha for c in found)


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


def test_tokenizer_beside_the_checkpoints(save, tmp_path):
    save(tmp_path / "r" / "step1", tokenizer=False)
    write_tokenizer(tmp_path / "r")
    assert codes(one(tmp_path / "r")) == []


def test_tokenizer_of_the_run_two_levels_up(save, tmp_path):
    """`RUN/iter_5/hf` looks in RUN too, but `RUN/final` never above its run."""
    for name in ("r/iter_5/hf", "runs/a/final", "runs/a/step_7"):
        save(tmp_path / name, seed=len(name), tokenizer=False)
    write_tokenizer(tmp_path / "r")
    write_tokenizer(tmp_path / "runs")
    assert codes(one(tmp_path / "r")) == []
    assert tokenizer_folder(tmp_path / "r" / "iter_5" / "hf") == tmp_path / "r"
    (tmp_path / "r" / "iter_7" / "actor" / "huggingface").mkdir(parents=True)
    assert tokenizer_folder(tmp_path / "r" / "iter_7" / "actor" / "huggingface") == tmp_path / "r"
    for name in ("final", "step_7"):
        assert tokenizer_folder(tmp_path / "runs" / "a" / name) is None


@pytest.mark.parametrize(
    "content", ["{", "[]", '{"model_type": "of next year"}', '{"model_type": "llama", "vocab_size": 0}']
)
def test_a_broken_configuration_is_the_only_reason(save, tmp_path, content):
    save(tmp_path / "r" / "step1")
    (tmp_path / "r" / "step1" / "config.json").write_text(content)
    assert len(one(tmp_path / "r").problems) == 1


def test_weights_beyond_half_precision_are_measured_with_a_warning(save, tmp_path):
    save(tmp_path / "r" / "step1")
    edit(tmp_path / "r" / "step1", lambda tensors: tensors[min(tensors)].mul_(1e8))
    found = verify_all(discover([tmp_path / "r"], overrides=Overrides(tokens_per_step=50)))
    assert codes(found[0]) == ["large_weights"]
    assert not found[0].fatal
    assert "beyond the range of float16" in warnings(found)[0]


@pytest.mark.filterwarnings("error")
def test_absurdly_large_weights_are_refused_without_a_warning_of_numpy(save, tmp_path):
    for step in (1, 2):
        save(tmp_path / "r" / f"step{step}", seed=step)

        def blow_up(tensors):
            name = next(name for name in tensors if "q_proj" in name)
            tensors[name] *= 1e30

        edit(tmp_path / "r" / f"step{step}", blow_up)
    first, _ = verify_all(discover([tmp_path / "r"]))
    assert codes(first) == ["huge_weights"]
    assert "q_proj" in first.problems[0].message
    assert error_for(first, first.problems[0]).exit_code == 14


def test_an_adapter_beside_the_weights_is_named_as_not_applied(save, tmp_path):
    save(tmp_path / "r" / "step1")
    (tmp_path / "r" / "step1" / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    (tmp_path / "r" / "step1" / "adapter_model.safetensors").touch()
    found = verify_all(discover([tmp_path / "r"], overrides=Overrides(tokens_per_step=50)))
    (problem,) = found[0].problems
    assert (problem.code, problem.fatal) == ("adapter_beside", False)
    for words in ("adapter (LORA)", "not applied", "model.safetensors measured"):
        assert words in problem.message
    assert problem.message in warnings(found)[0]


def test_every_problem_has_an_exit_code_of_its_kind(trainer_run):
    (checkpoint, *_) = discover([trainer_run])
    exits = {
        "unreadable": 12, "missing_shard": 12, "not_loaded": 12, "config_missing": 12, "unsafe_pickle": 13,
        "remote_code": 13, "nan_or_inf": 14, "missing_tokenizer": 15, "unsupported_model": 23,
        "identical_weights": 26, "steps_out_of_order": 26, "tokenizer_differs": 26, "tokens_unknown": 26,
    }  # fmt: skip
    for code, exit_code in exits.items():
        error = error_for(checkpoint, Problem(code, "what is wrong", fatal=True))
        assert error.exit_code == exit_code
        assert "small@200: what is wrong" in str(error)
        assert "remedy:" in str(error)
        assert "\n" not in str(error)
    assert error_for(checkpoint, Problem("of a plug-in", "m")).exit_code == 1


def test_a_run_has_one_model_without_weights(save, tmp_path, monkeypatch):
    """Counted where transformers constructs it: for the counts, for how stored tensors fit, and for the plan."""
    from transformers import LlamaForCausalLM

    from ptq_eval.models.blueprint import blueprint
    from ptq_eval.models.language_model import LanguageModel

    for step in (1, 2, 3):
        save(tmp_path / f"step{step}", seed=step, config=llama_config(rope_theta=54321.0))
    edit(tmp_path / "step3", lambda tensors: tensors.update({"value_head.weight": tensors["model.norm.weight"] * 2}))
    made, own = [], LlamaForCausalLM.__init__

    def counted(self, *arguments, **options):
        own(self, *arguments, **options)
        made.append(self.device.type)

    monkeypatch.setattr(LlamaForCausalLM, "__init__", counted)
    found = verify_all(discover([tmp_path]))
    assert [codes(checkpoint) for checkpoint in found] == [["tokens_unknown"], [], ["surplus_weights"]]
    LanguageModel.blueprint(tmp_path / "step2")
    assert sorted(made) == ["cpu", "meta"]  # the former is small, with random weights, to see whether it is causal
    kept = dict(blueprint(tmp_path / "step3").module.named_parameters())
    assert {parameter.device.type for parameter in kept.values()} == {"meta"}
    assert "value_head.weight" not in kept


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


@pytest.mark.parametrize("named", [5, None, "LlamaForCausalLM", {"a": 1}])
def test_an_architecture_in_any_form_is_no_error(save, tmp_path, named):
    import json

    save(tmp_path / "m")
    path = tmp_path / "m" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "architectures": named}))
    assert not one(tmp_path / "m").fatal


def test_complex_weights_are_refused(save, tmp_path):
    import torch

    save(tmp_path / "m")
    edit(tmp_path / "m", lambda t: t.update({n: x.to(torch.complex64) for n, x in t.items() if "q_proj" in n}))
    assert "complex numbers" in one(tmp_path / "m").fatal[0].message
