"""Formats that are a checkpoint folder with packed layers: safetensors, configuration, tokenizer.

Such a format sees one layer at a time, as codes and scales, and knows no model.  Everything that is not quantized keeps
the type in which the checkpoint stores it, where that loses nothing.
"""

from __future__ import annotations

import json
import shutil
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor

from ptq_eval.packing.base import Content, FileFormat, Shape, narrowed
from quantizers import QuantizedWeight, Scheme

WEIGHTS = ("*.safetensors", "*.bin", "*.pt", "*.pth", "*.index.json", "*.gguf", "*.h5", "*.msgpack")
"""Weights of the original folder, in any format, which are not copied."""
STATE = ("trainer_state.json", "training_args*", "optimizer*", "scheduler*", "rng_state*", "global_step*")


class FolderFormat(FileFormat):
    """A format of weights beside a Hugging Face `config.json`."""

    @abstractmethod
    def tensors(self, layer: QuantizedWeight, shape: Shape) -> dict[str, Tensor]:
        """What a file holds in place of the layer's weight, by the last part of the name."""

    @abstractmethod
    def weight(self, tensors: Mapping[str, Tensor], scheme: Scheme, shape: Shape) -> Tensor:
        """The weight [out, in], float32, that such tensors represent to those who load the file."""

    @abstractmethod
    def config(self, layers: Mapping[str, QuantizedWeight], excluded: Sequence[str]) -> dict[str, Any] | None:
        """The entry `quantization_config` of `config.json`.  `excluded` names the linear layers not quantized."""

    def write(self, folder: Path, content: Content) -> None:
        """Write the weights, the configuration, and the other small files of the original folder."""
        from huggingface_hub import save_torch_state_dict

        folder.mkdir(parents=True)
        stored = content.dtype
        tensors = {name: narrowed(tensor, stored) for name, tensor in content.distinct.items()}
        lossless = all(not tensor.is_floating_point() or tensor.dtype == stored for tensor in tensors.values())
        for name, layer in content.layers.items():
            for suffix, tensor in self.tensors(layer, content.shapes[name]).items():
                tensors[f"{name}.{suffix}"] = tensor.clone()  # a view of several layers cannot be saved
        save_torch_state_dict(tensors, str(folder), metadata={"format": "pt"})
        entry = self.config(content.layers, content.excluded)
        config = dict(content.config)
        if entry is None or not lossless:  # in the checkpoint's own type, some weights would be others
            config.pop("torch_dtype", None)
            config["dtype"] = "float32"
        if entry is not None:
            config["quantization_config"] = entry
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        copy_small(content.source, folder)

    def read(self, folder: Path, content: Content) -> Iterator[tuple[str, Tensor]]:
        """Each layer by `weight`."""
        found: dict[str, dict[str, Tensor]] = {name: {} for name in content.layers}
        for name, suffix, tensor in self._tensors(folder, content):
            found[name][suffix] = tensor
        for name, tensors in found.items():
            yield name, self.weight(tensors, content.layers[name].scheme, content.shapes[name])

    def layer_bytes(self, folder: Path, content: Content) -> int:
        """Those of the tensors in place of the layers' weights."""
        return sum(tensor.nbytes for _, suffix, tensor in self._tensors(folder, content) if suffix != "bias")

    def _tensors(self, folder: Path, content: Content) -> Iterator[tuple[str, str, Tensor]]:
        """Every tensor of the quantized layers: its layer, the last part of its name, and itself."""
        for path in sorted(folder.glob("*.safetensors")):
            with safe_open(path, framework="pt") as file:
                for key in file.keys():  # noqa: SIM118
                    name, _, suffix = key.rpartition(".")
                    if name in content.layers:
                        yield name, suffix, file.get_tensor(key)


def copy_small(source: Path, folder: Path) -> None:
    """Tokenizer, generation settings, licence: every file that holds neither weights nor the state of a training."""
    for path in sorted(source.iterdir()):
        wanted = path.is_file() and not any(path.match(pattern) for pattern in (*WEIGHTS, *STATE))
        if wanted and not (folder / path.name).exists():
            shutil.copyfile(path, folder / path.name)


def largest_difference(folder: Path, file_format: FileFormat, content: Content) -> float:
    """The largest |file − measured| over all weights, each relative to the largest weight of its layer."""
    worst = 0.0
    for name, read in file_format.read(folder, content):
        weight = content.layers[name].dequantize()
        worst = max(worst, float((read - weight).abs().max() / weight.abs().max().clamp(min=1e-30)))
    return worst
