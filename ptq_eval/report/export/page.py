"""What `ptq-eval export` says of the folder it wrote: a model card, and the lines on the terminal.

Nothing is computed here: the numbers are in the recipe.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

from ptq_eval.report.common.numbers import count, plus_minus, short
from ptq_eval.report.run.doubts import doubt_text

NAME = "recipe.json"
SAME_LOSS = 1e-6
"""Nats per token by which float32 sums in another order may differ."""


def text(recipe: Mapping[str, Any]) -> str:
    """The card, Markdown with the front matter of the Hugging Face hub."""
    checkpoint, scheme = recipe["checkpoint"], recipe["scheme"]
    rows = "\n".join(f"| {name} | {value} |" for name, value in _facts(recipe))
    return (
        "---\nlibrary_name: transformers\ntags:\n- quantized\n---\n\n"
        f"# {checkpoint['run']} in {scheme['name']} by {recipe['quantizer']}\n\n"
        f"| | |\n| :--- | :--- |\n{rows}\n\n" + "\n\n".join(lines(recipe)) + f"\n\nEverything is in `{NAME}`.\n"
    )


def lines(recipe: Mapping[str, Any]) -> list[str]:
    """Sentences: the loss before and after, the size, and how far the file is from what was measured."""
    measured, file = recipe["measured"], recipe["file"]
    found = [
        f"Loss {measured['loss_q']:.4f} nats per token, {measured['loss_fp']:.4f} before quantization: "
        f"δ = {plus_minus(measured['delta'], measured['delta_se'])}.",
        f"The weights take {short(file['bytes'] / 1e6)} MB, {short(file['bytes_before'] / 1e6)} MB before.",
        _read_back(file["largest_difference"]),
        _loaded(recipe),
    ]
    if file["input_scales_folded"]:
        found.append("The scales of input channels are part of the layers before, which changes no more than rounding.")
    found += [f"Warning: {warning}." for warning in recipe.get("warnings", ())]
    return [*found, *(f"Doubtful: {doubt_text(doubt)}." for doubt in recipe.get("doubts", ()))]


def _facts(recipe: Mapping[str, Any]) -> list[tuple[str, str]]:
    checkpoint, scheme, texts = recipe["checkpoint"], recipe["scheme"], recipe["texts"]
    options = ", ".join(f"{name}={value}" for name, value in recipe["options"].items())
    group = f"{scheme['group_size']} columns" if scheme["group_size"] else "a row"
    mixture = ", ".join(
        f"{number} layers in {form}" for form, number in Counter(scheme.get("layers", {}).values()).items()
    )
    found = [
        ("checkpoint", f"step {checkpoint['step'] or '–'}, D = {count(checkpoint['tokens'])} tokens"),
        ("method", f"{recipe['quantizer']} {recipe['quantizer_version']} ({options or 'no options'})"),
        ("number format", f"{scheme['name']}, a scale for {group}" + (f": {mixture}" if mixture else "")),
        ("bits per weight in this file, scales included", short(recipe["file"]["bits_per_weight"])),
        ("file format", recipe["file"]["format"]),
        ("evaluation", texts["evaluation"]["protocol"]),
    ]
    if texts["calibration"]:
        calibration = texts["calibration"]
        found.append(("calibration", f"{calibration['protocol']}, digest {calibration['digest'][:12]}"))
    return [*found, ("weights before", checkpoint["weights_sha"][:16])]


def _read_back(difference: float) -> str:
    if difference == 0:
        return "Read back, the file holds the weights that were measured, bit for bit."
    return (
        f"Read back, the weights differ from those measured by up to {difference:.1g} of the largest weight of a layer."
    )


def _loaded(recipe: Mapping[str, Any]) -> str:
    loaded = recipe["file"]["loaded"]
    if "missing" in loaded:
        return f"Not loaded here: {' and '.join(loaded['missing'])} must be installed to load this format."
    versions = ", ".join(f"{name} {version}" for name, version in loaded["versions"].items())
    if taken := loaded.get("arguments"):
        versions += " with " + ", ".join(f"`{name}={value}`" for name, value in taken.items())
    if "error" in loaded:
        return f"Loading it failed here ({versions}): {loaded['error']}"
    difference = loaded["loss"] - recipe["measured"]["loss_q"]
    if not math.isfinite(difference):
        return f"Loaded by {versions}, its loss is not finite."
    same = abs(difference) < SAME_LOSS
    shown = "the same loss" if same else f"a loss that differs by {difference:+.1g} nats per token"
    return f"Loaded by {versions}, it has {shown}."
