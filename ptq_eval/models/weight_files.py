"""The files that hold a checkpoint's weights, and the signs that these weights are quantized already.

What is hashed and what is loaded are the same files.  transformers chooses among the files of a folder by rules of its
own, reads an adapter or a distributed checkpoint beside the weights, and changes these rules between versions.  So it
is shown a folder of links to the hashed files and to nothing else.

Weights are quantized if there is a recipe (`quantization_config` in config.json, or a file beside it) or if there are
tensors that only quantized weights have (`checkpoints.surplus`).  Formats that transformers turns back into plain
matrices on loading (8-bit and 4-bit floats with scales per block) can be measured: those weights are what was released
or trained.  Every other recipe replaces the layers by some of its own, which no quantizer here can treat.
"""

from __future__ import annotations

import contextlib
import json
import re
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ptq_eval.errors import UnreadableCheckpointError
from ptq_eval.models.json_files import load_json
from ptq_eval.models.pickles import load_safely, unwrapped

_WEIGHTS = re.compile(r".*\.(safetensors|bin|pt|pth|gguf|msgpack|h5)")
_NO_WEIGHTS = re.compile(
    r"(scheduler|sampler|scaler|train\.|training_args|random_states|tokenizer).*|.*optim.*|.*rng.*"
)


@dataclass(frozen=True)
class WeightFiles:
    """The files that hold a checkpoint's weights, their index, and those that should be there and are not."""

    files: tuple[Path, ...]
    missing: tuple[str, ...] = ()
    index: Path | None = None

    def unused(self, folder: Path) -> list[str]:
        """Names of other files in `folder` that look like weights."""
        used = {path.name for path in self.files}
        names = (path.name for path in folder.iterdir() if path.is_file() and path.name not in used)
        return sorted(name for name in names if _WEIGHTS.fullmatch(name) and not _NO_WEIGHTS.fullmatch(name))


def find_weights(folder: Path) -> WeightFiles:
    """The weight files of a folder, in the order of preference of transformers: safetensors, then pickles.

    Raises UnreadableCheckpointError for an index that cannot be read or names files outside the folder.
    """
    for stem, suffix in (("model", "safetensors"), ("pytorch_model", "bin")):
        single, index = folder / f"{stem}.{suffix}", folder / f"{stem}.{suffix}.index.json"
        if single.is_file():
            return WeightFiles((single,))
        if index.is_file():
            return _split(folder, _shards_of(index), index)
        shards = sorted(folder.glob(f"{stem}-*-of-*.{suffix}"))
        if shards:
            count = int(re.findall(r"\d+", shards[0].stem)[-1])
            return _split(folder, [index.name, *(f"{stem}-{i + 1:05d}-of-{count:05d}.{suffix}" for i in range(count))])
    return WeightFiles(tuple(path for path in (folder / "pytorch_model.pt", folder / "model.pt") if path.is_file())[:1])


@contextlib.contextmanager
def pinned(folder: Path, scratch: Path | None = None) -> Iterator[Path]:
    """A folder with links to the configuration, code and hashed weights of `folder`, and nothing else.

    It is gone afterwards, unless it is made below `scratch`.
    """
    with contextlib.ExitStack() as stack:
        if scratch is None:
            scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ptq-eval-")))
        place = scratch / (folder.resolve().name or "model")
        place.mkdir(parents=True, exist_ok=True)
        found = find_weights(folder)
        others = [folder / "config.json", *folder.glob("*.py"), *([found.index] if found.index else [])]
        for path in (*found.files, *others):
            if path.suffix == ".bin" and (inner := _wrapped(path)) is not None:
                import torch

                torch.save(inner, place / path.name)
            elif path.is_file():
                (place / path.name).symlink_to(path.absolute())
        yield place


def _wrapped(path: Path) -> dict[str, Any] | None:
    """The tensors of a pickle whose state dict is within another dict or has empty entries; None for any other file."""
    try:
        content = load_safely(path, mmap=zipfile.is_zipfile(path))  # since torch 1.6; others cannot be mapped
        inner = unwrapped(content, path.name)
        return None if inner.keys() == content.keys() else inner
    except Exception:  # transformers says what is wrong
        return None


