"""Contract: configurations of other versions load, or are refused by that reason."""

import json

import pytest
import transformers as t

from ptq_eval.errors import UnreadableCheckpointError, UnsupportedModelError
from ptq_eval.models.blueprint import blueprint
from ptq_eval.models.configuration import configuration
from ptq_eval.models.language_model import LanguageModel
from tests.models.support import TEXT
from tests.support import models as core_models


def written(folder, remove=(), **changes):
    content = t.LlamaConfig(**TEXT).to_dict()
    content = {key: value for key, value in content.items() if key not in remove}
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({**content, **changes}))
    return folder


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"rms_norm_eps": 1, "initializer_range": 1}, {"rms_norm_eps": 1.0}),
        ({"rms_norm_eps": "1e-5"}, {"rms_norm_eps": 1e-5}),
        ({"use_cache": "true", "pretraining_tp": 1.0}, {"use_cache": True, "pretraining_tp": 1}),
        ({"torch_dtype": "torch.float16"}, {}),
        ({"dtype": "torch.bfloat16"}, {}),
        ({"attn_implementation": "flash_attention_2", "_attn_implementation": "flash_attention_2"}, {}),
        ({"num_attention_heads": 4.0, "of_a_newer_version": {"a": 1}}, {"num_attention_heads": 4}),
        *[({key: kind}, {}) for key in ("dtype", "torch_dtype") for kind in ("auto", "fp16", "bf16", "mixed", None)],
        ({"num_key_value_heads": "2", "head_dim": "8", "eos_token_id": "2"}, {"num_key_value_heads": 2, "head_dim": 8}),
        ({"eos_token_id": ["2", "3"]}, {"eos_token_id": [2, 3]}),
        ({"quantization_config": None}, {}),
        ({"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": False, "load_in_8bit": False}}, {}),
    ],
)
def test_what_other_versions_write_loads(tmp_path, changes, expected):
    config = configuration(written(tmp_path, **changes))
    assert {key: getattr(config, key) for key in expected} == expected
    assert blueprint(tmp_path).causal


@pytest.mark.parametrize("name", ["max_position_embeddings", "vocab_size", "hidden_size", "num_hidden_layers"])
@pytest.mark.parametrize("value", [0, -1, "many", 1.5, 0.0])
def test_a_size_that_is_no_count_is_refused_by_name(tmp_path, name, value):
    with pytest.raises(UnsupportedModelError, match=f"{name}|{name.replace('_', ' ')}") as raised:
        configuration(written(tmp_path, **{name: value}))
    assert "config.json" in str(raised.value)


@pytest.mark.parametrize(
    ("name", "value"),
    [("rms_norm_eps", float("nan")), ("rms_norm_eps", 0), ("rms_norm_eps", -1e-6), ("rms_norm_eps", 1e3),
     ("rope_theta", -1), ("rope_theta", 0), ("rope_theta", float("inf")), ("rope_theta", 1e300),
     ("initializer_range", float("nan")), ("head_dim", -8), ("num_key_value_heads", float("nan")),
     ("num_hidden_layers", 100_000), ("partial_rotary_factor", 0),
     ("partial_rotary_factor", 3.0), ("attention_dropout", -0.1)],
)  # fmt: skip
def test_a_number_that_no_model_has_is_refused_by_name(tmp_path, name, value):
    with pytest.raises(UnsupportedModelError, match=name) as raised:
        configuration(written(tmp_path, ("rope_parameters",), **{name: value}))
    assert raised.value.remedy == "correct config.json"


@pytest.mark.parametrize("value", [-5, "-5", 0])
def test_an_entry_that_transformers_drops_is_checked_too(tmp_path, value):
    parameters = {"rope_type": "default", "rope_theta": 1e4}
    with pytest.raises(UnsupportedModelError, match="rope_theta"):
        configuration(written(tmp_path, rope_theta=value, rope_parameters=parameters))
    assert configuration(written(tmp_path, rope_theta=5e3, rope_parameters=parameters))


@pytest.mark.parametrize(
    "scaling", [{"rope_type": "linear", "factor": -2.0}, {"rope_type": "linear", "factor": float("nan")}]
)
def test_numbers_of_the_rotary_embedding_are_checked_too(tmp_path, scaling):
    with pytest.raises(UnsupportedModelError, match="factor"):
        configuration(written(tmp_path, ("rope_parameters",), rope_theta=1e4, rope_scaling=scaling))


