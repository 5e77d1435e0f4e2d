"""Intel neural-compressor (neural-compressor-pt): prepare, calibrate, convert.

Its AWQ searches a clipped range as well, which is its default: without that search (use_auto_clip=False) version 3.10
scales the layers and then quantizes none of them.
"""

from __future__ import annotations

from typing import Any

from neural_compressor.torch.quantization import AWQConfig, GPTQConfig, RTNConfig, convert, prepare

from benchmarks.peers.parts import installed, load_causal_lm


def versions() -> dict[str, str]:
    return installed("neural-compressor-pt")


def load(folder: str, cell: dict[str, Any]) -> Any:
    return load_causal_lm(folder)


def quantize(model: Any, ids: Any, cell: dict[str, Any]) -> Any:
    options = {
        "bits": cell["bits"],
        "use_sym": cell["symmetric"],
        "group_size": cell["group_size"],
        "use_layer_wise": False,
    }
    if cell["method"] == "rtn":
        return convert(prepare(model, RTNConfig(**options)))
    if cell["method"] == "gptq":
        model = prepare(model, GPTQConfig(**options))
    elif cell["method"] == "awq":
        model = prepare(model, AWQConfig(**options), example_inputs=ids[:1])
    else:
        raise ValueError(f"not measured: {cell['method']}")
    for row in ids:
        model(row[None])
    return convert(model)
