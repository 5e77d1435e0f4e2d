"""Architecture presets: the transformers configuration for a width and a depth.

Each preset follows the proportions of its family (head size, feed-forward width, tied or untied head).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

from ptq_eval.errors import OptionError, UnknownPluginError
from ptq_eval.pretrain.config import PretrainConfig


def _heads(width: int) -> int:
    """The number of heads: of 64 channels if the width allows it, of at least 8 otherwise."""
    for heads in (max(1, width // 64), 4, 2, 1):
        if (
            heads > 0
            and width % heads == 0
            and (width // heads) % 2 == 0
            and (width // 64 <= 4 or heads == width // 64)
        ):
            return heads
    return 1


def _llama(width: int, layers: int, vocab: int, context: int) -> Any:
    from transformers import LlamaConfig

    heads = _heads(width)
    # two thirds of 4·width, rounded up to a multiple of 32, as SwiGLU models do
    feed_forward = -(-8 * width // 3 // 32) * 32
    return LlamaConfig(
        vocab_size=vocab,
        hidden_size=width,
        intermediate_size=feed_forward,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads // 2 if heads % 2 == 0 else heads,
        max_position_embeddings=context,
        tie_word_embeddings=True,
    )


def _gpt2(width: int, layers: int, vocab: int, context: int) -> Any:
    from transformers import GPT2Config

    return GPT2Config(
        vocab_size=vocab,
        n_embd=width,
        n_layer=layers,
        n_head=_heads(width),
        n_positions=context,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
    )


def _gpt_neox(width: int, layers: int, vocab: int, context: int) -> Any:
    from transformers import GPTNeoXConfig

    return GPTNeoXConfig(
        vocab_size=vocab,
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=_heads(width),
        max_position_embeddings=context,
        tie_word_embeddings=False,
    )


ARCHITECTURES: dict[str, Callable[[int, int, int, int], Any]] = {
    "llama": _llama,
    "gpt2": _gpt2,
    "gpt-neox": _gpt_neox,
}


def configuration(architecture: str, *, width: int, layers: int, vocab: int, context: int) -> Any:
    """The transformers configuration of a preset, with `layers` blocks of `width` channels.

    All special tokens have id 0.  Raises UnknownPluginError for an unknown `architecture`, OptionError for a width that
    is not a multiple of 8.
    """
    if architecture not in ARCHITECTURES:
        raise UnknownPluginError.of("architecture", architecture, ARCHITECTURES)
    if width < 8 or width % 8:
        raise OptionError("--width must be a multiple of 8", got=width, allowed="8, 16, 24, …")
    config = ARCHITECTURES[architecture](width, layers, vocab, context)
    config.bos_token_id = config.eos_token_id = 0
    config.pad_token_id = None
    return config


def model_config(options: PretrainConfig) -> Any:
    """The transformers configuration of a run.  Raises as `configuration` does."""
    o = options
    return configuration(o.architecture, width=o.width, layers=o.layers, vocab=o.vocab, context=o.context)


def counts(options: PretrainConfig) -> tuple[int, int]:
    """N and the number of all parameters of a run's model.  Raises as `configuration` does."""
    o = options
    return _counts(o.architecture, o.width, o.layers, o.vocab, o.context)


@cache
def _counts(architecture: str, width: int, layers: int, vocab: int, context: int) -> tuple[int, int]:
    import torch
    from transformers import AutoModelForCausalLM

    config = configuration(architecture, width=width, layers=layers, vocab=vocab, context=context)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
        model.tie_weights()
    return non_embedding(model), sum(parameter.numel() for parameter in model.parameters())


def non_embedding(model: Any) -> int:
    """The number of non-embedding parameters: all except nn.Embedding and the output head."""
    import torch

    outside = {id(m.weight) for m in model.modules() if isinstance(m, torch.nn.Embedding)}
    head = model.get_output_embeddings()
    if head is not None:
        outside.add(id(head.weight))
    return sum(p.numel() for p in model.parameters() if id(p) not in outside)