def _shards_of(index: Path) -> list[str]:
    try:
        names = sorted({*load_json(index)["weight_map"].values()})
        if other := [name for name in names if not isinstance(name, str)]:
            raise ValueError(f"{other[0]!r} is no name of a file")
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise UnreadableCheckpointError(f"{index.name} cannot be read", got=repr(error)) from error
    outside = [name for name in names if Path(name).name != name]
    if outside:
        raise UnreadableCheckpointError(
            f"{index.name} names files outside its folder",
            got=outside[0],
            allowed="shards beside the index",
            remedy="save the model again, or put the shards beside the index",
        )
    return names


def _split(folder: Path, names: list[str], index: Path | None = None) -> WeightFiles:
    paths = [folder / name for name in names]
    return WeightFiles(
        tuple(path for path in paths if path.is_file()),
        tuple(path.name for path in paths if not path.is_file()),
        index,
    )


_RECIPE_FILES = ("quantize_config.json", "quant_config.json", "hf_quant_config.json")
_RECIPE_KEYS = ("quantization_config", "compression_config", "quantization", "quip_params")
"""Of transformers, of old compressed-tensors, of MLX and of QuIP#."""
_BITS = ("bits", "num_bits", "w_bit", "nbits", "wbits", "weight_bits")
_LOADS = ("load_in_4bit", "load_in_8bit", "_load_in_4bit", "_load_in_8bit")
_METHOD_OF_KEY = {**dict.fromkeys(_LOADS, "bitsandbytes"), "desc_act": "gptq", "q_group_size": "awq"}
"""Keys that only one method uses: bitsandbytes, AutoGPTQ and AutoAWQ."""
_NAMED_BITS = re.compile(r"(?:int|fp|nf|float)([2-8])(?!\d|_?(?:dynamic|activation))|\bw([2-8])a\d")
_OFF = re.compile(r"|none|null|no|off|false|(torch\.)?(fp|bf|float|bfloat)(16|32)", re.IGNORECASE)
_NOT_WEIGHTS = re.compile(
    r"kv_cache|activation|(^|_)(input|output)s?(_|$)|^(ignore|exclude_modules|modules_to_not_convert)$"
)
_DEQUANTIZED = {"fp8": "FineGrainedFP8Config", "mxfp8": "FineGrainedFP8Config", "mxfp4": "Mxfp4Config"}
"""Methods that transformers turns back into plain matrices on every device, with the class that asks for it."""


@dataclass(frozen=True)
class Recipe:
    """A quantization that a checkpoint says it has: its method ("" where none is named), bits per weight where they are
    known, and the key of `config.json` that holds it, "" for a file of its own."""

    method: str
    bits: int | None
    key: str = ""

    @property
    def dequantized(self) -> bool:
        """Whether transformers turns these weights back into plain matrices on loading."""
        return self.method in _DEQUANTIZED

    def __str__(self) -> str:
        method = self.method or "method not named"
        return f"{method}, {self.bits} bits" if self.bits else method


def recipe(content: Mapping[str, Any]) -> Recipe | None:
    """The recipe in the content of a `config.json`, or None."""
    parts = [content, *(part for part in content.values() if isinstance(part, dict))]
    for part in parts:
        for key in _RECIPE_KEYS:
            entry = part.get(key)
            if isinstance(entry, dict) and entry and not _is_off(entry):
                found = replace(_recipe_of(entry), key=key)
                if found.method or found.bits or key != "quantization":
                    return found
            elif not isinstance(entry, dict) and not _is_off(entry):
                return _of_text(entry, key)
    return None


