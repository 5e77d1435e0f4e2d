"""A language model so small that its whole Hessian can be written down."""

import torch
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig

from ptq_eval.models.language_model import LanguageModel

VOCAB, WIDTH = 11, 8


def build(seed=0, vocab=VOCAB):
    """A Llama of one layer of width 8 with weights large enough for its predictions to be uneven."""
    config = LlamaConfig(
        vocab_size=vocab,
        hidden_size=WIDTH,
        intermediate_size=12,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=16,
        tie_word_embeddings=False,
        bos_token_id=0,
        eos_token_id=0,
        attn_implementation="eager",
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module = AutoModelForCausalLM.from_config(config)
        with torch.no_grad():
            for parameter in module.parameters():
                if parameter.dim() > 1:
                    parameter.normal_(0, 0.6)
    return LanguageModel(module, name="tiny")


def windows(count, time=6, seed=1, vocab=VOCAB):
    return torch.randint(vocab, (count, time), generator=torch.Generator().manual_seed(seed))


def build_gpt2():
    """A GPT-2, whose matrices are stored transposed, with its tied head among those that are quantized."""
    config = GPT2Config(vocab_size=VOCAB, n_embd=WIDTH, n_layer=1, n_head=2, n_positions=16, bos_token_id=0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = AutoModelForCausalLM.from_config(config)
        with torch.no_grad():
            for parameter in module.parameters():
                if parameter.dim() > 1:
                    parameter.normal_(0, 0.4)
    return LanguageModel(module, include_head=True, name="tiny gpt2")
