"""Contract: what a configuration alone says about its model, for models that are not what they seem."""

import pytest
import transformers as t

from ptq_eval.errors import UnsupportedModelError
from ptq_eval.models import blueprint as blueprints
from ptq_eval.models.blueprint import blueprint
from ptq_eval.models.language_model import LanguageModel
from ptq_eval.models.parameters import count_parameters
from tests.models import support
from tests.models.support import ENCODER, TEXT
from tests.support import models as core_models
from tests.support.models import CONTEXT, HIDDEN, VOCAB
from tests.support.moe import ExpertsConfig

LAYER = 2 * HIDDEN**2 + 2 * 16 * HIDDEN + 3 * 64 * HIDDEN


def saved(tmp_path, config):
    config.save_pretrained(tmp_path)
    return tmp_path


def both_directions():
    return {
        "bert": t.BertConfig(**ENCODER),
        "roberta": t.RobertaConfig(**ENCODER),
        "xlnet": t.XLNetConfig(d_model=HIDDEN, n_layer=2, n_head=4, d_inner=64, vocab_size=VOCAB),
        "gemma3": t.Gemma3TextConfig(**TEXT, head_dim=8, use_bidirectional_attention=True),
    }


@pytest.mark.parametrize("kind", ["bert", "roberta", "xlnet", "gemma3"])
def test_a_model_that_reads_in_both_directions_is_refused(tmp_path, kind):
    with pytest.raises(UnsupportedModelError, match="later token changes earlier logits"):
        blueprint(saved(tmp_path, both_directions()[kind]))


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_the_same_architecture_as_a_decoder_is_not(tmp_path, kind):
    config = both_directions()[kind]
    config.is_decoder = True
    assert blueprint(saved(tmp_path, config)).causal is True


def test_an_encoder_decoder_is_refused(tmp_path):
    config = t.T5Config(d_model=HIDDEN, d_kv=8, d_ff=64, num_layers=2, num_heads=4, vocab_size=VOCAB)
    with pytest.raises(UnsupportedModelError, match="encoder-decoder"):
        count_parameters(saved(tmp_path, config))


def test_a_model_too_large_to_be_run_twice_is_judged_when_it_is_loaded(tmp_path, monkeypatch):
    monkeypatch.setattr(blueprints, "PROBED_PARAMS", 0)
    model = t.BertForMaskedLM(t.BertConfig(**ENCODER, initializer_range=0.5))
    core_models.save(tmp_path / "bert", model)
    assert blueprint(tmp_path / "bert").causal is None
    with pytest.raises(UnsupportedModelError, match="later token"):
        LanguageModel.load(tmp_path / "bert")
    decoder = core_models.build("llama", rope_theta=9999.0)
    core_models.save(tmp_path / "llama", decoder)
    assert blueprint(tmp_path / "llama").causal is None
    assert LanguageModel.load(tmp_path / "llama").linears()


@pytest.mark.parametrize(
    ("make", "layers", "biases"),
    [(support.llava, 2, 0), (support.gemma3, 2, 0), (support.qwen2_audio, 2, 2 * HIDDEN), (support.mllama, 3, 0)],
)
def test_only_what_text_runs_through_counts(tmp_path, make, layers, biases):
    model = make()
    model.save_pretrained(tmp_path)
    counts, loaded = count_parameters(tmp_path), LanguageModel.load(tmp_path)
    quantized = {name: module.weight.numel() for name, module in loaded.linears().items()}
    assert not any(word in name for name in quantized for word in ("vision", "audio", "projector", "cross"))
    assert counts.quantized == sum(quantized.values()) == loaded.describe()["params_quantized"]
    assert counts.quantized == layers * LAYER
    vectors = counts.non_embedding - counts.quantized - layers * biases
    assert 0 < vectors < 20 * HIDDEN
    assert counts.total > counts.non_embedding + VOCAB * HIDDEN
    ids = core_models.ids()
    assert loaded.logits(ids).shape == (*ids.shape, VOCAB)
    description = {entry["name"]: entry["reason"] for entry in loaded.describe()["excluded"]}
    assert "text does not run through it" in description.values()
    assert LanguageModel.blueprint(tmp_path).describe() == loaded.describe()


@pytest.mark.parametrize("make", [support.llava, support.mllama])
def test_a_large_model_counts_the_same_without_being_run(tmp_path, monkeypatch, make):
    make().save_pretrained(tmp_path)
    counts = count_parameters(tmp_path)
    blueprints._cached.cache_clear()
    monkeypatch.setattr(blueprints, "PROBED_PARAMS", 0)
    assert blueprint(tmp_path).causal is None
    assert count_parameters(tmp_path) == counts


def test_the_share_quantized_is_that_of_the_language_model(tmp_path):
    support.llava().save_pretrained(tmp_path / "llava")
    t.LlamaForCausalLM(t.LlamaConfig(**TEXT)).save_pretrained(tmp_path / "llama")
    whole, text = (LanguageModel.blueprint(tmp_path / name).describe() for name in ("llava", "llama"))
    assert whole["share_quantized"] == text["share_quantized"]
    assert whole["params_total"] > text["params_total"]


