"""ptq-eval: what post-training quantization costs along a pretraining run, and where more data harms.

    import ptq_eval

    table = ptq_eval.run("my-run/", "out/", bits=(2, 3, 4), group_size=64)
    table[["tokens_per_param", "quantizer", "bits", "delta", "delta_se"]]
    table.fit["critical_tokens"]

Importing this package imports no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["DegradationTable", "load", "run", "save_report"]

if TYPE_CHECKING:
    from ptq_eval.api import DegradationTable, load, run, save_report


def __getattr__(name: str) -> Any:
    if name in __all__:
        from ptq_eval import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
