"""Contract: folders that are no model with weights say what they are, and how to make a model of them."""

import json
import re

import pytest

from ptq_eval.checkpoints import discover, verify
from ptq_eval.checkpoints.foreign import foreign, recognised
from ptq_eval.errors import UnsupportedModelError
from tests.checkpoints.support import codes, llama_config, only_problem

STATE = {"global_step": 10, "num_input_tokens_seen": 1000, "log_history": []}


@pytest.fixture
def folder(tmp_path):
    """A Trainer's folder with everything but weights."""
    place = tmp_path / "run" / "checkpoint-10"
    llama_config().save_pretrained(place)
    (place / "trainer_state.json").write_text(json.dumps(STATE))
    return place


def put(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * 100)


@pytest.mark.parametrize("with_config", [True, False])
@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["pytorch_model_fsdp_0/__0_0.distcp", "pytorch_model_fsdp_0/.metadata", "optimizer_0/.metadata"],
         ["FSDP", "accelerate merge-weights {}/pytorch_model_fsdp_0 {}"]),
        (["global_step10/zero_pp_rank_0_mp_rank_00_model_states.pt", "latest", "zero_to_fp32.py"],
         ["DeepSpeed ZeRO", "zero_to_fp32 {} {} --tag global_step10"]),
        (["global_step10/bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt", "global_step10/mp_rank_00_model_states.pt"],
         ["DeepSpeed ZeRO", "zero_to_fp32"]),
        (["zero_to_fp32.py", "latest"], ["DeepSpeed ZeRO", "python {}/zero_to_fp32.py {} {}"]),
        (["mp_rank_00_model_states.pt"], ["DeepSpeed", "into {}/configs", "--architecture CONFIG"]),
        (["layer_00-model_00-model_states.pt", "mp_rank_00_model_states.pt"],
         ["GPT-NeoX", "into {}/configs", "convert_neox_to_hf"]),
        (["mp_rank_00/model_optim_rng.pt"],
         ["Megatron-LM", "--load {}", "--ckpt-convert-format torch_dist", "convert.sh"]),
        (["common.pt", ".metadata", "__0_0.distcp", "metadata.json"],
         ["Megatron-LM (torch_dist)", "./scripts/conversion/convert.sh export", "--megatron-path {} --hf-path NEW"]),
        ([".metadata", "__0_0.distcp", "__1_0.distcp"], ["DCP", "dcp_to_torch {} {}/pytorch_model.bin"]),
        (["model_and_optim/.metadata", "train/rank0.pt"], ["OLMo-core"]),
        (["model-q4.gguf"], ["GGUF", "gguf_file='model-q4.gguf'"]),
        (["_CHECKPOINT_METADATA", "manifest.ocdbt", "d/abc"], ["Orbax"]),
        (["flax_model.msgpack"], ["Flax", "from_flax=True"]),
        (["tf_model.h5"], ["TensorFlow", "from_tf=True"]),
        (["consolidated.00.pth", "params.json"], ["Meta", "{}"]),
        (["actor/model_world_size_8_rank_0.pt", "actor/fsdp_config.json"],
         ["verl", "model_merger merge --backend fsdp --local_dir {}/actor"]),
        (["model_world_size_2_rank_1.pt"], ["verl", "--local_dir {} --target_dir NEW"]),
        (["checkpoint_metadata.json", "model_config.json"], ["nanotron", "fetch the folder model/"]),
        (["model/pp_00/tp_00/sdp_00.pt", "optimizer/pp_00/tp_00/sdp_00.pt"], ["fairseq2", "--architecture CONFIG"]),
        (["hf_model_0001_0.pt"], ["torchtune", "FullModelHFCheckpointer"]),
        (["ft-model-00001-of-00002.safetensors", "recipe_state/recipe_state.pt"], ["torchtune"]),
        (["epoch=1-step=98.ckpt"], ["Lightning", "--architecture CONFIG", "{}/epoch=1-step=98.ckpt", "state_dict"]),
        (["last.ckpt"], ["Lightning"]),
        (["checkpoint_best.pt", "checkpoint_last.pt", "dict.txt"], ["fairseq"]),
        (["checkpoint_1_500.pt"], ["fairseq"]),
        (["reshard-model_part-0.pt"], ["metaseq", "convert_opt_original"]),
        (["model_state.pdparams"], ["PaddlePaddle", "safetensors"]),
        (["reshard-model_part-0.pt"], ["metaseq", "convert_to_singleton {}", "--fairseq_path {}/restored.pt"]),
        (["consolidated.safetensors", "params.json"], ["Mistral", "convert_mistral_weights_to_hf.py {} NEW"]),
        (["weights.msgpack"], ["JAX", "the library that wrote it"]),
        (["model.weights.h5"], ["Keras", "the library that wrote it"]),
        (["model.safetensors.incomplete"], ["unfinished download"]),
        ([".cache/huggingface/download/abc.incomplete"], ["unfinished download"]),
        (["pytorch_model.bin.part"], ["unfinished download"]),
        (["model-00001-of-00002.safetensors.aria2"], ["unfinished download"]),
        (["model.safetensors.tmp"], ["still being written"]),
        (["model.safetensors.dvc"], ["DVC", "dvc pull"]),
        (["lit_model.pth.lora", "model_config.yaml"], ["an adapter of LitGPT", "litgpt merge_lora {}, of"]),
        (["lit_model.pth.adapter_v2", "model_config.yaml"], ["LitGPT that cannot be merged", "measure its base model"]),
        (["pytorch_lora_weights.safetensors"], ["LoRA weights of a diffusion model"]),
        (["adapter_0.pt", "recipe_state.pt"], ["an adapter of torchtune", "save_adapter_weights_only=False"]),
        (["RWKV-4-Pile-169M.pth"], ["RWKV", "--checkpoint_file RWKV-4-Pile-169M.pth"]),
        (["qmodel.pt"], ["quantized", "quantized from"]),
        (["gptq_model-4bit-128g.safetensors"], ["quantized"]),
        (["openvino_model.bin", "openvino_model.xml"], ["exported"]),
        (["weights.00.npz"], ["arrays"]),
        (["weights.safetensors"],
         ["name that transformers does not look for", "--architecture CONFIG",
          "rename weights.safetensors to model.safetensors and"]),
        (["my_model.pth", "optimizer.pt"], ["rename my_model.pth to pytorch_model.bin and"]),
        (["my_model.bin"], ["rename my_model.bin to pytorch_model.bin and"]),
        (["model/pytorch_model-00001.bin", "model/pytorch_model-00002.bin"],
         ["config.json and the index of the shards (*.index.json) into {}/model, and"]),
        (["model.fp16-00001-of-00002.safetensors", "model.fp16-00002-of-00002.safetensors",
          "model.safetensors.index.fp16.json"], ["variant", "variant='fp16').save_pretrained(NEW)"]),
        (["pytorch_model.bf16-00001-of-00003.bin"], ["variant='bf16').save_pretrained(NEW)"]),
        (["model.safetensors.index.fp16.json"], ["variant='fp16'"]),
        (["model.fp16.safetensors"], ["variant", "rename model.fp16.safetensors to model.safetensors"]),
    ],
)  # fmt: skip
def test_the_format_and_what_converts_it(folder, names, expected, with_config):
    put(folder, *names)
    if not with_config:
        (folder / "config.json").unlink()
    problem, error = only_problem(folder.parent)
    assert problem.code == "not_a_model"
    assert error.exit_code == 23
    for text in expected:
        assert text.replace("{}", str(folder)) in str(problem)


