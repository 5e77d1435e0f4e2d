"""Contract: what does not fit its configuration is named, and every kind of problem has its exit code."""

import pytest

from ptq_eval.checkpoints import Overrides, discover, error_for, verify, verify_all, warnings
from ptq_eval.models.loading import tokenizer_folder
from ptq_eval.records import Problem
from tests.checkpoints.support import codes, llama_config, one, rewrite, write_tokenizer


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


def test_verifying_twice_changes_nothing(save, tmp_path):
    save(tmp_path / "m", tokenizer=False)
    found = one(tmp_path / "m")
    assert codes(found) == ["missing_tokenizer"]
    assert verify(found) == found


def test_parameters_that_do_not_load(save, tmp_path):
    import torch

    for name in ("absent", "surplus", "shape"):
        save(tmp_path / name)
    rewrite(tmp_path / "absent", lambda t: t.pop("model.layers.1.mlp.up_proj.weight"))
    rewrite(tmp_path / "surplus", lambda t: t.update({"extra.weight": torch.ones(2)}))
    rewrite(tmp_path / "shape", lambda t: t.update({"model.norm.weight": torch.ones(16)}))
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
    rewrite(tmp_path / "untied", lambda t: t.pop("lm_head.weight"))
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
    rewrite(tmp_path / "step3", lambda tensors: tensors.update({"value_head.weight": tensors["model.norm.weight"] * 2}))
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


@pytest.mark.parametrize("named", [5, None, "LlamaForCausalLM", {"a": 1}])
def test_an_architecture_in_any_form_is_no_error(save, tmp_path, named):
    import json

    save(tmp_path / "m")
    path = tmp_path / "m" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "architectures": named}))
    assert not one(tmp_path / "m").fatal
