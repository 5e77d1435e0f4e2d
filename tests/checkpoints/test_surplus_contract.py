"""Contract: tensors that no parameter takes mean what their places say."""

import json
import re

import pytest
import torch
import transformers as t
from safetensors.torch import load_file

from ptq_eval.checkpoints import discover, verify
from tests.checkpoints.support import codes, llama_config, only_problem, rewrite

LAYER = "model.layers.1.self_attn.q_proj"


@pytest.fixture
def folder(save, tmp_path):
    save(tmp_path / "m", config=llama_config(tie_word_embeddings=False))
    return tmp_path / "m"


@pytest.mark.parametrize(
    "name",
    [
        *[f"{LAYER}.{end}" for end in (
            "weights_scaling_factor", "scale_weight", "scale_factor", "weight_scaling", "weight_quantizer._amax",
            "input_quantizer._scale", "weight_quantizer.scale", "weight_fake_quant.scale", "fake_quant.zero_point",
            "parametrizations.weight.0.scale", "weight_step_size", "activation_post_process.min_val", "s_quantizer.a",
            "wscale", "w_scale", "zp", "weight.absmax", "input_zero_point", "prequant_scaling_factor", "observer.x",
            "weight_scale_2", "q_scale", "scales_and_zeros", "lut", "scale",
        )],
        "layers.0.mlp.down_proj_scale", "model.layers.0.self_attn.k_proj_amax", "model.layers.0.mlp.quantizer.step",
        "model.layers.0.self_attn.attn.k_scale", "lm_head.weight_scale_inv", "model.embed_tokens.weight_scale",
        "act_quantizer.scale", "model.input_observer.range",
    ],
)  # fmt: skip
def test_the_state_of_a_quantizer_beside_plain_weights(folder, name):
    rewrite(folder, lambda tensors: tensors.update({name: torch.ones(2)}))
    problem, error = only_problem(folder)
    assert (problem.code, error.exit_code) == ("already_quantized", 23)
    assert name in problem.message


PACKED = {
    "hqq": ("W_q", "scale", "zero", "meta_shape"),
    "marlin": ("B", "s", "workspace"),
    "quip#": ("Qidxs", "SU", "SV", "Wscale", "codebook_id"),
    "vptq": ("indices", "centroids.weight", "perm", "weight_scale"),
    "exl2": ("q_weight", "q_groups", "q_perm", "q_scale_max"),
    "exl3": ("trellis", "suh", "svh"),
    "aqlm": ("codes", "codebooks", "scales"),
    "torchao": ("weight_qdata", "weight_tensor_impl.data"),
    "unheard of": ("blob", "dictionary.a"),
}


@pytest.mark.parametrize("kind", PACKED)
@pytest.mark.parametrize("count", ["one", "all"])
def test_layers_in_another_form(folder, kind, count):
    def change(tensors):
        for name in [n for n in tensors if n.endswith("_proj.weight") and (count == "all" or n == f"{LAYER}.weight")]:
            del tensors[name]
            tensors.update({f"{name.removesuffix('.weight')}.{part}": torch.zeros(3) for part in PACKED[kind]})

    rewrite(folder, change)
    problem, _ = only_problem(folder)
    assert problem.code == "already_quantized"


@pytest.mark.parametrize(
    "entry", [{"quantization": {"group_size": 64, "bits": 4}}, {"quip_params": {"codebook": "E8P12"}}]
)
def test_recipes_of_other_libraries_in_the_configuration(folder, entry):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **entry}))
    assert only_problem(folder)[0].code == "already_quantized"