@pytest.mark.parametrize("text", ['{"model_type": "llama", "hidden_size": 8, "hidden_size": 16}',
                                  '{"rope_parameters": {"rope_theta": 1, "rope_theta": 2}}'])  # fmt: skip
def test_a_key_that_occurs_twice_is_refused_by_name(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UnreadableCheckpointError, match=r"'(hidden_size|rope_theta)' occurs twice"):
        configuration(tmp_path)


@pytest.mark.parametrize("changes", [{"model_type": ["llama"]}, {"model_type": 7}, {"text_config": "llama"}])
def test_entries_of_a_wrong_kind_are_refused_in_one_line(tmp_path, changes):
    with pytest.raises(UnsupportedModelError) as raised:
        configuration(written(tmp_path, **changes))
    assert "\n" not in str(raised.value)


def test_the_name_of_a_size_is_the_one_in_the_file(tmp_path):
    content = t.GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=48, n_positions=16).to_dict()
    (tmp_path / "config.json").write_text(json.dumps({**content, "n_positions": 0}))
    with pytest.raises(UnsupportedModelError, match="invalid size: n_positions"):
        configuration(tmp_path)


@pytest.mark.parametrize(
    ("text", "number"), [("10000", 1e4), ("10000.0", 1e4), ("5e5", 5e5), (" 1e6 ", 1e6), (1e4, 1e4)]
)
def test_numbers_written_as_text_in_the_rotary_embedding(tmp_path, text, number):
    scaling = {"rope_type": "linear", "factor": "2.0"}
    found = configuration(written(tmp_path, ("rope_parameters",), rope_theta=text, rope_scaling=scaling))
    assert found.rope_parameters == {"rope_theta": number, "rope_type": "linear", "factor": 2.0}
    found = configuration(written(tmp_path, rope_parameters={"rope_theta": text, "rope_type": "default"}))
    assert found.rope_parameters["rope_theta"] == number


@pytest.mark.parametrize("entry", [{"_name_or_path": "98"}, {"bos_token": "1"}, {"transformers_version": "4.5"}])
def test_text_that_reads_as_a_number_stays_text(tmp_path, entry):
    found = configuration(written(tmp_path, **entry)).to_dict()
    assert all(found.get(key, value) in (value, t.__version__) or key.startswith("_") for key, value in entry.items())


def test_infinity_as_transformers_writes_it(tmp_path):
    config = t.Mamba2Config(
        hidden_size=32, num_hidden_layers=1, vocab_size=48, state_size=8, num_heads=8, head_dim=8, n_groups=1
    )
    config.save_pretrained(tmp_path)
    assert configuration(tmp_path).time_step_limit[1] == float("inf")


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
def test_the_encoding_of_the_file_is_found(tmp_path, encoding):
    core_models.save(tmp_path, core_models.build("llama"))
    content = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(content, encoding=encoding)
    assert blueprint(tmp_path).causal
    assert LanguageModel.load(tmp_path).linears()


@pytest.mark.parametrize(
    "changes",
    [
        *[{"architectures": [name]} for name in (
            "LlamaBiModel", "LlamaBiForMNTP", "LlamaBidirectionalModel", "LlamaBidirectionalForSequenceClassification",
            "LlamaEncoderModel", "BidirectionalLlama", "LlamaForMaskedLM",
        )],
        {"architectures": "LlamaBiModel"}, {"is_causal": False},
        {"use_bidirectional_attention": True}, {"bidirectional": True},
    ],
)  # fmt: skip
def test_a_bidirectional_model_by_a_class_that_transformers_does_not_know(tmp_path, changes):
    with pytest.raises(UnsupportedModelError, match="not a causal language model"):
        blueprint(written(tmp_path, **changes))


@pytest.mark.parametrize(
    "name",
    ["LlamaForSequenceClassification", "Qwen2ForTokenClassification", "LlamaForRewardModel", "MyRewardModel",
     "MistralForProcessReward", "LlamaForQuestionAnswering", "GemmaForMultipleChoice"],
)  # fmt: skip
@pytest.mark.parametrize("trust", [False, True])
def test_a_head_for_another_task_is_named(tmp_path, name, trust):
    with pytest.raises(UnsupportedModelError, match="a head for another task, not a causal language model") as refused:
        blueprint(written(tmp_path, architectures=[name]), trust)
    assert name in str(refused.value)


