"""Contract: weights that are quantized already are refused by name, or measured with a note; never silently."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from ptq_eval.checkpoints import discover, error_for, verify
from ptq_eval.models.language_model import LanguageModel
from tests.checkpoints.support import codes


@pytest.fixture
def folder(save, tmp_path):
    save(tmp_path / "m")
    return tmp_path / "m"


def configure(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def rewrite(folder, change):
    """Rewrite the weights: `change(name, tensor)` gives the tensors that take the place of one projection."""
    tensors = {}
    for name, tensor in load_file(folder / "model.safetensors").items():
        tensors |= change(name, tensor) if name.endswith("_proj.weight") else {name: tensor}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def block_fp8(name, tensor, block=16):
    rows, columns = tensor.shape
    blocks = tensor.reshape(rows // block, block, columns // block, block)
    scale = blocks.abs().amax((1, 3)) / 448
    codes = (blocks / scale[:, None, :, None]).reshape(rows, columns).to(torch.float8_e4m3fn)
    return {name: codes, f"{name}_scale_inv": scale}


def gptq(name, tensor):
    rows, columns = tensor.shape
    home = name.removesuffix(".weight")
    return {
        f"{home}.qweight": torch.zeros(columns // 8, rows, dtype=torch.int32),
        f"{home}.qzeros": torch.zeros(1, rows // 8, dtype=torch.int32),
        f"{home}.scales": torch.ones(1, rows),
        f"{home}.g_idx": torch.zeros(columns, dtype=torch.int32),
    }


STORED = {
    "fp8": block_fp8,
    "fp8 of a tensor": lambda n, t: {n: t.to(torch.float8_e4m3fn), f"{n}_scale": torch.ones(1)},
    "fp8 without scales": lambda n, t: {n: t.to(torch.float8_e5m2)},
    "gptq": gptq,
    "int8": lambda n, t: {n: t.to(torch.int8), n.replace("weight", "SCB"): torch.ones(len(t))},
    "nf4": lambda n, t: {
        n: torch.zeros(t.numel() // 2, 1, dtype=torch.uint8),
        f"{n}.absmax": torch.ones(4),
        f"{n}.quant_map": torch.ones(16),
        f"{n}.quant_state.bitsandbytes__nf4": torch.zeros(9, dtype=torch.uint8),
    },
    "packed": lambda n, t: {
        f"{n}_packed": torch.zeros(len(t), 4, dtype=torch.int32),
        f"{n}_scale": torch.ones(len(t), 1),
        f"{n}_shape": torch.tensor(t.shape),
    },
    "scales beside plain weights": lambda n, t: {n: t, n.replace("weight", "input_scale"): torch.ones(1)},
}


@pytest.mark.parametrize("kind", STORED)
def test_quantized_weights_without_a_recipe(folder, kind):
    rewrite(folder, STORED[kind])
    found = verify(discover([folder])[0])
    (problem,) = found.problems
    assert (problem.code, problem.fatal) == ("already_quantized", True)
    assert "without their recipe" in str(problem)
    assert "_proj" in str(problem)
    assert error_for(found, problem).exit_code == 23


@pytest.mark.parametrize("entry", ["fp8", "bitsandbytes-nf4", ["int4"], True, 4])
def test_a_recipe_that_is_no_mapping_is_one(folder, entry):
    configure(folder, quantization_config=entry)
    found = verify(discover([folder])[0])
    (problem,) = found.fatal
    assert problem.code == "already_quantized"
    assert "not a mapping" in problem.message
    assert "remove quantization_config" in problem.remedy


@pytest.mark.parametrize(
    "entry",
    [
        None,
        {},
        [],
        "",
        "none",
        "NULL",
        False,
        "bfloat16",
        "fp16",
        "torch.float32",
        {"quant_method": "none", "bits": 16},
    ],
)
def test_a_recipe_that_says_there_is_none(folder, entry):
    configure(folder, quantization_config=entry)
    assert not verify(discover([folder])[0]).problems


@pytest.mark.parametrize("key", ["quantization_config", "compression_config"])
def test_the_key_that_holds_the_recipe_is_named(folder, key):
    configure(folder, **{key: {"bits": 4}})
    message = str(verify(discover([folder])[0]).problems[0])
    assert "(method not named, 4 bits)" in message
    assert f"remove {key} from config.json" in message


def test_a_recipe_in_a_file_of_its_own_is_named(folder):
    rewrite(folder, gptq)
    (folder / "quantize_config.json").write_text('{"bits": 4, "group_size": 128, "desc_act": false}')
    assert "(gptq, 4 bits)" in str(verify(discover([folder])[0]).problems[0])


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ({"bits": 4, "group_size": 128}, "(method not named, 4 bits)"),
        ({"zero_point": True, "q_group_size": 128, "w_bit": 4}, "(awq, 4 bits)"),
        ({"quant_method": "of-next-year"}, "(of-next-year)"),
        ({"quant_method": None, "bits": 3}, "(method not named, 3 bits)"),
        ({"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "W4A8_AWQ"}}, "(modelopt, 4 bits)"),
        ({"bits": 4, "activations": {"bits": 8}}, "(method not named, 4 bits)"),
        ({}, ""),
        ({"bits": True}, ""),
        ({"producer": {"name": "modelopt"}, "quantization": {"quant_algo": None, "kv_cache_quant_algo": "FP8"}}, ""),
        ({"kv_cache_scheme": {"num_bits": 8}}, ""),
        ({"activation_scheme": {"num_bits": 8}}, ""),
        ({"load_in_4bit": False, "load_in_8bit": False}, ""),
        ([4], ""),
        ("", ""),
    ],
)
@pytest.mark.parametrize("name", ["quantize_config.json", "quant_config.json", "hf_quant_config.json"])
def test_a_recipe_file_says_what_is_in_it_and_no_more(folder, name, content, named):
    """No method, an unknown one, nothing at all, and recipes for something else than weights."""
    rewrite(folder, gptq)
    (folder / name).write_text(json.dumps(content) if content != "" else "")
    (problem,) = verify(discover([folder])[0]).problems
    assert str(problem).startswith(f"quantized weights {named}".strip() + " without their recipe in config.json")


def test_a_stray_recipe_beside_full_precision_changes_nothing(folder):
    (folder / "quantize_config.json").write_text('{"bits": 4, "group_size": 128}')
    assert codes(verify(discover([folder])[0])) == []


def test_a_surplus_scale_that_belongs_to_no_weight_is_only_surplus(folder):
    tensors = load_file(folder / "model.safetensors")
    save_file({**tensors, "logit_scale": torch.ones(1)}, folder / "model.safetensors", metadata={"format": "pt"})
    assert codes(verify(discover([folder])[0])) == ["surplus_weights"]


COMPRESSED = {
    "quant_method": "compressed-tensors",
    "config_groups": {"group_0": {"targets": ["Linear"], "weights": {"num_bits": 4, "type": "int"}}},
}


@pytest.mark.parametrize(
    ("recipe", "named"),
    [
        ({"quant_method": "gptq", "bits": 3, "group_size": 128}, "gptq, 3 bits"),
        ({"quant_method": "awq", "bits": 4, "version": "gemm"}, "awq, 4 bits"),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True, "load_in_4bit": False}, "bitsandbytes, 8 bits"),
        ({"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}, "bitsandbytes, 4 bits"),
        (COMPRESSED, "compressed-tensors, 4 bits"),
        ({"quant_method": "hqq", "quant_config": {"weight_quant_params": {"nbits": 2}}}, "hqq, 2 bits"),
        ({"quant_method": "quanto", "weights": "int4"}, "quanto, 4 bits"),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, "modelopt, 4 bits"),
        ({"quant_method": "torchao", "quant_type": {"default": {"_type": "Int4WeightOnlyConfig"}}}, "torchao, 4 bits"),
        ({"quant_method": "quanto", "activations": "int8", "weights": "int4"}, "quanto, 4 bits"),
        ({"quant_method": "torchao", "quant_type": "int8_dynamic_activation_int4_weight"}, "torchao, 4 bits"),
        ({"quant_method": "bitnet", "linear_class": "autobitlinear"}, "bitnet"),
        ({"quant_method": "of-next-year"}, "of-next-year"),
    ],
)
def test_a_recipe_is_one_line(folder, recipe, named):
    configure(folder, quantization_config=recipe)
    found = verify(discover([folder])[0])
    (problem,) = found.problems
    assert (problem.code, problem.fatal) == ("already_quantized", True)
    assert f"quantized already ({named})" in str(problem)
    assert "measure the original" in str(problem)
    assert error_for(found, problem).exit_code == 23


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_weights_of_another_float_type_are_not_quantized(folder, dtype):
    rewrite(folder, lambda n, t: {n: t.to(dtype)})
    assert codes(verify(discover([folder])[0])) == []


@pytest.mark.parametrize("place", ["compression_config", "text_config"])
def test_a_recipe_elsewhere_in_the_configuration(folder, place):
    configure(folder, **{place: COMPRESSED if place == "compression_config" else {"quantization_config": COMPRESSED}})
    assert codes(verify(discover([folder])[0])) == ["already_quantized"]


def test_what_is_dequantized_on_loading_is_measured_and_says_so(folder):
    """Oracle: dequantized by hand."""
    plain = load_file(folder / "model.safetensors")
    rewrite(folder, block_fp8)
    stored = load_file(folder / "model.safetensors")
    configure(folder, quantization_config={"quant_method": "fp8", "weight_block_size": [16, 16], "fmt": "e4m3"})
    found = verify(discover([folder])[0])
    assert [(p.code, p.fatal) for p in found.problems] == [("dequantized", False)]
    assert "fp8, 8 bits" in found.problems[0].message
    model = LanguageModel.load(folder)
    for name, module in model.linears().items():
        scale = stored[f"{name}.weight_scale_inv"].repeat_interleave(16, 0).repeat_interleave(16, 1)
        by_hand = stored[f"{name}.weight"].float() * scale
        assert torch.allclose(module.weight, by_hand, rtol=1e-2, atol=1e-4)
        assert torch.allclose(module.weight, plain[f"{name}.weight"], rtol=0.1, atol=0.01)


def test_full_precision_weights_with_such_a_recipe_are_measured_as_they_are(folder):
    configure(folder, quantization_config={"quant_method": "fp8", "weight_block_size": [16, 16], "fmt": "e4m3"})
    found = verify(discover([folder])[0])
    assert [(p.code, p.fatal) for p in found.problems] == [("recipe_unused", False)]
    assert "quantization_config" in found.problems[0].remedy
    plain = load_file(folder / "model.safetensors")
    for name, module in LanguageModel.load(folder).linears().items():
        assert torch.equal(module.weight, plain[f"{name}.weight"])
