"""Signs that a checkpoint is quantized already: its recipe, and tensors that only quantized weights have.

A recipe is `quantization_config` in config.json, or a file beside it.  Formats that transformers turns back into plain
matrices on loading (8-bit and 4-bit floats with scales per block) can be measured: those weights are what was released
or trained.  Every other recipe replaces the layers by some of its own, which no quantizer here can treat.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_FILES = ("quantize_config.json", "quant_config.json", "hf_quant_config.json")
_KEYS = ("quantization_config", "compression_config")
_BITS = ("bits", "num_bits", "w_bit", "nbits", "wbits", "weight_bits")
_DEQUANTIZED = {"fp8": "FineGrainedFP8Config", "mxfp8": "FineGrainedFP8Config", "mxfp4": "Mxfp4Config"}
"""Methods that transformers turns back into plain matrices on every device, with the class that asks for it."""

_PACKED = re.compile(
    r"(^|[._])(qweight|qzeros|qscales|g_idx|scales|codebooks|absmax|nested_absmax|quant_map|nested_quant_map|SCB"
    r"|weight_format|weight_packed|weight_shape|weight_zero_point|weight_scale(_inv|_2)?|weight_global_scale"
    r"|(input|output|act|k|v|q)_scale|input_global_scale|\w*scale_inv)$|quant_state\."
)
"""Names that quantized weights alone have."""

_SCALE = re.compile(r"(scales?|zeros?|zero_points?|amax)(_inv|_\d+)?$")
"""Names that belong to quantized weights where there is a weight beside them; `logit_scale` alone does not."""


@dataclass(frozen=True)
class Recipe:
    """A quantization that a checkpoint says it has: its method, and bits per weight where they are known."""

    method: str
    bits: int | None

    @property
    def dequantized(self) -> bool:
        """Whether transformers turns these weights back into plain matrices on loading."""
        return self.method in _DEQUANTIZED

    def __str__(self) -> str:
        return f"{self.method}, {self.bits} bits" if self.bits else self.method


def recipe(content: Mapping[str, Any]) -> Recipe | None:
    """The recipe in the content of a `config.json`, or None."""
    parts = [content, *(part for part in content.values() if isinstance(part, dict))]
    for part in parts:
        for key in _KEYS:
            if isinstance(part.get(key), dict) and part[key] and not _is_empty(part[key]):
                return _read(part[key])
    return None


def recipe_beside(folder: Path) -> Recipe | None:
    """The recipe in a file beside `config.json`, which transformers does not read."""
    for name in _FILES:
        try:
            content = json.loads((folder / name).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if isinstance(content, dict):
            return _read({"quant_method": "gptq" if name == _FILES[0] else "quantized", **content})
    return None


def without_empty_recipe(content: Mapping[str, Any]) -> dict[str, Any]:
    """The content without a recipe that switches everything off, which transformers cannot read."""
    return {k: v for k, v in content.items() if not (k in _KEYS and (not v or (isinstance(v, dict) and _is_empty(v))))}


def dequantizing(content: Mapping[str, Any]) -> dict[str, Any]:
    """What to pass to transformers' `from_pretrained` so that it loads plain matrices on every device."""
    import transformers

    found = recipe(content)
    if found is None or not found.dequantized:
        return {}
    return {"quantization_config": getattr(transformers, _DEQUANTIZED[found.method])(dequantize=True)}


def quantized_names(surplus: Iterable[str], names: Collection[str]) -> list[str]:
    """Those of the `surplus` tensors that belong to quantized weights, in a file with tensors `names`."""
    homes = {name.rpartition(".")[0] for name in names if name.endswith("weight")} - {""}
    found = []
    for name in surplus:
        home = name.rpartition(".")[0]
        beside = home in homes or home.removesuffix(".weight") in homes
        if _PACKED.search(name) or (_SCALE.search(name) and beside):
            found.append(name)
    return sorted(found)


def _read(entry: Mapping[str, Any]) -> Recipe:
    method = str(entry.get("quant_method") or ("bitsandbytes" if "load_in_4bit" in entry else "quantized"))
    producer = entry.get("producer")
    if isinstance(producer, dict):
        method = str(producer.get("name", method))
    if entry.get("load_in_4bit") or entry.get("_load_in_4bit"):
        return Recipe(method, 4)
    if entry.get("load_in_8bit") or entry.get("_load_in_8bit"):
        return Recipe(method, 8)
    named = re.search(r"(?:int|fp|nf|float)([2-8])(?!\d)", f"{method} {json.dumps(entry, default=str)}".lower())
    bits = next(_found(entry), None) or (int(named[1]) if named else None)
    return Recipe(method, bits)


def _found(entry: Any) -> Iterator[int]:
    """The numbers of bits in a recipe, however deep."""
    if isinstance(entry, dict):
        yield from (entry[key] for key in _BITS if isinstance(entry.get(key), int) and entry[key] > 0)
        for value in entry.values():
            yield from _found(value)
    elif isinstance(entry, list):
        for value in entry:
            yield from _found(value)


def _is_empty(entry: Mapping[str, Any]) -> bool:
    """bitsandbytes with both widths off, as a run without quantization saves it."""
    loads = [entry[key] for key in ("load_in_4bit", "load_in_8bit", "_load_in_4bit", "_load_in_8bit") if key in entry]
    return bool(loads) and not any(loads)
