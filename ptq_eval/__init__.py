"""ptq-eval: what post-training quantization costs along a pretraining run, and where more data harms.

    import ptq_eval

    result = ptq_eval.run("my-run/", "out/", bits=(2, 3, 4), group_size=64)
    result.table[["tokens_per_param", "quantizer", "bits", "delta", "delta_se"]]
    result.fit["critical_tokens"]

Importing this package imports no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["RunResult", "compare", "fit_by", "fit_data", "load", "run", "save_report"]
_ELSEWHERE = {"compare": "compare_laws", "fit_by": "compare_laws", "fit_data": "fit_table"}

if TYPE_CHECKING:
    from ptq_eval.api import RunResult, load, run, save_report
    from ptq_eval.compare_laws import compare, fit_by
    from ptq_eval.fit_table import fit_data


def __getattr__(name: str) -> Any:
    if name in __all__:
        from importlib import import_module

        return getattr(import_module(f"ptq_eval.{_ELSEWHERE.get(name, 'api')}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