@pytest.mark.parametrize(
    "content",
    [
        '{"peft_type": "LORA", "base_model_name_or_path": "org/base"}',
        '{"peft_type": ["LORA"], "base_model_name_or_path": null}', '{"base_model_name_or_path": {}}', "[]", "{}", "[",
        None,
    ],
)  # fmt: skip
def test_an_adapter_names_its_base(folder, content):
    put(folder, "adapter_model.safetensors")
    (folder / "config.json").unlink()
    if content is not None:
        (folder / "adapter_config.json").write_text(content)
    problem, error = only_problem(folder.parent)
    assert (problem.code, error.exit_code) == ("not_a_model", 23)
    named = bool(content and "org" in content)
    base = "org/base" if named else "BASE"
    into = "its base model org/base" if named else "its base model, which is not recorded"
    assert f"merge it into {into}" in str(problem)
    assert f"an adapter ({'LORA' if named else 'PEFT'})" in str(problem)
    assert f"from_pretrained('{base}'), '{folder}').merge_and_unload()" in str(problem)


@pytest.mark.parametrize("below", ["adapter_model", "default"])
@pytest.mark.parametrize("with_state", [True, False])
def test_an_adapter_in_a_folder_of_its_own(tmp_path, below, with_state):
    for step in (10, 20):
        home = tmp_path / "run" / f"checkpoint-{step}" / below
        put(home, "adapter_model.bin")
        (home / "adapter_config.json").write_text('{"peft_type": "LORA", "base_model_name_or_path": "org/base"}')
        if with_state:
            (home.parent / "trainer_state.json").write_text(json.dumps({"global_step": step}))
    first = tmp_path / "run" / "checkpoint-10" / below
    says = f"merge it into its base model org/base .*from_pretrained\\('org/base'\\), '{first}'"
    if with_state:
        assert [codes(verify(c)) for c in discover([tmp_path / "run"])] == [["not_a_model"]] * 2
        assert re.search(says, str(only_problem(tmp_path / "run")[1]))
    else:
        with pytest.raises(UnsupportedModelError, match=says):
            discover([tmp_path / "run"])


