"""Contract: what is no parameter neither excludes a checkpoint nor raises an alarm, whatever is in it."""

import math

import pytest
import torch
import transformers as t
from safetensors.torch import load_file, save_file

from ptq_eval.checkpoints import discover, verify
from ptq_eval.models.language_model import LanguageModel
from tests.checkpoints.support import codes, llama_config

CONTEXT, V = 16, 48
MASK = torch.tril(torch.ones(CONTEXT, CONTEXT, dtype=torch.bool))[None, None]
SMALL = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "vocab_size": V}

STORED = {
    "neox": (
        t.GPTNeoXConfig(**SMALL, intermediate_size=64, max_position_embeddings=CONTEXT),
        "gpt_neox.layers.0.attention.",
        {"bias": MASK, "masked_bias": torch.tensor(-math.inf).half(), "rotary_emb.inv_freq": torch.rand(2).half()},
    ),
    "gpt2": (
        t.GPT2Config(n_embd=32, n_layer=1, n_head=4, vocab_size=V, n_positions=CONTEXT),
        "transformer.h.0.attn.",
        {"bias": MASK.float(), "masked_bias": torch.tensor(-math.inf)},
    ),
    "gpt2 without its prefix": (
        t.GPT2Config(n_embd=32, n_layer=1, n_head=4, vocab_size=V, n_positions=CONTEXT),
        "h.0.attn.",
        {"bias": MASK, "masked_bias": torch.tensor(math.nan)},
    ),
    "llama": (
        llama_config(num_hidden_layers=1),
        "model.layers.0.self_attn.rotary_emb.",
        {"inv_freq": torch.full((4,), math.nan), "cos_cached": torch.ones(1, 1, 16, 8)},
    ),
    "gptj": (
        t.GPTJConfig(n_embd=32, n_layer=1, n_head=4, vocab_size=V, n_positions=CONTEXT, rotary_dim=4),
        "transformer.h.0.attn.",
        {"bias": MASK, "masked_bias": torch.tensor(-math.inf)},
    ),
    "bert": (
        t.BertConfig(**SMALL, intermediate_size=64, is_decoder=True),
        "bert.embeddings.",
        {"position_ids": torch.arange(512)[None]},
    ),
}  # fmt: skip


