"""Tiny models of kinds that are not plain decoders, each with its configuration built here."""

from tests.support.models import CONTEXT, HIDDEN, VOCAB

ENCODER = {
    "hidden_size": HIDDEN,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": VOCAB,
}
TEXT = {**ENCODER, "num_key_value_heads": 2, "max_position_embeddings": CONTEXT, "bos_token_id": 0, "eos_token_id": 0}
VISION = {
    "hidden_size": HIDDEN,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 16,
    "patch_size": 8,
}


def llava():
    import transformers as t

    return t.LlavaForConditionalGeneration(
        t.LlavaConfig(
            text_config=t.LlamaConfig(**TEXT), vision_config=t.CLIPVisionConfig(**VISION), image_token_index=9
        )
    )


def gemma3():
    import transformers as t

    return t.Gemma3ForConditionalGeneration(
        t.Gemma3Config(
            text_config={**TEXT, "head_dim": 8},
            vision_config=VISION,
            mm_tokens_per_image=4,
            image_token_index=9,
            boi_token_index=10,
            eoi_token_index=11,
        )
    )


def qwen2_audio():
    import transformers as t

    return t.Qwen2AudioForConditionalGeneration(
        t.Qwen2AudioConfig(
            text_config={"model_type": "qwen2", **TEXT},
            audio_config={
                "d_model": HIDDEN,
                "encoder_layers": 1,
                "encoder_attention_heads": 4,
                "encoder_ffn_dim": 64,
                "num_mel_bins": 8,
                "max_source_positions": 16,
            },
            audio_token_index=9,
        )
    )


def mllama():
    """One of its four text layers attends to images alone."""
    import transformers as t

    return t.MllamaForConditionalGeneration(
        t.MllamaConfig(
            text_config={**TEXT, "num_hidden_layers": 4, "cross_attention_layers": [1], "pad_token_id": 0},
            vision_config={
                "hidden_size": HIDDEN,
                "intermediate_size": 64,
                "num_hidden_layers": 2,
                "num_global_layers": 1,
                "attention_heads": 4,
                "image_size": 16,
                "patch_size": 8,
                "vision_output_dim": 64,
                "intermediate_layers_indices": [0],
            },
        )
    )