@pytest.mark.parametrize(
    "name",
    [f"{LAYER}.lora_A.default.weight", f"{LAYER}.lora_B.weight", f"base_model.model.{LAYER}.lora_A.weight",
     f"{LAYER}.lora_magnitude_vector", f"{LAYER}.hada_w1_a", f"{LAYER}.ia3_l", "prompt_encoder.default.weight",
     "model.layers.0.adapter.down.weight", "lm_head.modules_to_save.default.weight"],
)  # fmt: skip
def test_an_adapter_inside_the_weights(folder, name):
    rewrite(folder, lambda tensors: tensors.update({name: torch.ones(2, 2)}))
    problem, error = only_problem(folder)
    assert (problem.code, error.exit_code) == ("not_a_model", 23)
    assert "merge_and_unload" in problem.remedy
    assert name in problem.message


@pytest.mark.parametrize(
    ("prefix", "infix"),
    [("module.", ""), ("_orig_mod.", ""), ("module._orig_mod.", ""), ("_fsdp_wrapped_module.", ""), ("net.lm.", ""),
     ("state.model.", ""), ("", "_checkpoint_wrapped_module."), ("", "_fsdp_wrapped_module."), ("", "module.")],
)  # fmt: skip
def test_the_names_of_a_wrapped_model(folder, prefix, infix):
    plain = load_file(folder / "model.safetensors")
    rewrite(folder, lambda tensors: {
        prefix + (n.replace("layers.1.", f"layers.1.{infix}") if infix else n): x for n, x in tensors.items()
    })  # fmt: skip
    problem, _ = only_problem(folder)
    assert problem.code == "not_loaded"
    assert "wrapped model" in problem.message
    inserted = problem.remedy.partition("replace('")[2].partition("'")[0]
    rewrite(folder, lambda tensors: {n.replace(inserted, ""): x for n, x in tensors.items()})
    assert load_file(folder / "model.safetensors").keys() == plain.keys(), "the remedy gives the model's names"
    assert codes(verify(discover([folder])[0])) == []


def test_base_layers_of_an_adapter_are_an_adapter(folder):
    rewrite(folder, lambda ts: {n.replace("q_proj.", "q_proj.base_layer."): x for n, x in ts.items()})
    assert only_problem(folder)[0].code == "not_a_model"


@pytest.mark.parametrize("head", ["score", "classifier", "qa_outputs", "model.score"])
@pytest.mark.parametrize("tied", [True, False])
def test_a_classifier_is_no_language_model(save, tmp_path, head, tied):
    save(tmp_path / "m", config=llama_config(tie_word_embeddings=tied))

    def change(tensors):
        tensors.pop("lm_head.weight", None)
        tensors[f"{head}.weight"] = torch.ones(2, 32)

    rewrite(tmp_path / "m", change)
    problem, error = only_problem(tmp_path / "m")
    assert (problem.code, error.exit_code) == ("not_a_model", 23)
    assert "classifier" in problem.message


def test_a_body_without_its_head_says_so(folder):
    rewrite(folder, lambda tensors: {n: x for n, x in tensors.items() if n != "lm_head.weight"})
    problem, _ = only_problem(folder)
    assert problem.code == "not_loaded"
    assert "no output head" in problem.message
    assert "AutoModelForCausalLM" in problem.remedy


@pytest.mark.parametrize(
    "name",
    [
        f"{LAYER}.bias",
        f"{LAYER}.weight_mask",
        "model.norm.bias",
        f"{LAYER}.gain",
        "model.layers.0.self_attn.q_norm.weight",
        "model.layers.2.mlp.up_proj.weight",
        "layers.0.self_attn.gate",
        "model.layers.1.post_norm.weight",
        "model.pre_norm.weight",
        "model.embed_scale",
        "model.layers.0.self_attn.scale_attn",
        "model.layers.0.self_attn.scale_attn.weight",
        "model.layers.1.mlp.scale_fc",
        "model.layers.0.scale",
        "model.layers.0.layer_scale",
        "model.layers.1.self_attn.head_scales",
        "model.norm.scale",
        "model.ln_pre.bias",
        "model.project_in.weight",
        "embed_norm.weight",
        "ln_pre.weight",
        "value_embeds.0.weight",
        "transformer.value_embeds.1.weight",
        "wpe.weight",
        "ve.weight",
        "resid_lambdas",
        "final_logits_bias",
    ],
)
@pytest.mark.parametrize("value", [0.0, 0.5])
def test_what_a_layer_has_beside_its_weight_counts_unless_it_is_zero(folder, name, value):
    shape = (1, 48) if "logits" in name else (2, 2) if "embeds" in name or name in ("wpe.weight", "ve.weight") else (2,)
    rewrite(folder, lambda tensors: tensors.update({name: torch.full(shape, value)}))
    found = verify(discover([folder])[0])
    assert codes(found) == (["not_loaded"] if value else ["surplus_weights"])
    assert bool(found.fatal) == bool(value)


