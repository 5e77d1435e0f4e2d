"""From a checkpoint to a folder that other libraries load: the quantized model that was measured, packed.

    from ptq_eval import export

    recipe = export("my-run/checkpoint-1000", "my-4bit", file_format="gptq", quantizers="gptq", bits=4)

    discover → verify → plan → sweep (quantize, measure) → fold input scales → pack → read back → load → recipe.json

The codes and scales that are packed are those whose loss was measured.  The folder is read back by the format's own
reader and, where the libraries that the format is for are installed, loaded by them and evaluated on the same windows.
It is written under another name and renamed when it is complete, so a full disk leaves no half of a model.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from ptq_eval.checkpoints import Overrides, discover, gravest, verify_all
from ptq_eval.config.export import DEFAULT_BITS
from ptq_eval.config.run import RunConfig
from ptq_eval.errors import (
    DeviceError,
    ExportError,
    MeasurementFailedError,
    OptionError,
    OutputFullError,
    did_you_mean,
    full_disk,
)
from ptq_eval.jobs.recipe import recipe_of
from ptq_eval.measure import mixtures
from ptq_eval.measure.session import Session
from ptq_eval.measure.sweep import cost, sweep
from ptq_eval.measure.trials import Workload, make_plan
from ptq_eval.measure.variants import Variant
from ptq_eval.models.configuration import read_config
from ptq_eval.models.language_model import DTYPES, LanguageModel
from ptq_eval.models.parameters import transposed
from ptq_eval.models.refusal import Refusal
from ptq_eval.models.weight_files import find_weights
from ptq_eval.packing import FILE_FORMATS, FileFormat, Shape
from ptq_eval.packing.base import Content
from ptq_eval.packing.folder import largest_difference
from ptq_eval.packing.folding import folded
from ptq_eval.packing.loading import loaded
from ptq_eval.records import Checkpoint, Progress, Trial
from ptq_eval.report.export import page
from ptq_eval.report.export.words import reason
from ptq_eval.results.table import tabulate
from quantizers import QuantizedWeight, Scheme


@dataclass(frozen=True)
class Quantized:
    """What is kept of a measured model: quantized layers, all other tensors, shapes, and other linear layers."""

    layers: Mapping[str, QuantizedWeight]
    dense: Mapping[str, Tensor]
    shapes: Mapping[str, Shape]
    excluded: Sequence[str]

    @property
    def schemes(self) -> dict[str, Scheme]:
        """The scheme of each layer."""
        return {name: layer.scheme for name, layer in self.layers.items()}


def export(
    folder: str | Path,
    out: str | Path,
    *,
    file_format: str = "compressed-tensors",
    overrides: Overrides | Mapping[str, Any] | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Quantize the checkpoint in `folder`, measure it, and write it to the new folder `out` in a file format.

    `file_format` is a name of `packing.FILE_FORMATS`; `options` are fields of `ptq_eval.config.run.RunConfig`, with one
    quantizer and one bit-width (by default 4), number format or plan.  Returns the content of `recipe.json`: what was
    done, the loss before and after in nats per token with the standard error of δ, and how far the file is from what
    was measured.
    Raises ExportError where the format cannot hold the result, and the PtqEvalError of whatever else is wrong.
    """
    if not any(options.get(name) for name in ("bits", "formats", "mixed")):
        options["bits"] = DEFAULT_BITS
    elif not options.get("bits"):
        options["bits"] = ()
    config, packer, out = RunConfig.of(options), _packer(file_format), Path(out)
    config.require_one_calibration("export takes one draw of calibration windows")
    config.require_weights_only("export writes weights")
    schemes = (*config.bits, *config.formats, *config.mixed)
    if len(config.quantizers) != 1 or len(schemes) != 1:
        raise OptionError(
            "export takes one quantizer with one bit-width, number format or plan",
            got=f"{', '.join(config.quantizers)} with {', '.join(map(str, schemes))}",
            remedy="--quantizer gptq --bits 4",
        )
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ExportError("the output folder is not empty", got=out, remedy="choose another -o, or remove it")
    report = progress or (lambda what, done, total: None)
    work, warnings = _workload(_checkpoint(folder, overrides, config, report), config, report)
    _refuse_early(work, packer, config)
    kept, row = _measured(work, config, report)
    with full_disk(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        partial = out.with_name(f"{out.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
    try:
        file = _written(partial, work, packer, kept)
        loading: dict[str, Any] = {"dtype": DTYPES[work.trials[0].dtype], "device": config.resolve_device()}
        loading["trust_remote_code"] = config.trust_remote_code
        ids = torch.tensor(work.evaluation.ids)
        file |= {"loaded": loaded(partial, packer, list(kept.schemes.values()), ids, report, **loading)}
        recipe = recipe_of(work, config, row, file) | {"warnings": warnings}
        with full_disk(partial):
            (partial / page.NAME).write_text(json.dumps(recipe, indent=2) + "\n", encoding="utf-8")
            (partial / "README.md").write_text(page.text(recipe), encoding="utf-8")
            if out.exists():
                out.rmdir()
            partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return recipe


def _packer(name: str) -> FileFormat:
    if name not in FILE_FORMATS:
        remedy = did_you_mean(name, FILE_FORMATS)
        raise OptionError("unknown file format", got=name, allowed=", ".join(FILE_FORMATS), remedy=remedy)
    packer = FILE_FORMATS[name]
    if packer.extra and find_spec(packer.extra) is None:
        remedy = f'pip install "ptq-eval[{packer.extra}]"'
        raise ExportError(
            f"the package that writes the format {name} is not installed", got=packer.extra, remedy=remedy
        )
    return packer


def _checkpoint(
    folder: str | Path, overrides: Overrides | Mapping[str, Any] | None, config: RunConfig, progress: Progress
) -> Checkpoint:
    found = discover([folder], overrides=overrides)
    if len(found) > 1:
        raise OptionError(
            "export takes one checkpoint", got=f"{folder}, which holds {len(found)}", remedy="name one of its folders"
        )
    (checkpoint,) = verify_all(
        found,
        progress=lambda done, total, _name: progress("reading weights", done, total),
        trust_remote_code=config.trust_remote_code,
    )
    if checkpoint.fatal:
        raise gravest(checkpoint)
    return checkpoint


def _workload(checkpoint: Checkpoint, config: RunConfig, progress: Progress) -> tuple[Workload, list[str]]:
    """What to measure, and the warnings of its plan."""
    plan = make_plan([checkpoint], config, progress)
    if plan.excluded:
        raise plan.excluded[0][1]
    return plan.workloads[0], plan.warnings


def _refuse_early(work: Workload, packer: FileFormat, config: RunConfig) -> None:
    """Raise ExportError for what is known to be impossible before anything is quantized."""
    model = LanguageModel.blueprint(
        work.folder,
        include_head=config.include_head,
        include_embedding=config.include_embedding,
        trust_remote_code=config.trust_remote_code,
    )
    if model.embedding is not None and packer.name != "fake":
        raise _refusal(packer, model.embedding, "it holds quantized linear layers, and this is an embedding")
    if why := packer.refusal_of_model(read_config(work.folder)):
        raise _refusal(packer, work.checkpoint.name, reason(why))
    shapes = _shapes(model)
    schemes = _schemes(work.trials[1], shapes)
    for name, shape in shapes.items():
        if why := packer.refusal(schemes[name], shape):
            raise _refusal(packer, name, reason(why))
    if why := packer.refusal_of_mixture(list(schemes.values())):
        raise _refusal(packer, work.checkpoint.name, reason(why))


def _refusal(packer: FileFormat, layer: str, why: str) -> ExportError:
    return ExportError(
        f"the format {packer.name} cannot hold {layer}", got=why, remedy="--format fake holds everything"
    )


def _schemes(trial: Trial, layers: Iterable[str]) -> dict[str, Scheme]:
    """The scheme of each layer."""
    assert trial.scheme is not None
    common, own = mixtures.schemes_of(trial.scheme)
    return {name: own.get(name, common) for name in layers}


def _shapes(model: LanguageModel) -> dict[str, Shape]:
    found = {}
    for name, module in model.matrices().items():
        rows, columns = model.weight(name).shape
        found[name] = Shape(rows, columns, transposed(module))
    return found


def _measured(work: Workload, config: RunConfig, progress: Progress) -> tuple[Quantized, dict[str, Any]]:
    """The quantized model, and its row of the degradation table.  Raises MeasurementFailedError."""
    kept: list[Quantized] = []

    def keep(session: Session, _trial: Trial, variant: Variant) -> None:
        assert variant.layers is not None
        if set(variant.layers) != set(variant.weights):
            raise ExportError(
                f"{work.trials[1].quantizer} gives weights without codes",
                allowed="rtn, gptq, awq and other quantizers that give codes",
                remedy="save the model with that package",
            )
        model = session.model
        packed = {f"{name}.weight" for name in variant.layers}
        state = model.module.state_dict(keep_vars=True)  # a tied tensor is one object under both its names
        tied = None if model.embedding is None else state[f"{model.embedding}.weight"]
        dense = {name: tensor for name, tensor in state.items() if name not in packed and tensor is not tied}
        if any(tensor.is_meta for tensor in dense.values()):
            raise DeviceError("an export needs the whole model in memory", remedy="a larger --memory")
        layers = {name: _on_cpu(layer) for name, layer in variant.layers.items()}
        linear = [name for name, module in model.module.named_modules() if isinstance(module, nn.Linear)]
        kept.append(Quantized(layers, dense, _shapes(model), [name for name in linear if name not in layers]))

    done, total = 0.0, cost(work, work.trials)

    def tick(amount: float) -> None:
        nonlocal done
        done += amount
        progress("quantizing and measuring", done, total)

    options: dict[str, Any] = {"memory": config.memory, "trust_remote_code": config.trust_remote_code}
    found = list(sweep(work, work.trials, device=config.resolve_device(), tick=tick, keep=keep, **options))
    for record in found:
        if record.status != "ok":
            raise MeasurementFailedError(f"{work.checkpoint.name} cannot be exported", got=record.message)
    table, _ = tabulate(found, [work.checkpoint])
    row = table[table["quantizer"] == work.trials[1].quantizer].iloc[0].to_dict()
    return kept[0], row


def _on_cpu(layer: QuantizedWeight) -> QuantizedWeight:
    values = {field.name: getattr(layer, field.name) for field in fields(layer)}
    moved: dict[str, Any] = {name: value.cpu() for name, value in values.items() if isinstance(value, Tensor)}
    return replace(layer, **moved)


def _written(folder: Path, work: Workload, packer: FileFormat, kept: Quantized) -> dict[str, Any]:
    """Write the folder; what it holds and how far its weights are from those measured.  Raises ExportError."""
    config = read_config(work.folder)
    layers, dense = kept.layers, dict(kept.dense)
    scaled = [name for name, layer in layers.items() if layer.input_scale is not None and packer.refusal_of(layer)]
    if scaled:
        found = folded(layers, dense, str(config.get("model_type")))
        if isinstance(found, Refusal):
            raise _refusal(packer, scaled[0], f"it has no place for scales of input channels, and {reason(found)}")
        layers = found[0]
        dense |= found[1]
    for name, layer in layers.items():
        if layer.rotation is not None and packer.name != "fake":
            raise _refusal(packer, name, "it has no place for a rotation of the layer's inputs")
        if why := packer.refusal_of(layer):
            raise _refusal(packer, name, reason(why))
    if "lm_head" in layers:
        config["tie_word_embeddings"] = False
    content = Content(work.folder, layers, dense, kept.shapes, config, kept.excluded)
    try:
        with full_disk(folder):
            packer.write(folder, content)
    except SafetensorError as error:  # how the library reports a disk that fills
        raise OutputFullError("the weights cannot be written", got=error, remedy="free some space") from error
    return {
        "format": packer.name,
        "bytes": _bytes(folder),
        "bytes_before": _bytes(work.folder),
        "bits_per_weight": 8 * packer.layer_bytes(folder, content) / sum(one.codes.numel() for one in layers.values()),
        "largest_difference": largest_difference(folder, packer, content),
        "input_scales_folded": bool(scaled),
    }


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in find_weights(folder).files or folder.glob("*.gguf"))
