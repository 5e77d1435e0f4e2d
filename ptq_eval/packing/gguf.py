"""GGUF, the file of llama.cpp: one file with weights, configuration and tokenizer, for Llama and models built alike.

A layer's codes and scales go into the blocks of its type as they are, so the weights are those measured, bit for bit.
Names are those that the `gguf` package knows for the architecture.  For Llama, llama.cpp turns neighbouring pairs of a
head's dimensions and transformers the two halves, so the rows of the query and key projections are reordered; Qwen is
read as it is.  The package writes the file, and its own tables read it back.
"""

from __future__ import annotations

import errno
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ptq_eval.models.refusal import Obstacle, Refusal, refused
from ptq_eval.packing import base
from ptq_eval.packing.base import Content, FileFormat, Shape, narrowed
from ptq_eval.packing.folder import copy_small
from ptq_eval.packing.gguf_metadata import ARCHITECTURES, REORDERED, describe, refusal_of_config
from quantizers import QuantizedWeight, Scheme

FILE = "model.gguf"

BLOCKS = {
    **dict.fromkeys(("q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "mxfp4"), 32),
    **dict.fromkeys(("q2_k", "q3_k", "q4_k", "q5_k", "q6_k"), 256),
}
"""The columns of a block by number format; GGUF has a type of the same name for each."""

_DTYPES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}


class GGUFFormat(FileFormat):
    """The types that are number formats here; whatever is not quantized stays in the checkpoint's type."""

    name = "gguf"
    packages = ("gguf",)
    extra = "gguf"

    def refusal(self, scheme: Scheme, shape: Shape) -> Refusal | None:
        """Number formats that are types of llama.cpp, in rows of whole blocks."""
        if shape.transposed:
            return refused(Obstacle.CONV1D)
        if scheme.format not in BLOCKS:
            return refused(Obstacle.NO_SUCH_TYPE, format=scheme.name, types=tuple(BLOCKS))
        if shape.columns % BLOCKS[scheme.format]:
            return refused(Obstacle.PARTIAL_BLOCK, columns=shape.columns, block=BLOCKS[scheme.format])
        return None

    def refusal_of(self, layer: QuantizedWeight) -> Refusal | None:
        """Groups of reordered columns, and scales of input channels."""
        return base.in_order(layer) or base.without_input_scale(layer)

    def refusal_of_mixture(self, schemes: Sequence[Scheme]) -> Refusal | None:
        """Nothing: each tensor has a type of its own."""
        return None

    def load_options(self, schemes: Sequence[Scheme]) -> dict[str, Any]:
        """The file's name, in a folder where transformers looks for others."""
        return {"gguf_file": FILE}

    def refusal_of_model(self, config: Mapping[str, Any]) -> Refusal | None:
        """Other architectures, and variants of these that are not written."""
        return refusal_of_config(config)

    def write(self, folder: Path, content: Content) -> None:
        """Write the one file, and the small files of the original folder."""
        import gguf

        from ptq_eval.backends.packages.gguf_blocks import as_bytes

        folder.mkdir(parents=True)
        names = _names(content.config)
        writer = gguf.GGUFWriter(folder / FILE, ARCHITECTURES[content.config["model_type"]])
        try:
            usual = Counter(layer.scheme.format for layer in content.layers.values()).most_common(1)[0][0]
            describe(writer, content.source, content.config, usual)
            for name, tensor in content.distinct.items():
                data, kind = _plain(narrowed(tensor, content.dtype))
                data = _reordered(data, name, content.config)
                writer.add_tensor(_renamed(name, names), data, raw_dtype=gguf.GGMLQuantizationType[kind])
            for name, layer in content.layers.items():
                data = _reordered(as_bytes(layer), name, content.config)
                kind = gguf.GGMLQuantizationType[layer.scheme.format.upper()]
                writer.add_tensor(_renamed(f"{name}.weight", names), data, raw_dtype=kind)
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
        except OSError as error:
            if error.errno is None:  # how numpy reports that a disk is full
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder / FILE)) from error
            raise
        finally:
            writer.close()
        copy_small(content.source, folder)

    def read(self, folder: Path, content: Content) -> Iterator[tuple[str, Tensor]]:
        """Each layer by the package's reader and its table of the type."""
        import gguf

        for name, tensor in _tensors(folder, content):
            weight = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
            yield name, torch.from_numpy(_reordered(weight, name, content.config, inverse=True))

    def layer_bytes(self, folder: Path, content: Content) -> int:
        """Those of the layers' blocks."""
        return sum(int(tensor.n_bytes) for _, tensor in _tensors(folder, content))


def _tensors(folder: Path, content: Content) -> Iterator[tuple[str, Any]]:
    """Each quantized layer's tensor, as the package reads it."""
    import gguf

    names = _names(content.config)
    found = {tensor.name: tensor for tensor in gguf.GGUFReader(folder / FILE).tensors}
    for name in content.layers:
        yield name, found[_renamed(f"{name}.weight", names)]


def _names(config: Mapping[str, Any]) -> Any:
    import gguf

    architecture = gguf.MODEL_ARCH[ARCHITECTURES[config["model_type"]].upper()]
    return gguf.get_tensor_name_map(architecture, config["num_hidden_layers"])


def _renamed(name: str, names: Any) -> str:
    """The name of a tensor in the file.  Raises ValueError for one that the architecture does not have."""
    found = names.get_name(name, try_suffixes=(".weight", ".bias"))
    if found is None:
        raise ValueError(f"llama.cpp has no name for {name}")
    return found


def _plain(tensor: Tensor) -> tuple[np.ndarray, str]:
    """An array, and its type in the file: vectors are kept in float32, which llama.cpp expects."""
    if tensor.ndim == 1 or tensor.dtype not in _DTYPES:
        tensor = tensor.float()
    kind = _DTYPES[tensor.dtype]
    if tensor.dtype == torch.bfloat16:  # numpy has no such type
        return tensor.contiguous().view(torch.int16).numpy().view(np.uint8), kind
    return tensor.contiguous().numpy(), kind


def _reordered(rows: np.ndarray, name: str, config: Mapping[str, Any], *, inverse: bool = False) -> np.ndarray:
    """The rows of a query or key projection in the order of llama.cpp, or back; other tensors as they are."""
    part = name.removesuffix(".weight").removesuffix(".bias").rpartition(".")[2]
    if config["model_type"] not in REORDERED or part not in ("q_proj", "k_proj"):
        return rows
    heads = config["num_attention_heads"]
    if part == "k_proj":
        heads = config.get("num_key_value_heads") or heads
    half = len(rows) // heads // 2
    shape = (heads, half, 2) if inverse else (heads, 2, half)
    return np.ascontiguousarray(rows.reshape(*shape, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape))