@pytest.mark.parametrize(
    "name",
    [
        "logit_scale",
        "value_head.weight",
        "v_head.summary.weight",
        "vision_tower.blocks.0.scale",
        "mtp.0.proj.weight",
        "model.mm_projector.weight",
        "model.vision_tower.norm.weight",
        "patch_embed.proj.weight",
        "draft.embed_tokens.weight",
        "ema.embed_tokens.weight",
        "ema_model.model.embed_tokens.weight",
    ],
)
def test_what_lies_beside_the_model_is_only_surplus(folder, name):
    rewrite(folder, lambda tensors: tensors.update({name: torch.ones(2, 2)}))
    assert codes(verify(discover([folder])[0])) == ["surplus_weights"]


def test_a_wrapped_part_beside_plain_names(folder):
    rewrite(folder, lambda ts: {("module." + n if "layers" in n else n): x for n, x in ts.items()})
    assert "replace('module.', '')" in only_problem(folder)[0].remedy


@pytest.mark.parametrize("entry", [{}, {"enabled": False}, None, "none"])
def test_a_switch_is_no_recipe(folder, entry):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "quantization": entry}))
    assert codes(verify(discover([folder])[0])) == []


@pytest.mark.parametrize("prefix", ["old.", "module.", "ema_model.", "a.b."])
def test_scales_of_the_models_matrices_behind_a_prefix(folder, prefix):
    rewrite(folder, lambda tensors: tensors.update({f"{prefix}{LAYER}.scale": torch.ones(2)}))
    assert only_problem(folder)[0].code == "already_quantized"


@pytest.mark.parametrize(
    "config",
    [
        t.GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=48, n_positions=16),
        t.MambaConfig(hidden_size=32, num_hidden_layers=2, vocab_size=48, state_size=4),
        t.BloomConfig(hidden_size=32, n_layer=2, n_head=4, vocab_size=48),
        t.FalconConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, vocab_size=48),
        t.MixtralConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
                        vocab_size=48, intermediate_size=64, num_local_experts=2),
    ],
    ids=lambda config: config.model_type,
)  # fmt: skip
def test_other_architectures(save, tmp_path, config):
    save(tmp_path / "m", config=config)
    assert codes(verify(discover([tmp_path / "m"])[0])) == []
    matrix = re.compile(r"(proj|dense|query_key_value|c_attn|w1)\.weight$")
    name = min(filter(matrix.search, load_file(tmp_path / "m" / "model.safetensors")))
    home = name.rpartition(".")[0]
    rewrite(tmp_path / "m", lambda tensors: tensors.update({f"{home}.weight_quantizer._amax": torch.ones(1)}))
    assert only_problem(tmp_path / "m")[0].code == "already_quantized"


@pytest.mark.parametrize(
    ("named", "kind", "named_as_another"),
    [(["LlamaForCausalLM"], "llama", False), (["MyOwnModel"], "llama", False), (None, "llama", False),
     ("LlamaModel", "llama", False), (["BertModel"], "llama", True), (["LlamaForCausalLM"], "mistral", True)],
)  # fmt: skip
def test_a_class_of_another_type_of_model_is_named(folder, named, kind, named_as_another):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "architectures": named, "model_type": kind}))
    found = verify(discover([folder])[0])
    assert codes(found) == (["class_differs"] if named_as_another else [])
    assert not found.fatal
