"""Folders that look like a checkpoint and hold something else: which format it is, and how to convert it.

Recognised by the names of files in the folder and some levels below alone; what the files hold is for `contents`.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ptq_eval.checkpoints.adapters import adapter
from ptq_eval.errors import PtqEvalError, UnsupportedModelError

_SHARDS = re.compile(r"pytorch_model_fsdp_\d+$|mp_rank_\d+(_\d+)*$|model_and_optim$")
"""Folders within a checkpoint that hold its shards."""


@dataclass(frozen=True)
class _Kind:
    """A format: its name, file names that only it has, and what makes a model of it ({folder} and {home} are paths).

    The options of each converter were read in the source that is named beside it; none was run here.  The wheel of
    transformers does not hold its converters.
    """

    name: str
    patterns: tuple[str, ...]
    remedy: str

    def holds(self, names: list[str]) -> str | None:
        """The first of the names that is of this format."""
        return next((name for name in names for p in self.patterns if fnmatch.fnmatchcase(name, p)), None)

    def advice(self, folder: Path, file: str) -> str:
        """How to make a model of `file`, found in a folder or one level below."""
        variant = (re.findall(r"\.(\w+)(?:-\d+-of-\d+)?\.(?:safetensors|bin|json)$", file) or [""])[0]
        home = (folder / file).parent
        above = home.parent if home.name.startswith("mp_rank_") else home
        run = above.parent if above.name.startswith("iter_") else above
        return self.remedy.format(folder=folder, home=home, run=run, file=file, variant=variant)


# torch/distributed/checkpoint/format_utils.py: mode, source, destination.
_DCP = "python -m torch.distributed.checkpoint.format_utils dcp_to_torch {home} {folder}/pytorch_model.bin"
_OLD = "with transformers<5: AutoModelForCausalLM.from_pretrained('{folder}', %s=True).save_pretrained(NEW)"

_GIVEN = "give the model's configuration: --architecture CONFIG (a config.json of transformers)"
"""Where a file of tensors can be read as it is."""

_BY_LIBRARY = (
    "with the library that wrote it, save its tensors as safetensors under the names that transformers has for them, "
    "and put a config.json beside them"
)


# scripts/conversion/README.md of NVIDIA-NeMo/Megatron-Bridge
_BRIDGE = (
    "./scripts/conversion/convert.sh export --executor local --device cpu --hf-model MODEL (one on the hub of the same "
    "architecture) --megatron-path %s --hf-path NEW, of Megatron-Bridge"
)


def _unfinished(*ends: str) -> tuple[str, ...]:
    """Names of weights with one more ending."""
    return tuple(f"*.{kind}.{end}" for kind in ("safetensors", "bin", "pt", "pth") for end in ends)


_KINDS = (
    _Kind(
        "shards of DeepSpeed ZeRO",
        ("*_optim_states.pt", "*/*_optim_states.pt", "*zero_pp_rank_*", "*/*zero_pp_rank_*"),
        # deepspeed/utils/zero_to_fp32.py: the folder that holds the tag's, the output, the tag.
        "python -m deepspeed.utils.zero_to_fp32 {home.parent} {folder} --tag {home.name} --safe_serialization",
    ),
    _Kind(
        "shards of DeepSpeed ZeRO",
        ("zero_to_fp32.py",),
        "python {folder}/zero_to_fp32.py {folder} {folder} --safe_serialization",
    ),
    _Kind(
        "a pipeline of GPT-NeoX or Megatron-DeepSpeed without its options",
        ("layer_*-model_*-model_states.pt", "*/layer_*-model_*-model_states.pt"),
        # tools/ckpts/convert_neox_to_hf.py of EleutherAI/gpt-neox
        "if GPT-NeoX wrote it, copy the YAML files of its training into {home}/configs; or "
        "python tools/ckpts/convert_neox_to_hf.py --input_dir {home} --config_file CONFIG.yml --output_dir NEW",
    ),
    _Kind(
        "DeepSpeed model states",
        ("mp_rank_*_model_states.pt", "*/mp_rank_*_model_states.pt"),
        "if GPT-NeoX wrote it, copy the YAML files of its training into {home}/configs; otherwise "
        + _GIVEN,
    ),
    _Kind(
        "a checkpoint of Megatron-LM in its earlier format",
        ("mp_rank_*/model_*rng.pt", "*/mp_rank_*/model_*rng.pt", "model_optim_rng.pt"),
        # megatron/training/config/training_config.py: ckpt_convert_format, ckpt_convert_save
        "first write it as torch_dist, the command that trained it with --load {run} --ckpt-convert-format torch_dist "
        "--ckpt-convert-save NEW, of Megatron-LM; then " + _BRIDGE % "NEW/torch_dist/iter_N",
    ),
    _Kind(
        "a checkpoint of Megatron-LM (torch_dist)",
        ("common.pt", "*/common.pt", "distrib_optim.pt", "*/distrib_optim.pt"),
        _BRIDGE % "{home}",
    ),
    _Kind(
        "a checkpoint of OLMo-core",
        ("model_and_optim/*",),
        # -i is --checkpoint-input-path, -o --huggingface-output-dir.
        "python src/examples/huggingface/convert_checkpoint_to_hf.py -i {folder} -o NEW, of OLMo-core",
    ),
    _Kind(
        "FSDP shards of accelerate",
        ("pytorch_model_fsdp_*/*.distcp", "pytorch_model_fsdp_*/.metadata"),
        # accelerate/commands/merge.py: checkpoint_directory, output_path
        "accelerate merge-weights {home} {folder}",
    ),
    _Kind("a distributed checkpoint of torch (DCP)", ("*.distcp", "*/*.distcp", ".metadata", "*/.metadata"), _DCP),
    _Kind(
        "a GGUF file",
        ("*.gguf",),
        "measure the original; an unquantized one: AutoModelForCausalLM.from_pretrained('{folder}', "
        "gguf_file='{file}').save_pretrained(NEW)",
    ),
    _Kind(
        "an Orbax or TensorStore checkpoint (JAX)",
        ("_CHECKPOINT_METADATA", "_METADATA", "*/_METADATA", "manifest.ocdbt", "*/manifest.ocdbt", "ocdbt.process_*",
         "checkpoint.ckpt", "*/.zarray", ".zarray"),
        "the converter to Hugging Face of the library that trained it",
    ),
    # src/transformers/modeling_utils.py of version 4 looks for these names; version 5 has no Flax and TensorFlow.
    _Kind("Flax weights", ("flax_model.msgpack", "flax_model.msgpack.index.json"), _OLD % "from_flax"),
    _Kind("TensorFlow weights", ("tf_model.h5", "tf_model.h5.index.json"), _OLD % "from_tf"),
    _Kind("weights of Flax or another library of JAX", ("*.msgpack",), _BY_LIBRARY),
    _Kind("weights of TensorFlow or Keras", ("*.h5", "*.keras", "*.ckpt.index", "*.ckpt-*.index"), _BY_LIBRARY),
    _Kind(
        "weights in the format of Mistral",
        ("consolidated*.safetensors",),
        # Both arguments are positional there.
        "python src/transformers/models/mistral/convert_mistral_weights_to_hf.py {folder} NEW, in a clone of "
        "transformers",
    ),
    _Kind(
        "weights in the format of Meta or Mistral",
        ("consolidated*.pth",),
        "of Meta: python src/transformers/models/llama/convert_llama_weights_to_hf.py --input_dir {folder} "
        "--output_dir NEW --model_size SIZE --llama_version VERSION; of Mistral: "
        "python src/transformers/models/mistral/convert_mistral_weights_to_hf.py {folder} NEW --modules_are_split; "
        "in a clone of transformers",
    ),
    _Kind(
        "a checkpoint of Composer",
        ("ep*-ba*-rank*.pt",),
        # scripts/inference/README.md of mosaicml/llm-foundry
        "python scripts/inference/convert_composer_to_hf.py --composer_path {folder}/{file} --hf_output_path NEW, of "
        "llm-foundry",
    ),
    _Kind(
        "a checkpoint of NeMo",
        ("*.nemo", "model_weights/*"),
        # Of NeMo 2, nemo/collections/llm/api.py; files of NeMo 1 need the script of their model there.
        "nemo.collections.llm.export_ckpt(path=Path('{folder}'), target='hf', output_path=Path(NEW)), of NeMo 2",
    ),
    _Kind("an ONNX model", ("*.onnx",), "measure the model it was exported from"),
    _Kind("a diffusion model", ("diffusion_pytorch_model*", "model_index.json"), "exclude it"),
    _Kind(
        "FSDP shards of verl",
        ("model_world_size_*_rank_*.pt", "*/model_world_size_*_rank_*.pt"),
        # verl/model_merger/__main__.py
        "python -m verl.model_merger merge --backend fsdp --local_dir {home} --target_dir NEW",
    ),
    _Kind(
        "a checkpoint of nanotron without its parameters",
        ("checkpoint_metadata.json", "*/checkpoint_metadata.json"),
        "fetch the folder model/ beside it",
    ),
    _Kind(
        "a checkpoint of fairseq2",
        ("model/pp_*/tp_*", "*/model/pp_*/tp_*"),
        _GIVEN,
    ),
    _Kind(
        "an adapter of LitGPT",
        ("lit_model.pth.lora", "*/lit_model.pth.lora"),
        # litgpt/scripts/merge_lora.py writes lit_model.pth beside it.
        "litgpt merge_lora {home}, of LitGPT; what it writes is read as it is",
    ),
    _Kind(
        "an adapter of LitGPT that cannot be merged into weights",
        ("lit_model.pth.adapter*", "*/lit_model.pth.adapter*"),
        # litgpt/finetune/adapter.py and adapter_v2.py
        "measure its base model",
    ),
    _Kind("LoRA weights of a diffusion model", ("pytorch_lora_weights.*", "*/pytorch_lora_weights.*"), "exclude it"),
    _Kind(
        "an adapter of torchtune",
        ("adapter_[0-9]*.pt", "*/adapter_[0-9]*.pt"),
        # save_adapter_weights_only of recipes/lora_finetune_single_device.py
        "let torchtune write the merged model too: save_adapter_weights_only=False, of its recipe",
    ),
    _Kind(
        "a checkpoint of torchtune",
        ("hf_model_*.pt", "*/hf_model_*.pt", "torchtune_model_*.pt", "meta_model_*.pt", "recipe_state.pt",
         "recipe_state/recipe_state.pt", "ft-model-*"),
        # torchtune.training.FullModelHFCheckpointer
        "let torchtune write it with its FullModelHFCheckpointer (safe_serialization: true), and put the model's "
        "config.json beside it",
    ),
    _Kind(
        "a checkpoint of PyTorch Lightning",
        ("*.ckpt", "*/*.ckpt"),
        # docs/source-pytorch/common/checkpointing_basic.rst: the LightningModule's state_dict is under that key.
        _GIVEN + "; of a file with more than tensors that you trust, save torch.load('{folder}/{file}')['state_dict'] "
        "as a file of its own first",
    ),
    _Kind(
        "a checkpoint of metaseq (OPT)",
        ("reshard*.pt", "*model_part-*.pt", "restored.pt"),
        # metaseq/scripts/convert_to_singleton.py writes restored.pt into the folder it is given.
        "python -m metaseq.scripts.convert_to_singleton {folder}, of metaseq, which writes restored.pt; then "
        "python src/transformers/models/opt/convert_opt_original_pytorch_checkpoint_to_pytorch.py --fairseq_path "
        "{folder}/restored.pt --pytorch_dump_folder_path NEW --hf_config CONFIG, in a clone of transformers",
    ),
    _Kind(
        "a checkpoint of fairseq",
        ("checkpoint_best.pt", "checkpoint_last.pt", "checkpoint[0-9]*.pt", "checkpoint_[0-9]*.pt"),
        _BY_LIBRARY,
    ),
    _Kind("weights of PaddlePaddle", ("*.pdparams", "*/*.pdparams"), _BY_LIBRARY),
    _Kind(
        "weights of RWKV",
        ("RWKV-*.pth",),
        # The script fetches the file from the hub itself.
        "python src/transformers/models/rwkv/convert_rwkv_checkpoint_to_hf.py --repo_id REPOSITORY --checkpoint_file "
        "{file} --output_dir NEW, in a clone of transformers (RWKV-4)",
    ),
    _Kind(
        "quantized weights (HQQ, AutoGPTQ, ExLlama)",
        ("qmodel.pt", "gptq_model*", "*-[2348]bit*.safetensors", "*-[2348]bit*.pt", "output*.safetensors",
         "*-w[2348]-g*.pt", "*ggml*.bin"),
        "measure the checkpoint that it was quantized from",
    ),
    _Kind(
        "a compiled or exported model",
        ("openvino_model*", "*.mlpackage", "*.engine", "shared_vocabulary.*", "*.tflite", "*.torchscript",
         "params_shard_*.bin"),
        "measure the model it was exported from",
    ),
    _Kind("an archive of arrays (MLX, JAX)", ("weights*.npz", "model*.npz"), "save its arrays as safetensors"),
    _Kind(
        "an unfinished download",
        ("*.incomplete", *_unfinished("crdownload", "part", "partial", "aria2", "filepart", "download")),
        "repeat the download, which goes on where it stopped (`hf download`)",
    ),
    _Kind("weights that were still being written", _unfinished("tmp*", "temp", "lock"), "save them again"),
    _Kind("a pointer of DVC", ("*.dvc",), "run `dvc pull` in its repository"),
    _Kind(
        "a variant of the weights",
        ("model.*-of-*.safetensors", "pytorch_model.*-of-*.bin", "model.safetensors.index.*.json"),
        "AutoModelForCausalLM.from_pretrained('{folder}', variant='{variant}').save_pretrained(NEW)",
    ),
    _Kind("a variant of the weights", ("model.*.safetensors",), "rename {file} to model.safetensors"),
    _Kind("a variant of the weights", ("pytorch_model.*.bin",), "rename {file} to pytorch_model.bin"),
)  # fmt: skip


def _names(folder: Path, depth: int) -> Iterator[str]:
    """The names in a folder and below it, those in the folder itself first."""
    children = sorted(folder.iterdir())
    yield from (child.name for child in children)
    for child in children if depth > 1 else ():
        if child.is_dir():
            yield from (f"{child.name}/{name}" for name in _names(child, depth - 1))


def foreign(folder: Path) -> PtqEvalError | None:
    """What a folder without weights is instead, as an error that is returned; None where its files do not say."""
    names = list(_names(folder, 4))  # .cache/huggingface/download/*.incomplete
    own = [name for name in names if "/" not in name]
    return adapter(folder, own) or _other_format(folder, names) or adapter(folder, names) or _other_name(folder, names)


def recognised(folder: Path) -> bool:
    """Whether a folder itself, not one below it, is an adapter or a checkpoint that has to be converted."""
    names = [child.name for child in folder.iterdir()]
    return bool(adapter(folder, names) or _other_format(folder, names) or any(map(_SHARDS.match, names)))


def kinds() -> list[tuple[str, str]]:
    """(name, a file that only it has) of every format that is recognised and not read, in order of name."""
    found = {kind.name: kind.patterns[0] for kind in reversed(_KINDS)}
    return sorted(found.items(), key=lambda entry: entry[0].split(" ", 1)[-1].lower())


def _other_format(folder: Path, names: list[str]) -> PtqEvalError | None:
    for kind in _KINDS:
        if found := kind.holds(names):
            return UnsupportedModelError(
                f"{kind.name}, not a model saved by save_pretrained", got=found, remedy=kind.advice(folder, found)
            )
    return None


def _other_name(folder: Path, names: list[str]) -> PtqEvalError | None:
    """The error for a file that may hold weights, of a format that is not known; not one for a single tensor."""
    weights = (name for name in names if _MAY_HOLD_WEIGHTS.fullmatch(name) and not _NO_WEIGHTS.search(name))
    if (found := next(weights, None)) is None:
        return None
    name = "model.safetensors" if found.endswith(".safetensors") else "pytorch_model.bin"
    remedy = _SHARDED if _SHARD.search(found) else _RENAME % name
    kind = _Kind("weights in a file of a name that transformers does not look for", (), remedy)
    return UnsupportedModelError(kind.name, got=found, remedy=kind.advice(folder, found))


_MAY_HOLD_WEIGHTS = re.compile(r"([^/]*/)?[^/]*(\.safetensors|(model|weight|checkpoint|ckpt)[^/]*\.(pt|pth|bin))", re.I)
_NO_WEIGHTS = re.compile(r"optim|rng|random_states|scheduler|training_args|tokenizer|scaler|sampler", re.IGNORECASE)
_RENAME = _GIVEN + ", or rename {file} to %s and put the model's config.json beside it"
_SHARD = re.compile(r"-[0-9]{4,}(-of-[0-9]+)?\.")
_SHARDED = "put the model's config.json and the index of the shards (*.index.json) into {home}, and give that folder"
