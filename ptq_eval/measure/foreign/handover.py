"""Variants made by backends: the model handed to a worker, its weights taken back, checked and put in place.

Whatever a backend does, each of its variants has weights or a reason why not (`Variant.failed`): weights that are
missing, of another shape or not finite, all unchanged although rounding would change them, or of a model that the
package reads differently, which the loss of one window in full precision shows.  Layers that the package leaves
unchanged are skipped ones.  Norms and biases that it changes, as AWQ does, are carried with the weights.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ptq_eval.backends.base import Cell, WeightBackend
from ptq_eval.backends.environments import place_of
from ptq_eval.backends.process import Answer
from ptq_eval.backends.worker import loss_of
from ptq_eval.backends.workers import Workers
from ptq_eval.errors import PtqEvalError
from ptq_eval.measure.doubts import unchanged
from ptq_eval.measure.foreign.quantizer import Foreign
from ptq_eval.measure.variants import Variant
from ptq_eval.models.configuration import quiet_transformers
from ptq_eval.models.language_model import LanguageModel
from ptq_eval.models.loading import tokenizer_folder
from ptq_eval.models.offload import OffloadedModel

_SAME_LOSS = {torch.float32: 1e-3}
_NARROW_LOSS = 0.05
"""How far the losses of one model may be apart in nats per token, read by two versions of transformers."""


def quantize(
    model: LanguageModel,
    source: Path,
    variants: Sequence[Variant],
    ids: Tensor | None,
    workers: Workers,
    probe: Tensor,
    *,
    reload: bool = False,
    trusting: bool = False,
) -> None:
    """Make the variants of backends' methods, calibrated on windows `ids` [n, time]; `probe` [1, time] is one window.

    `source` is the checkpoint's folder, for its tokenizer.  Nothing is raised for what a backend does.
    `reload` makes workers save and load what they quantize; with `trusting`, methods that failed their conformance run
    are tried all the same.
    """
    probe = probe.long()
    by_backend: dict[str, list[Variant]] = {}
    columns = {name: model.weight(name).shape[1] for name in model.linears()}
    narrowest = min(columns.values())
    for variant in variants:
        method = _method(variant)
        if ids is not None and method.needs_stats:
            variant.witness.tokens(columns, ids.numel())
        variant.failed = method.refusal(variant.scheme, narrowest) or ("" if trusting else method.distrust())
        if not variant.failed:
            by_backend.setdefault(method.backend.name, []).append(variant)
    for name, own in by_backend.items():
        waiting = list(own)
        try:
            with tempfile.TemporaryDirectory(prefix="ptq-eval-", ignore_cleanup_errors=True) as folder:
                exchange = Path(folder)
                cells = _prepared(model, source, own, ids, probe, exchange, reload)
                options: dict[str, Any] = {"device": model.device.type, "threads": torch.get_num_threads()}
                options["reload"] = reload
                for answer in workers.run(place_of(name), exchange, cells, columns, **options):
                    _accept(model, waiting[0], answer, probe)
                    del waiting[0]
        except (PtqEvalError, OSError, SafetensorError) as error:  # not installed, or no space for the exchange
            for variant in waiting:
                variant.failed = str(error)


def _method(variant: Variant) -> Foreign:
    assert isinstance(variant.quantizer, Foreign)
    return variant.quantizer


def _prepared(
    model: LanguageModel,
    source: Path,
    variants: Sequence[Variant],
    ids: Tensor | None,
    probe: Tensor,
    folder: Path,
    reload: bool,
) -> list[Cell]:
    """Write what a worker reads to `folder`; the cells of the variants."""
    layers = list(model.linears())
    backend = _method(variants[0]).backend
    if reload or not isinstance(backend, WeightBackend):
        _save(model, source, folder / "model")
    if isinstance(backend, WeightBackend):
        weights = {layer: model.weight(layer).detach().float().contiguous().cpu() for layer in layers}
        save_file(weights, folder / "weights.safetensors")
    tokens = {"probe": probe} if ids is None else {"probe": probe, "ids": ids}
    save_file({key: value.long().cpu().clone() for key, value in tokens.items()}, folder / "ids.safetensors")
    return [_method(variant).cell(variant.scheme) for variant in variants]


def _save(model: LanguageModel, source: Path, folder: Path) -> None:
    """Write the model as it is measured, with its tokenizer: a plain folder, whatever the checkpoint's is."""
    if isinstance(model, OffloadedModel):
        folder.symlink_to(source.resolve(), target_is_directory=True)
        return
    module: Any = model.module
    with quiet_transformers():
        module.save_pretrained(folder)
    home = tokenizer_folder(source)
    for path in home.iterdir() if home is not None else ():
        if path.is_file() and not (folder / path.name).exists() and path.suffix in (".json", ".txt", ".model"):
            shutil.copyfile(path, folder / path.name)


