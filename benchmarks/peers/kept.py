"""What follows quantizing in a loop over packages: save the model, reload it, evaluate it; in the peer's environment.

A model is saved as its package packs it (`save` of the drive module) and reloaded as the packages' documentation says,
by transformers' `from_pretrained` in the type that was saved.  Where that fails, or gives another model, its dense
weights are saved and reloaded in its place, in the type that the package left them in, and the reason is recorded.
"Another model" is one that multiplies by other matrices, or has other parameters beside them, than the one that was
quantized: a file that loads without a complaint need not be right.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from benchmarks.peers.parts import as_multiplied, clock, load_causal_lm, since, token_ids

ROUNDED = 0.01
"""Of a tensor's norm: rounding to bfloat16 moves it by some thousandths, a scale that got lost by a tenth or more."""


def full_precision(job: dict[str, Any]) -> dict[str, Any]:
    """Seconds of loading and evaluating the model as it is, and its loss."""
    before = clock()
    model = load_causal_lm(job["model"])
    loaded = since(before)
    return {"load": loaded, **_evaluated(model, job)}


def kept(
    side: Any, job: dict[str, Any], model: Any, module: Any, names: dict[str, int], weights: Path
) -> dict[str, Any]:
    """Seconds of "save", "reload" and "evaluate" of what `side` quantized; with "form", "type", "bytes" and "loss".

    `module` is the transformers model in `model`, `names` its quantized layers (`parts.linear_names`), and `weights`
    a file of the dense weights (`driver.save_weights`), read before because saving may change the module.
    """
    dense, dtype, reason = load_file(weights), module.dtype, "its driver has no packed form"
    if hasattr(side, "save"):
        try:
            return {"form": "packed", **_through(lambda folder: side.save(model, folder), dense, names, job)}
        except Exception as error:  # whatever a format cannot do: the loop goes on with dense weights
            reason = f"{type(error).__name__}: {error}".splitlines()[0][:300]
    plain = load_causal_lm(job["model"])
    plain.load_state_dict(dense)
    plain.to(dtype)
    return {"form": "dense", "reason": reason, **_through(plain.save_pretrained, dense, names, job)}


def _through(
    save: Callable[[str], object], dense: dict[str, Any], names: dict[str, int], job: dict[str, Any]
) -> dict[str, Any]:
    """The way through a folder; RuntimeError if what comes back is not the model of the `dense` weights."""
    with tempfile.TemporaryDirectory() as folder:
        before = clock()
        save(folder)
        saved = since(before)
        size = sum(path.stat().st_size for path in Path(folder).rglob("*.safetensors"))
        before = clock()
        model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto").eval()
        reloaded = since(before)
        evaluated = _evaluated(model, job)
        _require_same(model, dense, names)
    return {"save": saved, "reload": reloaded, "bytes": size, "type": str(model.dtype), **evaluated}


@torch.inference_mode()
def _evaluated(model: Any, job: dict[str, Any]) -> dict[str, Any]:
    """Seconds of a plain loop over the evaluation windows, and the mean loss per token."""
    before = clock()
    ids, total = token_ids(job["evaluation"]), 0.0
    for rows in ids.split(job["batch"]):
        logits = model(input_ids=rows, use_cache=False).logits[:, :-1].float()
        total += torch.nn.functional.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten(), reduction="sum").item()
    return {"evaluate": since(before), "loss": total / ids[:, 1:].numel()}


@torch.inference_mode()
def _require_same(model: Any, dense: dict[str, Any], names: dict[str, int]) -> None:
    state = model.state_dict()
    for name, tensor in dense.items():
        layer = name.removesuffix(".weight")
        found = as_multiplied(model.get_submodule(layer), names[layer]) if layer in names else state[name].float()
        off = ((found - tensor).norm() / tensor.norm()).item()
        if not off < ROUNDED:
            raise RuntimeError(f"{name} is {off:.1%} off after reloading")
