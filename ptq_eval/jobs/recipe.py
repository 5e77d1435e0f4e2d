"""What `recipe.json` records of an exported model: where it is from, how it was made, and what was measured of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ptq_eval import plugins, records
from ptq_eval.config.run import RunConfig
from ptq_eval.measure import mixtures
from ptq_eval.measure.trials import Workload
from ptq_eval.records import Doubt

FORMAT = 1
"""Raised whenever the numbers of a recipe change their meaning."""

SAME_LOSS = 1e-4
"""Nats per token by which a loaded model's loss may differ from the measured one, unless the noise floor is higher."""

_MEASURED = (
    "loss_fp", "loss_q", "delta", "delta_se", "ppl_fp", "ppl_q", "kl", "top1_agreement", "windows",
    "bits_per_weight",
)  # fmt: skip


def recipe_of(work: Workload, config: RunConfig, row: Mapping[str, Any], file: Mapping[str, Any]) -> dict[str, Any]:
    """The content of `recipe.json`, but for the warnings.

    work: the checkpoint with its two trials.  row: the quantized trial's in the degradation table.  file: the
    format's name, bytes and largest difference of what was written, and under "loaded" what became of loading it.
    """
    checkpoint, trial = work.checkpoint, work.trials[1]
    about = ("run", "step", "tokens", "params", "architecture", "weights_sha")
    recipe: dict[str, Any] = {
        "version": FORMAT,
        "checkpoint": {name: getattr(checkpoint, name) for name in about},
        "quantizer": trial.quantizer,
        "quantizer_version": trial.quantizer_version,
        "options": dict(trial.options),
        "scheme": _described(trial.scheme),
        "calibration": trial.calibration,
        "texts": {
            "evaluation": work.evaluation.describe(),
            "calibration": work.calibration.describe() if work.calibration is not None else None,
        },
        "dtype": trial.dtype,
        "measured": {name: row[name] for name in _MEASURED},
        "file": dict(file),
        "settings": {**config.measured(), "device": config.device},
        "versions": plugins.versions("ptq-eval", "torch", "transformers"),
    }
    recipe["doubts"] = [*json.loads(row.get("doubts") or "[]"), *_doubts(row, file.get("loaded", {}))]
    return json.loads(json.dumps(recipe, default=_plain))


def _described(scheme: records.Scheme | None) -> dict[str, Any]:
    """A scheme with its name; in mixed precision with the names of all layers' formats."""
    assert scheme is not None
    if scheme.layers:
        return {
            **vars(scheme),
            "name": scheme.format,
            "layers": {name: form for name, (form, _) in scheme.layers.items()},
        }
    common, _ = mixtures.schemes_of(scheme)
    return {**vars(common), "name": common.name}


def _doubts(row: Mapping[str, Any], answer: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The doubt of a model that loads with another loss than the measured one, beyond other roundings as good."""
    difference = answer.get("loss", row["loss_q"]) - row["loss_q"]
    floor = row.get("noise_floor")
    limit = max(SAME_LOSS, floor) if floor is not None and floor == floor else SAME_LOSS
    if not abs(difference) > limit:
        return []
    return [{"kind": Doubt.EXPORT_DIFFERS.value, "difference": difference, "limit": limit}]


def _plain(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else str(value)
