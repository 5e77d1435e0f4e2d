"""Tiny models of every tested architecture, with random weights large enough for quantization to hurt."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

HIDDEN, VOCAB, CONTEXT, LAYERS = 32, 272, 64, 2


def config(architecture, **changes):
    """The configuration of a tiny model; `changes` are fields of the architecture's own configuration."""
    import transformers as t

    special = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": None, "vocab_size": VOCAB}
    usual = {
        **special,
        "hidden_size": HIDDEN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "max_position_embeddings": CONTEXT,
    }
    gated = {**usual, "intermediate_size": 48}
    gpt2 = {**special, "n_embd": HIDDEN, "n_layer": LAYERS, "n_head": 4, "n_positions": CONTEXT}
    classes = {
        "llama": (t.LlamaConfig, {**gated, "num_key_value_heads": 2, "tie_word_embeddings": True}),
        "gpt2": (t.GPT2Config, gpt2),
        "gpt-neox": (t.GPTNeoXConfig, {**usual, "intermediate_size": 64, "tie_word_embeddings": False}),
        "opt": (t.OPTConfig, {**usual, "ffn_dim": 64, "word_embed_proj_dim": HIDDEN}),
        "olmo2": (t.Olmo2Config, {**gated, "num_key_value_heads": 4}),
        "qwen3": (t.Qwen3Config, {**gated, "num_key_value_heads": 2, "head_dim": 8, "tie_word_embeddings": False}),
        "gemma3": (
            t.Gemma3TextConfig,
            {
                **gated,
                "num_key_value_heads": 2,
                "head_dim": 12,
                "query_pre_attn_scalar": 16,
                "sliding_window": 5,
                "layer_types": ["sliding_attention", "full_attention"],
                "attention_bias": True,
            },
        ),
        "gptj": (t.GPTJConfig, {**gpt2, "rotary_dim": 4}),
        "cohere": (t.CohereConfig, {**gated, "num_key_value_heads": 2, "logit_scale": 0.5}),
        "mixtral": (t.MixtralConfig, {**gated, "num_key_value_heads": 2, "num_local_experts": 4}),
    }
    cls, fields = classes[architecture]
    return cls(**{**fields, **changes})


def build(architecture, seed=0, **changes):
    """A model with random weights, in evaluation mode; `architecture` may be a configuration."""
    import torch
    from transformers import AutoModelForCausalLM

    chosen = config(architecture, **changes) if isinstance(architecture, str) else architecture
    with torch.random.fork_rng():
        model = AutoModelForCausalLM.from_config(chosen).eval()
    return randomised(model, seed)


def randomised(model, seed):
    """The model with matrices of spread 0.25, and vectors that are not all 0 or 1."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(0.25 * noise if parameter.dim() > 1 else parameter + 0.1 * noise)
    return model


def save(folder, model, tokenizer=None, tokens=None):
    """Lay a checkpoint down as the HF Trainer does; `tokens` is D."""
    folder = Path(folder)
    model.save_pretrained(folder)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    if tokens is not None:
        step = int(folder.name.rpartition("-")[2])
        history = [{"step": step, "loss": 1.0, "learning_rate": 1e-3}]
        state = {"global_step": step, "max_steps": 10_000, "num_input_tokens_seen": tokens, "log_history": history}
        (folder / "trainer_state.json").write_text(json.dumps(state), encoding="utf-8")
    return folder


def ids(rows=6, columns=24, seed=0, vocab=VOCAB):
    """Random token ids [rows, columns]."""
    import torch

    return torch.randint(vocab, (rows, columns), generator=torch.Generator().manual_seed(seed))


def matrix(module: torch.nn.Module) -> torch.Tensor:
    """A module's weight as [out, in]: transformers' Conv1D keeps it as [in, out]."""
    return module.weight.T if type(module).__name__ == "Conv1D" else module.weight
