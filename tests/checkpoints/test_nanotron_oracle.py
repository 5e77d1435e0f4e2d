"""Oracle: nanotron's folders of later versions give the logits of transformers' model of the same tensors."""

import json
from unittest.mock import patch

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config, SmolLM3Config

from ptq_eval.checkpoints import discover, local_path, verify_all
from ptq_eval.models.language_model import LanguageModel
from tests.support.frameworks import VOCABULARY, nanotron_run

IDS = torch.randint(0, VOCABULARY, (2, 24), generator=torch.Generator().manual_seed(0))
SIZES = {
    "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2,
    "num_hidden_layers": 4, "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "rope_theta": 50_000.0,
}  # fmt: skip
STAGES = {
    "last_train_step": 250, "consumed_train_samples": 2000, "consumed_tokens_total": 100_000, "last_stage_idx": 1,
    "data_stages": [{"name": "a", "consumed_train_samples": 1500, "sequence_length": 32, "start_training_step": 1},
                    {"name": "b", "consumed_train_samples": 500, "sequence_length": 64, "start_training_step": 188}],
}  # fmt: skip
KINDS = {
    "llama": (LlamaConfig, {"is_llama_config": True}),
    "tied": (LlamaConfig, {"is_qwen2_config": True, "tie_word_embeddings": True, "attention_bias": False}),
    "qwen2": (Qwen2Config, {"is_qwen2_config": True, "attention_bias": True}),
    "smollm3": (SmolLM3Config, {"is_qwen2_config": True, "no_rope_layer": 2, "tie_word_embeddings": True}),
}


def model_of(kind):
    torch.manual_seed(0)
    cls, more = KINDS[kind]
    own = {"tie_word_embeddings": more.get("tie_word_embeddings", False)}
    own |= {"no_rope_layer_interval": 2} if kind == "smollm3" else {}
    ends = {"pad_token_id": None, "bos_token_id": None, "eos_token_id": None}
    model = AutoModelForCausalLM.from_config(cls(**SIZES, **own, **ends, vocab_size=VOCABULARY)).eval()
    for name, parameter in model.named_parameters():
        if parameter.dim() == 1 and "bias" in name:
            torch.nn.init.normal_(parameter)
    tensors = {name: own.detach() for name, own in model.state_dict().items()}
    if more.get("tie_word_embeddings"):
        del tensors["lm_head.weight"]
    return model, tensors, {**SIZES, **more, "rope_interleaved": False, "vocab_size": VOCABULARY}


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_is_that_of_transformers(tmp_path, kind, ranks):
    model, tensors, config = model_of(kind)
    nanotron_run(tmp_path / "run", config, tensors, STAGES, ranks)
    (checkpoint,) = verify_all(discover([tmp_path / "run"]))
    assert not checkpoint.fatal, checkpoint.fatal
    assert (checkpoint.step, checkpoint.tokens, checkpoint.tokens_source) == (250, 100_000, "explicit")
    with torch.no_grad():
        known = model(IDS).logits
    found = LanguageModel.load(local_path(checkpoint)).logits(IDS)
    loss = lambda logits: torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), IDS[:, 1:].flatten())
    assert abs(loss(found) - loss(known)) < 1e-5 * loss(known)
    assert (found - known).abs().max() < 1e-5 * known.abs().max()


def test_tokens_of_earlier_versions_are_samples_times_their_length(tmp_path):
    _, tensors, config = model_of("llama")
    metas = {name: value for name, value in STAGES.items() if name != "consumed_tokens_total"}
    place = nanotron_run(tmp_path / "run", config, tensors, metas)
    (checkpoint,) = discover([tmp_path / "run"])
    assert (checkpoint.tokens, checkpoint.tokens_source) == (1500 * 32 + 500 * 64, "derived")
    about = {"metas": {"last_train_step": 250, "consumed_train_samples": 2000}}
    (place / "checkpoint_metadata.json").write_text(json.dumps(about))
    assert discover([tmp_path / "run"])[0].tokens is None
    (place / "config.yaml").write_text("tokens: {sequence_length: 128}\n")
    assert discover([tmp_path / "run"])[0].tokens == 2000 * 128


@pytest.mark.parametrize(
    ("more", "text"),
    [
        ({"moe_config": {"num_experts": 8}}, "moe_config"),
        ({"sliding_window_size": 16}, "sliding_window_size"),
        ({"is_llama_config": False, "is_starcoder2_config": True}, "starcoder2"),
        ({"hidden_size": None}, "hidden_size"),
    ],
)
def test_other_models_are_refused_with_the_entry_that_differs(tmp_path, more, text):
    _, tensors, config = model_of("llama")
    place = nanotron_run(tmp_path / "run", config, tensors, STAGES)
    (place / "model_config.json").write_text(json.dumps({**config, **more}))
    (checkpoint,) = verify_all(discover([tmp_path / "run"]))
    (problem,) = checkpoint.fatal
    assert text in str(problem)


def test_a_rank_that_is_missing_is_named(tmp_path):
    _, tensors, config = model_of("llama")
    place = nanotron_run(tmp_path / "run", config, tensors, STAGES)
    next(place.rglob("*o_proj*/*tp-rank-1*")).unlink()
    (checkpoint,) = verify_all(discover([tmp_path / "run"]))
    (problem,) = checkpoint.fatal
    assert "not stored whole" in str(problem)
    assert "tp-rank" in str(problem)


def test_no_memory_is_taken_for_a_shape_that_the_files_cannot_fill(tmp_path):
    _, tensors, config = model_of("llama")
    nanotron_run(tmp_path / "run", config, tensors, STAGES, 2)
    path = next(path for path in sorted(tmp_path.rglob("*.safetensors")) if "lm_head" in path.parts)
    with safe_open(path, "pt") as content:
        part, header = content.get_tensor("data"), content.metadata()
    save_file({"data": part}, path, {**header, "unsharded_shape": "(1000000, 100000)"})
    asked, empty = [], torch.empty
    with patch("torch.empty", lambda *sizes, **more: asked.append(sizes[0]) or empty(*sizes, **more)):
        (checkpoint,) = verify_all(discover([tmp_path / "run"]))
    assert asked
    assert (1_000_000, 100_000) not in asked
    assert "not stored whole" in str(checkpoint.fatal)