def test_an_adapter_of_mlx(folder):
    put(folder, "adapters.safetensors")
    content = {"fine_tune_type": "lora", "model": "mlx-community/m", "lora_parameters": {"rank": 8}}
    (folder / "adapter_config.json").write_text(json.dumps(content))
    (folder / "config.json").unlink()
    problem, _ = only_problem(folder.parent)
    assert "an adapter (lora), not a model: merge it into its base model mlx-community/m" in str(problem)
    assert f"mlx_lm.fuse --model mlx-community/m --adapter-path {folder} --save-path NEW" in str(problem)


@pytest.mark.parametrize("method", ["PROMPT_TUNING", "PREFIX_TUNING", "P_TUNING", "MULTITASK_PROMPT_TUNING", "CPT"])
@pytest.mark.parametrize("base", ["org/base", None])
def test_learned_prompts_cannot_be_merged(folder, method, base):
    put(folder, "adapter_model.safetensors")
    content = {"peft_type": method, "base_model_name_or_path": base}
    (folder / "adapter_config.json").write_text(json.dumps(content))
    problem, error = only_problem(folder.parent)
    assert (problem.code, error.exit_code) == ("not_a_model", 23)
    assert f"an adapter ({method})" in str(problem)
    assert "merge_and_unload" not in str(problem)
    assert "measure its base model" in str(problem)
    assert base is None or base in str(problem)


@pytest.mark.parametrize(
    "names", [["optimizer.pt", "rng_state.pth"], ["data.bin"], ["scores.pt"], ["training_args.bin"]]
)
def test_other_files_are_not_called_weights(folder, names):
    put(folder, *names)
    assert foreign(folder) is None


@pytest.mark.parametrize("depth", ["", "actor/", "a/actor/"])
def test_a_folder_of_shards_some_levels_down_is_recognised(tmp_path, depth):
    put(tmp_path, f"{depth}model_world_size_1_rank_0.pt")
    with pytest.raises(UnsupportedModelError, match=r"verl.*--local_dir"):
        discover([tmp_path])


def test_the_code_that_merges_an_adapter_is_python_whatever_the_names(tmp_path):
    folder = tmp_path / "it's a run"
    folder.mkdir()
    (folder / "adapter_model.safetensors").write_text("x")
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "it's/base"}))
    compile(foreign(folder).remedy, "remedy", "eval")


@pytest.mark.parametrize(
    ("names", "itself"),
    [
        (["adapter_config.json"], True),
        (["m.gguf"], True),
        (["__0_0.distcp", ".metadata"], True),
        (["pytorch_model_fsdp_0/.metadata"], True),
        (["mp_rank_00/model_optim_rng.pt"], True),
        (["zero_pp_rank_0_mp_rank_00_model_states.pt"], True),
        (["step1/__0_0.distcp"], False),
        (["checkpoint-1/adapter_model.safetensors"], False),
        (["notes.txt", "data/part.bin"], False),
    ],
)
def test_a_folder_is_recognised_by_its_own_files(tmp_path, names, itself):
    put(tmp_path, *names)
    assert recognised(tmp_path) == itself


def test_one_folder_that_is_something_else_leaves_the_others(save_run, tmp_path):
    run = save_run(tmp_path / "r", ["step1", "step2"])
    (run / "step1" / "model.safetensors").unlink()
    put(run / "step1", "adapter_model.safetensors")
    assert [codes(verify(c)) for c in discover([run])] == [["not_a_model"], []]
