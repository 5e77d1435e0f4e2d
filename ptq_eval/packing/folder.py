"""A checkpoint folder with packed layers: safetensors, configuration, tokenizer.

Everything that is not quantized keeps the type in which the checkpoint stores it, where that loses nothing.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from ptq_eval.packing.base import FileFormat, Shape
from quantizers import QuantizedWeight, Scheme

WEIGHTS = ("*.safetensors", "*.bin", "*.pt", "*.pth", "*.index.json", "*.gguf", "*.h5", "*.msgpack")
"""Weights of the original folder, in any format, which are not copied."""
STATE = ("trainer_state.json", "training_args*", "optimizer*", "scheduler*", "rng_state*", "global_step*")


def narrowed(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """`tensor` in `dtype` if every value is the same there, else as it is."""
    if not tensor.is_floating_point():
        return tensor
    small = tensor.to(dtype)
    return small if torch.equal(small.to(tensor.dtype), tensor) else tensor


def write(
    folder: Path,
    source: Path,
    file_format: FileFormat,
    layers: Mapping[str, QuantizedWeight],
    dense: dict[str, Tensor],
    shapes: Mapping[str, Shape],
    config: Mapping[str, Any],
    excluded: Sequence[str],
) -> None:
    """Write `layers` and the `dense` tensors, by name, as a checkpoint into `folder`, which does not exist yet.

    `source` is the original folder, whose other small files are copied; `config` the content of its `config.json`.
    Raises OSError.
    """
    from huggingface_hub import save_torch_state_dict

    folder.mkdir(parents=True)
    stored = getattr(torch, str(config.get("dtype") or config.get("torch_dtype") or "float32"), torch.float32)
    once = {id(tensor): name for name, tensor in reversed(dense.items())}  # a tied tensor under its first name
    tensors = {name: narrowed(dense[name].detach().cpu(), stored) for name in once.values()}
    lossless = all(not tensor.is_floating_point() or tensor.dtype == stored for tensor in tensors.values())
    for name, layer in layers.items():
        for suffix, tensor in file_format.tensors(layer, shapes[name]).items():
            tensors[f"{name}.{suffix}"] = tensor.clone()  # a view of several layers cannot be saved
    save_torch_state_dict(tensors, str(folder), metadata={"format": "pt"})
    scheme = next(iter(layers.values())).scheme
    entry = file_format.config(scheme, layers, excluded)
    content = dict(config)
    if entry is None or not lossless:  # in the checkpoint's own type, some weights would be others
        content.pop("torch_dtype", None)
        content["dtype"] = "float32"
    if entry is not None:
        content["quantization_config"] = entry
    (folder / "config.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    _copy_small(source, folder)


def _copy_small(source: Path, folder: Path) -> None:
    """Tokenizer, generation settings, licence: every file that holds neither weights nor the state of a training."""
    for path in sorted(source.iterdir()):
        wanted = path.is_file() and not any(path.match(pattern) for pattern in (*WEIGHTS, *STATE))
        if wanted and not (folder / path.name).exists():
            shutil.copyfile(path, folder / path.name)


def largest_difference(
    folder: Path, file_format: FileFormat, scheme: Scheme, weights: Mapping[str, Tensor], shapes: Mapping[str, Shape]
) -> float:
    """The largest |file − measured| over all weights, each relative to the largest weight of its layer.

    The file's weights are read back by the format's own reader.
    """
    found: dict[str, dict[str, Tensor]] = {name: {} for name in weights}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118
                name, _, suffix = key.rpartition(".")
                if name in found:
                    found[name][suffix] = file.get_tensor(key)
    worst = 0.0
    for name, weight in weights.items():
        read = file_format.weight(found[name], scheme, shapes[name])
        worst = max(worst, float((read - weight).abs().max() / weight.abs().max().clamp(min=1e-30)))
    return worst
