"""Contract: folders that are no model with weights say what they are, and how to make a model of them."""

import json
import os

import pytest
import torch

from ptq_eval.checkpoints import discover, error_for, verify
from ptq_eval.checkpoints.foreign import foreign, recognised
from ptq_eval.errors import TrajectoryFileError, UnsupportedModelError
from tests.checkpoints.support import codes, llama_config

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


def only_problem(folder):
    found = verify(discover([folder.parent])[0])
    (problem,) = found.problems
    assert problem.fatal
    assert "\n" not in str(problem)
    return problem, error_for(found, problem)


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
        (["mp_rank_00_model_states.pt"], ["DeepSpeed", "save_pretrained"]),
        (["layer_00-model_00-model_states.pt", "mp_rank_00_model_states.pt"], ["GPT-NeoX", "convert_neox_to_hf"]),
        (["mp_rank_00/model_optim_rng.pt"], ["Megatron-LM", "{}"]),
        ([".metadata", "__0_0.distcp", "__1_0.distcp"], ["DCP", "dcp_to_torch {} {}/pytorch_model.bin"]),
        (["model_and_optim/.metadata", "train/rank0.pt"], ["OLMo-core"]),
        (["model-q4.gguf"], ["GGUF", "gguf_file='model-q4.gguf'"]),
        (["_CHECKPOINT_METADATA", "manifest.ocdbt", "d/abc"], ["Orbax"]),
        (["flax_model.msgpack"], ["Flax", "from_flax=True"]),
        (["tf_model.h5"], ["TensorFlow", "from_tf=True"]),
        (["consolidated.00.pth", "params.json"], ["Meta", "{}"]),
        (["lit_model.pth"], ["litgpt", "convert_from_litgpt {}"]),
        (["actor/model_world_size_8_rank_0.pt", "actor/fsdp_config.json"],
         ["verl", "model_merger merge --backend fsdp --local_dir {}/actor"]),
        (["model_world_size_2_rank_1.pt"], ["verl", "--local_dir {} --target_dir NEW"]),
        (["checkpoint_metadata.json", "model_config.json", "model/x/model_weight_pp-rank-0.safetensors"],
         ["nanotron", "convert_nanotron_to_hf", "--checkpoint_path={}", "--tokenizer_name="]),
        (["hf_model_0001_0.pt"], ["torchtune", "FullModelHFCheckpointer"]),
        (["ft-model-00001-of-00002.safetensors", "recipe_state/recipe_state.pt"], ["torchtune"]),
        (["epoch=1-step=98.ckpt"], ["Lightning", "{}/epoch=1-step=98.ckpt", "state_dict"]),
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
        (["RWKV-4-Pile-169M.pth"], ["RWKV", "--checkpoint_file RWKV-4-Pile-169M.pth"]),
        (["qmodel.pt"], ["quantized", "quantized from"]),
        (["gptq_model-4bit-128g.safetensors"], ["quantized"]),
        (["openvino_model.bin", "openvino_model.xml"], ["exported"]),
        (["weights.00.npz"], ["arrays"]),
        (["weights.safetensors"], ["name that transformers does not look for", "rename weights.safetensors"]),
        (["my_model.pth", "optimizer.pt"], ["rename my_model.pth"]),
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
    problem, error = only_problem(folder)
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
    problem, error = only_problem(folder)
    assert (problem.code, error.exit_code) == ("not_a_model", 23)
    named = bool(content and "org" in content)
    base = "org/base" if named else "BASE"
    into = "its base model org/base" if named else "its base model, which is not recorded"
    assert f"merge it into {into}" in str(problem)
    assert f"an adapter ({'LORA' if named else 'PEFT'})" in str(problem)
    assert f"from_pretrained('{base}'), '{folder}').merge_and_unload()" in str(problem)