def _accept(model: LanguageModel, variant: Variant, answer: Answer, probe: Tensor) -> None:
    """Put the answer's weights into the variant, or the reason why it has none."""
    if answer.weights is None or answer.facts is None:
        variant.failed = f"{_method(variant).name}: {answer.error}"
        return
    found = load_file(answer.weights)
    answer.weights.unlink()
    layers = {name.partition(":")[2]: weight for name, weight in found.items() if name.startswith("layer:")}
    others = {name.partition(":")[2]: value for name, value in found.items() if name.startswith("other:")}
    variant.facts = {"backend": {name: value for name, value in answer.facts.items() if name != "loss"}}
    problem = _wrong(model, layers, others) or _other_model(model, answer.facts["loss"], probe)
    if problem:
        variant.failed = f"{_method(variant).name} {problem}"
        return
    own = {name: model.weight(name).float().cpu() for name in layers}
    still = [name for name in model.linears() if unchanged(own[name], layers[name], variant.scheme)]
    variant.skipped.update(dict.fromkeys(still, "the backend left it unchanged"))
    # In the model's order, as every other variant: sums and draws over layers are then the same in every process.
    for name in model.linears():
        if name not in variant.skipped:
            variant.add_dense(name, layers[name], model.weight(name))
    variant.others = others


def _wrong(model: LanguageModel, layers: dict[str, Tensor], others: dict[str, Tensor]) -> str:
    """What is wrong with the form of the weights; empty if nothing is."""
    if missing := [name for name in model.linears() if name not in layers]:
        return f"returned no weights of {len(missing)} layers: {', '.join(missing[:3])}"
    if more := sorted(layers.keys() - model.linears().keys()):
        return f"returned weights of {len(more)} layers that are not to be quantized: {', '.join(more[:3])}"
    shapes = {name: (tuple(layers[name].shape), tuple(model.weight(name).shape)) for name in model.linears()}
    for name, value in others.items():
        shapes[name] = (tuple(value.shape), tuple(model.module.get_parameter(name).shape))
    for name, (got, own) in shapes.items():
        if got != own:
            return f"returned weights of other shapes: {list(got)} instead of {list(own)} for {name}"
    for name, value in {**layers, **others}.items():
        if not torch.isfinite(value).all():
            return f"returned weights that are not finite: {name}"
    if others and isinstance(model, OffloadedModel):
        return "changed parameters outside the layers, which needs a model that fits in memory"
    return ""


def _other_model(model: LanguageModel, loss: float | None, probe: Tensor) -> str:
    """How the model that the package read differs from ours; empty if it does not."""
    if loss is None:
        return ""
    own = loss_of(model.module, probe.to(model.device))
    if abs(loss - own) <= _SAME_LOSS.get(next(model.module.parameters()).dtype, _NARROW_LOSS):
        return ""
    return f"reads the model differently: its loss in full precision is {loss:.4f} instead of {own:.4f}"