def _of_text(entry: Any, key: str) -> Recipe:
    """A recipe that is text, such as "fp8", and no mapping: its meaning is not certain, so nothing is dequantized."""
    text = entry if isinstance(entry, str) else json.dumps(entry)
    named = _NAMED_BITS.search(text.lower())
    return Recipe(f"{key} is {text[:40]!r}, not a mapping", int(named[1] or named[2]) if named else None, key)


def recipe_beside(folder: Path) -> Recipe | None:
    """The recipe in a file beside `config.json` that transformers does not read; None if it leaves weights alone."""
    for name in _RECIPE_FILES:
        try:
            content = load_json(folder / name)
        except (OSError, ValueError):
            continue
        if isinstance(content, dict) and not _is_off(content):
            found = _recipe_of(content)
            if found.method or found.bits:
                return found
    return None


def without_empty_recipe(content: Mapping[str, Any]) -> dict[str, Any]:
    """The content without a recipe that switches everything off, which transformers cannot read."""
    return {key: value for key, value in content.items() if not (key in _RECIPE_KEYS and (not value or _is_off(value)))}


def dequantizing(content: Mapping[str, Any]) -> dict[str, Any]:
    """What to pass to transformers' `from_pretrained` so that it loads plain matrices on every device."""
    import transformers

    found = recipe(content)
    if found is None or not found.dequantized:
        return {}
    return {"quantization_config": getattr(transformers, _DEQUANTIZED[found.method])(dequantize=True)}


def _recipe_of(entry: Mapping[str, Any]) -> Recipe:
    of_weights = _of_weights(entry)
    bits = next(_bits_in(of_weights), None)
    if bits is None:
        loads = (key for key in _LOADS if entry.get(key))
        named = _NAMED_BITS.search(json.dumps(of_weights, default=str).lower())
        bits = next((int(key.split("_")[-1][0]) for key in loads), int(named[1] or named[2]) if named else None)
    return Recipe(_method_of(entry, of_weights), bits)


def _method_of(entry: Mapping[str, Any], of_weights: Mapping[str, Any]) -> str:
    """The method that a recipe names, or that its keys belong to; "" if neither says."""
    if isinstance(named := entry.get("quant_method"), str) and named:
        return named
    producer = entry.get("producer")
    if isinstance(producer, dict) and isinstance(producer.get("name"), str) and any(_values(of_weights)):
        return producer["name"]
    return next((method for key, method in _METHOD_OF_KEY.items() if key in entry), "")


def _of_weights(entry: Any) -> Any:
    """A recipe without its parts about activations, the KV cache and modules that are not quantized."""
    if isinstance(entry, dict):
        return {key: _of_weights(value) for key, value in entry.items() if not _NOT_WEIGHTS.search(key)}
    return [_of_weights(value) for value in entry] if isinstance(entry, list) else entry


def _values(entry: Mapping[str, Any]) -> Iterator[Any]:
    """The values of a recipe that say how weights are quantized, however deep."""
    for key, value in entry.items():
        if isinstance(value, dict) and key != "producer":
            yield from _values(value)
        elif "algo" in key or key in _BITS:
            yield value


def _bits_in(entry: Any) -> Iterator[int]:
    """The numbers of bits in a recipe, however deep."""
    if isinstance(entry, dict):
        numbers = (entry[key] for key in _BITS if isinstance(entry.get(key), int) and entry[key] > 0)
        yield from (number for number in numbers if number is not True)
        for value in entry.values():
            yield from _bits_in(value)
    elif isinstance(entry, list):
        for value in entry:
            yield from _bits_in(value)


def _is_off(entry: Any) -> bool:
    """Whether a value means no quantization: empty, a word for off, a type that is not quantized, or both widths of
    bitsandbytes off, as a run without quantization saves them."""
    if not isinstance(entry, dict):
        return not entry or (isinstance(entry, str) and _OFF.fullmatch(entry.strip()) is not None)
    method = entry.get("quant_method")
    if isinstance(method, str) and _OFF.fullmatch(method.strip()) and method:
        return True
    loads = [entry[key] for key in _LOADS if key in entry]
    return bool(loads) and not any(loads)