@pytest.mark.parametrize("method", ["PROMPT_TUNING", "PREFIX_TUNING", "P_TUNING", "MULTITASK_PROMPT_TUNING", "CPT"])
@pytest.mark.parametrize("base", ["org/base", None])
def test_learned_prompts_cannot_be_merged(folder, method, base):
    put(folder, "adapter_model.safetensors")
    content = {"peft_type": method, "base_model_name_or_path": base}
    (folder / "adapter_config.json").write_text(json.dumps(content))
    problem, error = only_problem(folder)
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


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_weights_that_are_a_broken_link(folder, name):
    (folder / name).symlink_to("../../blobs/0123")
    problem, error = only_problem(folder)
    assert problem.code == "unreadable"
    assert f"{name} is a link to a file that does not exist" in str(error)
    assert "blobs/0123" in str(error)
    assert "rename" not in str(error)


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
    "name",
    ["model.safetensors", "config.json", "tokenizer.json", "pytorch_model.bin", "tokenizer_config.json", "vocab.json"],
)
@pytest.mark.parametrize("content", [b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", b""])
def test_pointers_and_placeholders(save, tmp_path, name, content):
    folder = tmp_path / "run" / "checkpoint-10"
    save(folder)
    if name == "pytorch_model.bin":
        (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(content)
    problem, error = only_problem(folder)
    assert (problem.code, error.exit_code) == ("unreadable", 12)
    assert name in str(problem)
    assert "git lfs pull" in str(problem)


@pytest.mark.parametrize(
    "name",
    [
        "merges.txt",
        "special_tokens_map.json",
        "added_tokens.json",
        "spiece.model",
        "generation_config.json",
        "qwen.tiktoken",
        "modeling_x.py",
        "chat_template.jinja",
        "trainer_state.json",
    ],
)
@pytest.mark.parametrize("beside", [False, True])
def test_a_pointer_of_git_lfs_in_place_of_any_file(save, tmp_path, name, beside):
    folder = tmp_path / "run" / "checkpoint-10"
    save(folder)
    if beside:  # the tokenizer of a run is in its folder
        (folder / "tokenizer.json").rename(folder.parent / "tokenizer.json")
    (folder.parent if beside else folder).joinpath(name).write_text("version https://git-lfs.github.com/spec/v1\n")
    found = verify(discover([folder.parent])[0])
    assert [str(p) for p in found.problems if p.fatal] == [
        f"{name} is a git-lfs pointer, not the file itself | remedy: run `git lfs pull` in its repository"
    ]


def test_a_missing_shard_among_pointers_is_still_a_pointer(save, tmp_path):
    folder = tmp_path / "run" / "checkpoint-10"
    save(folder, max_shard_size="20KB")
    first, second, *_ = sorted(folder.glob("*-of-*"))
    first.write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    second.unlink()
    assert "git lfs pull" in str(only_problem(folder)[0])


@pytest.mark.parametrize("stem", ["model.safetensors", "pytorch_model.bin"])
def test_an_index_that_is_a_pointer(save, tmp_path, stem):
    folder = tmp_path / "run" / "checkpoint-10"
    save(folder)
    (folder / "model.safetensors").unlink()
    (folder / f"{stem}.index.json").write_text("version https://git-lfs.github.com/spec/v1\n")
    assert f"{stem}.index.json is a git-lfs pointer" in str(only_problem(folder)[0])


SPECIAL = {"folder": os.mkdir, "pipe": os.mkfifo, "device": lambda path: path.symlink_to("/dev/zero")}


@pytest.mark.parametrize("kind", SPECIAL)
@pytest.mark.parametrize(
    "name",
    ["model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors.index.json"],
)
def test_what_is_no_file_is_named_and_never_read(save, tmp_path, name, kind):
    """Reading from a pipe waits for a writer for ever."""
    folder = tmp_path / "run" / "checkpoint-10"
    save(folder)
    (folder / name).unlink(missing_ok=True)
    SPECIAL[kind](folder / name)
    problem, error = only_problem(folder)
    assert (problem.code, error.exit_code) == ("unreadable", 12)
    assert f"{name} is a {kind}" in str(problem) or "device, not a file" in str(problem)


@pytest.mark.parametrize("kind", SPECIAL)
@pytest.mark.parametrize("shards", [True, False])
def test_a_shard_and_a_pickle_that_are_no_files(save, tmp_path, shards, kind):
    folder = tmp_path / "run" / "checkpoint-10"
    save(folder, **({"max_shard_size": "20KB"} if shards else {}))
    name = next(folder.glob("*-of-*")) if shards else folder / "pytorch_model.bin"
    (name if shards else folder / "model.safetensors").unlink()
    SPECIAL[kind](name)
    assert name.name in str(only_problem(folder)[0])
    assert "not a file" in str(only_problem(folder)[0])


@pytest.mark.parametrize("kind", SPECIAL)
def test_other_files_of_a_run_that_are_none(save, tmp_path, kind):
    folder = tmp_path / "run" / "checkpoint-10"
    save(folder)
    SPECIAL[kind](folder.parent / "pretrain.json")  # says only which runs differ in their seed
    SPECIAL[kind](folder / "trainer_state.json")
    found = verify(discover([folder.parent])[0])
    assert bool(found.fatal) == (kind != "folder")
    SPECIAL[kind](folder.parent / "trajectory.yaml")
    with pytest.raises(TrajectoryFileError, match=r"trajectory\.yaml cannot be read"):
        discover([folder.parent])


def test_a_broken_link_beside_whole_weights_is_no_problem(save, tmp_path):
    save(tmp_path / "r" / "step1")
    (tmp_path / "r" / "step1" / "model_ema.safetensors").symlink_to("nowhere")
    assert codes(verify(discover([tmp_path / "r"])[0])) == []


def test_a_pointer_that_is_not_needed_is_no_problem(save, tmp_path):
    save(tmp_path / "r" / "step1")
    (tmp_path / "r" / "step1" / "pytorch_model.bin").write_text("version https://git-lfs.github.com/spec/v1\n")
    found = verify(discover([tmp_path / "r"])[0])
    assert codes(found) == ["unused_files"]


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


def test_tensors_without_content_are_named(save, tmp_path):
    import torch
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "run" / "checkpoint-10"
    save(folder)
    tensors = {name: torch.empty(0) for name in load_file(folder / "model.safetensors")}
    save_file(tensors, folder / "model.safetensors")
    problem, _ = only_problem(folder)
    assert problem.code == "not_loaded"
    assert "zero_to_fp32" in str(problem)


def test_one_folder_that_is_something_else_leaves_the_others(save_run, tmp_path):
    run = save_run(tmp_path / "r", ["step1", "step2"])
    (run / "step1" / "model.safetensors").unlink()
    put(run / "step1", "adapter_model.safetensors")
    assert [codes(verify(c)) for c in discover([run])] == [["not_a_model"], []]


NOT_THE_FILE = {
    "Xet": (b"# xet version 0\nfilesize = 1\nhash = '0'\n", "hf download"),
    "git-annex": (b"/annex/objects/SHA256E-s9--0.safetensors\n", "git annex get"),
    "web page": (b"\n<!DOCTYPE html>\n<html><body>Sign in</body></html>", "hf auth login"),
    "web page ": (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "download it again"),
    "text": (b'{"error": "Access to model org/m is restricted"}', "fetch it again"),
    "text ": (b"Entry not found", "fetch it again"),
    "compressed": (b"\x1f\x8b\x08" + bytes(300), "decompress it"),
    "GGUF": (b"GGUF\x03\x00\x00\x00" + bytes(300), "measure the original"),
    "HDF5": (b"\x89HDF\r\n" + bytes(300), "fetch it again"),
}


@pytest.mark.parametrize("kind", NOT_THE_FILE)
@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_what_a_file_holds_instead_of_weights_is_named(save, tmp_path, kind, name):
    folder = tmp_path / "run" / "checkpoint-10"
    save(folder)
    (folder / "model.safetensors").unlink()
    content, remedy = NOT_THE_FILE[kind]
    (folder / name).write_bytes(content)
    problem, error = only_problem(folder)
    assert error.exit_code == 12
    assert f"{name} is " in problem.message
    assert kind.strip() in problem.message
    assert remedy in problem.remedy
    assert "corrupt" not in str(problem)


@pytest.mark.parametrize("kind", ["Xet", "git-annex", "web page"])
def test_a_configuration_that_is_a_pointer_or_a_page(save, tmp_path, kind):
    folder = tmp_path / "run" / "checkpoint-10"
    save(folder)
    (folder / "config.json").write_bytes(NOT_THE_FILE[kind][0])
    assert f"config.json is a {kind}" in only_problem(folder)[0].message.replace("pointer of ", "")


def test_weights_in_the_other_format_by_their_content(save, tmp_path):
    folder = tmp_path / "run" / "checkpoint-10"
    save(folder)
    weights = (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    assert "is a safetensors file" in only_problem(folder)[0].message
    torch.save({"w": torch.zeros(3)}, folder / "model.safetensors")
    weights.unlink()
    assert "is a pickle of PyTorch" in only_problem(folder)[0].message


@pytest.mark.parametrize(
    ("target", "by"),
    [("../.git/annex/objects/a", "git annex get"), ("../.dvc/cache/a", "dvc pull"), ("../../blobs/a", "hf download")],
)
def test_a_broken_link_is_fetched_by_what_made_it(folder, target, by):
    (folder / "model.safetensors").symlink_to(target)
    assert by in only_problem(folder)[0].remedy
