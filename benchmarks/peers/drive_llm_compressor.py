"""llm-compressor: one `oneshot` with a recipe of one modifier.

Its AWQ pins the cached activations, which is an error on a machine without an accelerator: pinning is left out there.
The exponents are searched without "duo scaling", a division by mean |w| that the paper does not have.
"""

from __future__ import annotations

from typing import Any

import torch
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from datasets import Dataset
from llmcompressor import oneshot
from llmcompressor.modifiers.quantization import GPTQModifier, QuantizationModifier
from llmcompressor.modifiers.transform.awq import AWQModifier
from llmcompressor.pipelines.cache import IntermediatesCache

from benchmarks.peers.parts import installed, load_causal_lm

if not torch.accelerator.is_available():
    IntermediatesCache.pin_memory = lambda self, batch_index: None


def versions() -> dict[str, str]:
    return installed("llmcompressor", "compressed-tensors")


def load(folder: str, cell: dict[str, Any]) -> Any:
    return load_causal_lm(folder)


def quantize(model: Any, ids: Any, cell: dict[str, Any]) -> Any:
    weights = QuantizationArgs(
        num_bits=cell["bits"], symmetric=cell["symmetric"], strategy="group", group_size=cell["group_size"]
    )
    named = {
        "config_groups": {"all": QuantizationScheme(targets=["Linear"], weights=weights)},
        "ignore": ["lm_head"],
    }
    if cell["method"] == "rtn":
        return oneshot(model=model, recipe=QuantizationModifier(**named), pipeline="datafree")
    recipe = {
        "gptq": lambda: GPTQModifier(**named),
        "awq": lambda: [AWQModifier(duo_scaling=False), QuantizationModifier(**named)],
    }[cell["method"]]()
    rows = Dataset.from_dict({"input_ids": ids.tolist(), "attention_mask": torch.ones_like(ids).tolist()})
    return oneshot(
        model=model,
        dataset=rows,
        recipe=recipe,
        max_seq_length=ids.shape[1],
        num_calibration_samples=len(ids),
        shuffle_calibration_samples=False,
    )


def save(model: Any, folder: str) -> None:
    """Packed, as compressed-tensors."""
    model.save_pretrained(folder, save_compressed=True)
