"""Golden: published labels, batches and parameter counts, as the projects state them."""

import pytest

from ptq_eval.checkpoints import CheckpointFormat, count_parameters
from ptq_eval.checkpoints.base import read_label
from ptq_eval.checkpoints.trainer_state import phase
from ptq_eval.errors import UnreadableCheckpointError, UnsafeCheckpointError, UnsupportedModelError

PYTHIA, SMOLLM3 = "EleutherAI/pythia-70m-deduped", "HuggingFaceTB/SmolLM3-3B-checkpoints"
OLMO1, OLMO7 = "allenai/OLMo-2-0425-1B", "allenai/OLMo-2-1124-7B"


@pytest.mark.parametrize(
    ("model", "label", "step", "tokens", "source", "stage"),
    [
        (PYTHIA, "step143000", 143_000, 299_892_736_000, "derived", ""),
        (PYTHIA, "step0", 0, 0, "derived", ""),
        ("pythia-160m-v0", "step1000", 1000, 2_097_152_000, "derived", ""),
        ("pythia-1.4b-seed3", "step1", 1, 2_097_152, "derived", ""),
        ("pythia-160m-0.5MtokBS", "step10", 10, 5_242_880, "derived", ""),
        ("pythia-70m-finetuned", "step10", 10, None, "unknown", ""),
        ("my-model", "step10", 10, None, "unknown", ""),
        (OLMO1, "stage1-step10000-tokens21B", 10_000, 20_971_520_000, "derived", "stage1"),
        (OLMO7, "stage1-step928646-tokens3896B", 928_646, 928_646 * 4_194_304, "derived", "stage1"),
        ("allenai/OLMo-1B-hf", "step1000-tokens4B", 1000, 4_194_304_000, "derived", ""),
        ("allenai/OLMo-7B", "step555000-tokens2455B", 555_000, 2_455 * 10**9, "label", ""),
        (OLMO7, "stage1-step1000-tokens9B", 1000, 9 * 10**9, "label", "stage1"),
        (
            OLMO7,
            "stage2-ingredient3-step11931-tokens50B",
            11_931,
            (928_646 + 11_931) * 4_194_304,
            "derived",
            "stage2-ingredient3",
        ),
        ("olmo", "stage2-ingredient1-step1000-tokens5B", 1000, None, "unknown", "stage2-ingredient1"),
        (
            "HuggingFaceTB/SmolLM2-135M-intermediate-checkpoints",
            "step-2000",
            2000,
            2_097_152_000,
            "derived",
            "",
        ),
        ("HuggingFaceTB/SmolLM2-360M-intermediate-checkpoints", "step-2000", 2000, 3_145_728_000, "derived", ""),
        (SMOLLM3, "stage2-step-40000", 40_000, 94_371_840_000, "derived", "stage2"),
        ("LLM360/Amber", "ckpt_000", 0, 3_495_886_848, "derived", ""),
        ("LLM360/Amber", "ckpt_359", 359, 1_258_519_265_280, "derived", ""),
        ("LLM360/CrystalCoder", "ckpt_001", 1, None, "unknown", ""),
        ("any", "checkpoint-500", 500, None, "unknown", ""),
    ],
)
def test_labels(model, label, step, tokens, source, stage):
    position = read_label(model, label)
    assert position is not None
    assert (position.step, position.tokens, position.source, position.stage) == (step, tokens, source, stage)
    assert position.note


@pytest.mark.parametrize(
    "label", ["main", "step-", "checkpoint-", "ckpt_", "latest", "gpt2", "llama-7B", "seed3", "2026-11-28"]
)
def test_other_names_are_no_labels(label):
    assert read_label(PYTHIA, label) is None


@pytest.mark.parametrize(
    ("hidden", "layers", "total", "hf", "non_embedding"),
    [
        (512, 6, 70_426_624, 44_670_976, 18_915_328),
        (768, 12, 162_322_944, 123_689_472, 85_056_000),
        (1024, 24, 405_334_016, 353_822_720, 302_311_424),
    ],
)
def test_pythia_counts(hidden, layers, total, hf, non_embedding):
    from transformers import GPTNeoXConfig

    counts = count_parameters(
        GPTNeoXConfig(
            vocab_size=50304,
            hidden_size=hidden,
            num_hidden_layers=layers,
            num_attention_heads=8,
            intermediate_size=4 * hidden,
        )
    )
    assert (counts.total, counts.hf_non_embedding, counts.non_embedding) == (total, hf, non_embedding)
    assert counts.quantized == layers * 12 * hidden**2


def test_gpt2_counts_by_hand():
    from transformers import GPT2Config

    width, layers, vocabulary, context = 32, 2, 48, 16
    counts = count_parameters(
        GPT2Config(n_embd=width, n_layer=layers, n_head=2, vocab_size=vocabulary, n_positions=context)
    )
    blocks = layers * (12 * width**2 + 13 * width) + 2 * width
    assert counts.non_embedding == counts.hf_non_embedding == blocks
    assert counts.total == blocks + (vocabulary + context) * width  # the tied head is counted once
    assert counts.quantized == layers * 12 * width**2


def test_what_cannot_be_counted(tmp_path):
    with pytest.raises(UnreadableCheckpointError):
        count_parameters(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "no-such-model"}')
    with pytest.raises(UnsupportedModelError):
        count_parameters(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "new", "auto_map": {"AutoConfig": "c.C"}}')
    with pytest.raises(UnsafeCheckpointError):
        count_parameters(tmp_path)


@pytest.mark.parametrize(
    ("rates", "last", "expected"),
    [
        ([], False, ""),
        ([1.0], False, ""),
        ([0.1, 0.2], False, "warmup"),
        ([0.1, 1.0, 1.0], False, "constant"),
        ([0.1, 1.0, 0.9], False, "decay"),
        ([0.1, 1.0, 0.5, 0.1], False, "annealed"),
        ([0.1, 1.0, 0.1, 0.1], False, "annealed"),
        ([1.0, 0.5, 0.5], False, "decay"),
        ([1.0, 0.3, 0.2], True, "annealed"),
    ],
)
def test_schedule_phase(rates, last, expected):
    assert phase(rates, last) == expected


def test_the_base_class_reads_no_label():
    assert CheckpointFormat().position("any", "step10") is None