def add(folder, tensors):
    content = load_file(folder / "model.safetensors")
    save_file({**content, **tensors}, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("kind", STORED)
def test_buffers_of_older_versions_are_no_problem(save, tmp_path, kind):
    config, home, buffers = STORED[kind]
    save(tmp_path / "m", config=config)
    if "without" in kind:
        content = load_file(tmp_path / "m" / "model.safetensors")
        content = {name.removeprefix("transformer."): tensor for name, tensor in content.items()}
        save_file(content, tmp_path / "m" / "model.safetensors", metadata={"format": "pt"})
    plain = verify(discover([tmp_path / "m"])[0])
    add(tmp_path / "m", {home + name: tensor for name, tensor in buffers.items()})
    found = verify(discover([tmp_path / "m"])[0])
    assert codes(found) == codes(plain) == []
    assert found.weights_sha != plain.weights_sha
    assert found.params == plain.params


LAYER = "model.layers.0.self_attn."
ANYWHERE = {
    "freqs_cis": torch.polar(torch.ones(16, 4), torch.rand(16, 4)),
    "model.freqs_cis": torch.polar(torch.ones(16, 4), torch.rand(16, 4)),
    f"{LAYER}mask": MASK[0, 0],
    f"{LAYER}tril": MASK[0, 0].float(),
    "model.mask": torch.full((16, 16), -math.inf),
    f"{LAYER}future_mask": MASK[0, 0],
    "freqs_cos": torch.rand(16, 4),
    "sin": torch.rand(16, 4),
    "mask_cache": MASK,
    f"{LAYER}alibi_slopes": torch.rand(4),
    f"{LAYER}rope.cache": torch.rand(16, 4, 2),
    f"{LAYER}rotary_emb.scale": torch.rand(4),
    f"{LAYER}kv_cache.k_cache": torch.randn(1, 2, 16, 8),
    f"{LAYER}kv_cache.v": torch.randn(1, 2, 16, 8),
    f"{LAYER}cache_k": torch.zeros(1, 16, 2, 8),
    f"{LAYER}q_proj._extra_state": torch.zeros(0, dtype=torch.uint8),
    f"{LAYER}k_proj._extra_state": torch.randint(0, 255, (700,), dtype=torch.uint8),
}


@pytest.mark.parametrize("name", ANYWHERE)
def test_buffers_of_other_libraries_are_no_problem(save, tmp_path, name):
    save(tmp_path / "m", config=llama_config(num_hidden_layers=1))
    plain = verify(discover([tmp_path / "m"])[0])
    add(tmp_path / "m", {name: ANYWHERE[name]})
    found = verify(discover([tmp_path / "m"])[0])
    assert codes(found) == codes(plain) == []
    assert found.params == plain.params


@pytest.mark.parametrize(
    ("name", "tensor", "code"),
    [
        ("mlp.down_proj.mask", torch.ones(32, 64), "not_loaded"),
        ("self_attn.q_proj.weight_mask", torch.ones(32, 32), "not_loaded"),
        ("self_attn.kv_cache.k_scale", torch.ones(1), "already_quantized"),
        ("self_attn.q_proj.scale", torch.ones(32), "already_quantized"),
        ("mlp.gate", torch.polar(torch.ones(4), torch.ones(4)), "not_loaded"),
    ],
)
def test_what_changes_a_matrix_is_no_buffer(save, tmp_path, name, tensor, code):
    save(tmp_path / "m", config=llama_config(num_hidden_layers=1))
    add(tmp_path / "m", {f"model.layers.0.{name}": tensor})
    (problem,) = verify(discover([tmp_path / "m"])[0]).problems
    assert problem.fatal
    assert problem.code == code


def test_a_parameter_that_is_not_finite_still_excludes(save, tmp_path):
    """Though its name ends like that of a mask: a bias of an attention that has one."""
    config, home, buffers = STORED["neox"]
    save(tmp_path / "m", config=config)
    add(tmp_path / "m", {home + name: tensor for name, tensor in buffers.items()})
    add(tmp_path / "m", {f"{home}query_key_value.bias": torch.full((96,), math.inf)})
    found = verify(discover([tmp_path / "m"])[0])
    assert codes(found) == ["nan_or_inf"]
    assert "query_key_value.bias" in found.problems[0].message
    assert "masked" not in found.problems[0].message


def test_surplus_weights_are_named_and_what_is_in_them_does_not_matter(save, tmp_path):
    save(tmp_path / "m")
    add(tmp_path / "m", {"value_head.weight": torch.full((2,), math.nan)})
    found = verify(discover([tmp_path / "m"])[0])
    assert codes(found) == ["surplus_weights"]
    assert not found.fatal


@pytest.mark.parametrize("wrapped", [False, True])
def test_entries_of_a_pickle_that_hold_nothing_are_no_problem(save, tmp_path, wrapped):
    """None, as `get_extra_state` of TransformerEngine's layers and of others gives it."""
    save(tmp_path / "m", config=llama_config(num_hidden_layers=1))
    content = load_file(tmp_path / "m" / "model.safetensors")
    (tmp_path / "m" / "model.safetensors").unlink()
    empty = {f"{LAYER}q_proj._extra_state": None, f"{LAYER}k_proj._extra_state": {"version": 1}, "lm_head.bias": None}
    losses = []
    for more in ({}, empty):
        state = {**content, **more}
        torch.save({"model": state, "step": 5} if wrapped else state, tmp_path / "m" / "pytorch_model.bin")
        found = verify(discover([tmp_path / "m"])[0])
        assert codes(found) == []
        model = LanguageModel.load(tmp_path / "m")
        losses.append(model.logits(torch.arange(8)[None]))
    assert torch.equal(*losses)