@pytest.mark.parametrize(
    "changes",
    [
        *[{"architectures": names} for names in (
            None, [], ["LlamaForCausalLM"], ["LLaMAForCausalLM"], ["LlamaModel"], ["BitLlamaForCausalLM"],
            ["BigLlamaForCausalLM"], ["LlamaEncoderDecoderFree"], ["BilingualLlamaForCausalLM"],
        )],
        {"is_causal": True}, {"use_bidirectional_attention": False}, {"use_bidirectional_attention": "vision"},
    ],
)  # fmt: skip
def test_other_classes_are_not_called_bidirectional(tmp_path, changes):
    assert blueprint(written(tmp_path, **changes)).causal


@pytest.mark.parametrize(
    "scaling",
    [{"type": "linear", "factor": 2}, {"type": "dynamic", "factor": 2.0}, {"rope_type": "linear", "factor": 2.0}],
)
def test_old_and_new_names_of_scaled_positions(tmp_path, scaling):
    config = configuration(written(tmp_path, ("rope_parameters",), rope_scaling=scaling, rope_theta=5000))
    assert config.rope_parameters["rope_type"] == scaling.get("type", scaling.get("rope_type"))
    assert config.rope_parameters["rope_theta"] == 5000
    assert blueprint(tmp_path).causal


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"model_type": "llama7"}, "not a model type that transformers knows"),
        ({"hidden_act": "swiglu9"}, "'swiglu9' is unknown"),
        ({"rope_parameters": {"rope_type": "spiral", "rope_theta": 1e4}}, "'spiral' is unknown"),
        ({"num_hidden_layers": "many"}, "num_hidden_layers"),
    ],
)
def test_what_cannot_be_read_is_refused_with_both_versions(tmp_path, changes, reason):
    with pytest.raises(UnsupportedModelError) as refused:
        blueprint(written(tmp_path, transformers_version="9.1.0", **changes))
    assert reason in str(refused.value)
    assert "9.1.0" in str(refused.value)
    assert t.__version__ in str(refused.value)


@pytest.mark.parametrize(
    ("changes", "named"),
    [({"rope_scaling": {"type": "linear"}}, "factor"), ({"max_position_embeddings": None}, "max_position_embeddings")],
)
def test_values_that_transformers_refuses_are_no_other_kind_of_model(tmp_path, changes, named):
    with pytest.raises(UnsupportedModelError, match="has values that transformers refuses") as refused:
        blueprint(written(tmp_path, ("rope_parameters",), **changes))
    assert named in str(refused.value)


@pytest.mark.parametrize("kind", ["ModernBertConfig", "CLIPConfig", "ViTConfig"])
def test_a_type_without_a_causal_language_model_is_refused_in_one_short_line(tmp_path, kind):
    getattr(t, kind)(transformers_version="4.0.0").save_pretrained(tmp_path)
    with pytest.raises(UnsupportedModelError, match="no causal language model of this type") as refused:
        blueprint(tmp_path)
    assert len(str(refused.value)) < 250
    assert refused.value.remedy


def test_the_version_is_no_reason_where_it_is_the_installed_one(tmp_path):
    with pytest.raises(UnsupportedModelError) as refused:
        blueprint(written(tmp_path, transformers_version=t.__version__, model_type="llama7"))
    assert "pip install" not in str(refused.value)


def test_the_name_of_the_folder_decides_nothing(tmp_path):
    with pytest.raises(UnsupportedModelError, match="not a model type"):
        blueprint(written(tmp_path / "gpt2-llama", ("model_type",)))


def test_a_model_with_an_old_configuration_is_the_same_model(tmp_path):
    import torch

    core_models.save(tmp_path, core_models.build("llama"))
    ids, plain = core_models.ids(), LanguageModel.load(tmp_path).logits(core_models.ids())
    content = json.loads((tmp_path / "config.json").read_text())
    theta = content.pop("rope_parameters")["rope_theta"]
    old = {
        **content,
        "rope_theta": theta,
        "rope_scaling": None,
        "torch_dtype": "float32",
        "transformers_version": "4.30.0",
    }
    (tmp_path / "config.json").write_text(json.dumps(old))
    assert torch.equal(LanguageModel.load(tmp_path).logits(ids), plain)