@pytest.mark.parametrize(
    ("config", "usable"),
    [
        (t.OPTConfig(hidden_size=32, num_hidden_layers=1, ffn_dim=64, num_attention_heads=4, word_embed_proj_dim=32,
                     vocab_size=64, max_position_embeddings=40), 40),
        (t.RobertaConfig(**{**ENCODER, "max_position_embeddings": 42}, is_decoder=True), 40),
        (t.GPT2Config(n_embd=32, n_layer=1, n_head=4, vocab_size=64, n_positions=40), 40),
        (t.BartConfig(d_model=32, decoder_layers=1, decoder_ffn_dim=64, decoder_attention_heads=4, vocab_size=64,
                      max_position_embeddings=40, is_decoder=True, is_encoder_decoder=False), 40),
        (t.LlamaConfig(**{**TEXT, "max_position_embeddings": 40}), 40),
    ],
)  # fmt: skip
def test_the_usable_length_is_run_and_one_more_is_not_where_there_is_a_table(tmp_path, config, usable):
    """Oracle: the model itself, at the length that is said to be the longest."""
    import torch

    blueprint(saved(tmp_path, config))
    model = LanguageModel(t.AutoModelForCausalLM.from_config(config))
    assert model.max_length == usable
    assert LanguageModel.blueprint(tmp_path).max_length == usable
    ids = torch.full((1, usable), 5)
    assert model.logits(ids).shape[1] == usable
    if config.model_type in ("gpt2", "roberta", "opt", "bart"):
        with pytest.raises((IndexError, RuntimeError)):
            model.logits(torch.full((1, usable + 1), 5))


def test_a_vision_tower_does_not_bound_the_text(tmp_path):
    support.llava().save_pretrained(tmp_path)
    assert LanguageModel.blueprint(tmp_path).max_length == CONTEXT


def test_vectors_kept_in_three_dimensions_and_kernels_are_not_experts(tmp_path):
    rwkv = t.RwkvConfig(vocab_size=VOCAB, hidden_size=HIDDEN, num_hidden_layers=2, context_length=CONTEXT)
    description = LanguageModel.blueprint(saved(tmp_path / "rwkv", rwkv)).describe()
    reasons = {e["name"].rpartition(".")[2]: e["reason"] for e in description["excluded"]}
    assert reasons["time_mix_key"] == "norm or vector"
    assert len(description["quantized"]) == 2 * 7
    mamba = t.MambaConfig(vocab_size=VOCAB, hidden_size=HIDDEN, num_hidden_layers=1, state_size=4)
    description = LanguageModel.blueprint(saved(tmp_path / "mamba", mamba)).describe()
    assert "convolution" in {e["reason"] for e in description["excluded"]}
    gemma = t.RecurrentGemmaConfig(
        num_hidden_layers=3, vocab_size=VOCAB, hidden_size=HIDDEN, intermediate_size=96, num_attention_heads=4,
        lru_width=HIDDEN, attention_window_size=CONTEXT,
    )  # fmt: skip
    description = LanguageModel.blueprint(saved(tmp_path / "rgemma", gemma)).describe()
    assert any(e["reason"].startswith("tensor of an unknown module") for e in description["excluded"])


@pytest.mark.parametrize("kind", ["mixtral", "granitemoe", "own"])
def test_fused_experts_are_still_refused_by_name(tmp_path, kind):
    config = {
        "mixtral": t.MixtralConfig(**TEXT, num_local_experts=4),
        "granitemoe": t.GraniteMoeConfig(**TEXT, num_local_experts=4),
        "own": ExpertsConfig(fused=True),
    }[kind]
    with pytest.raises(UnsupportedModelError, match="fused expert weights") as refused:
        LanguageModel.blueprint(saved(tmp_path, config))
    assert "layers.0" in str(refused.value)


@pytest.mark.parametrize("experts", [False, True])
def test_one_rule_for_what_counts_as_quantized(tmp_path, experts):
    """A gate is no matrix to quantize, for the counts of a checkpoint as for the model that is measured."""
    model = core_models.build(ExpertsConfig() if experts else "llama")
    core_models.save(tmp_path, model)
    assert count_parameters(tmp_path).quantized == LanguageModel.load(tmp_path).describe()["params_quantized"]
    gates = sum(p.numel() for name, p in model.named_parameters() if name.endswith(".gate.weight"))
    assert bool(gates) == experts


def test_a_configuration_is_built_once(tmp_path, monkeypatch):
    made = []
    build = blueprints.Blueprint._build
    monkeypatch.setattr(blueprints.Blueprint, "_build", lambda self, **kw: made.append(kw) or build(self, **kw))
    for step in (1, 2, 3):
        folder = tmp_path / f"step{step}"
        t.LlamaConfig(**TEXT, rope_theta=12345.0).save_pretrained(folder)
        count_parameters(folder)
        LanguageModel.blueprint(folder)
    assert len(made) == 2  # without weights, and small with random ones
