"""This package under the same driver: one model, one method, its published calibration."""

from __future__ import annotations

from typing import Any

from benchmarks.peers.parts import installed
from ptq_eval.measure.calibration import quantize as fill
from ptq_eval.measure.variants import Variant
from ptq_eval.models.language_model import LanguageModel
from quantizers import LayerStats, Scheme, get_quantizer
from quantizers.testing import sample_layer


def versions() -> dict[str, str]:
    return installed("ptq-eval")


def warm_up(folder: str, cell: dict[str, Any]) -> None:
    """Compile what is compiled at first use, as the other sides may too."""
    weight, inputs = sample_layer(8, 32, tokens=64)
    for name in ("gptq", "awq"):
        get_quantizer(name).quantize(weight, Scheme(4, 16), LayerStats.from_inputs(inputs))


def load(folder: str, cell: dict[str, Any]) -> LanguageModel:
    return LanguageModel.load(folder)


def quantize(model: LanguageModel, ids: Any, cell: dict[str, Any]) -> LanguageModel:
    quantizer = get_quantizer(cell["method"])
    variant = Variant(quantizer, Scheme(cell["bits"], cell["group_size"], cell["symmetric"]))
    fill(model, [variant], ids, sequential=quantizer.default_calibration == "sequential")
    for name, weight in variant.weights.items():
        model.set_weight(name, weight)
    return model


def module_of(model: LanguageModel) -> Any:
    """The transformers model that carries the quantized weights."""
    return model.module
