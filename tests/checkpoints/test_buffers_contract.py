"""Contract: what is no parameter neither excludes a checkpoint nor raises an alarm, whatever is in it."""

import math

import pytest
import torch
import transformers as t
from safetensors.torch import load_file, save_file

from ptq_eval.checkpoints import discover, verify
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
