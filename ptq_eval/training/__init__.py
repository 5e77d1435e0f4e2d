"""Degradation while a model trains: a hook for any training loop, and a callback for the Trainer of transformers.

    from ptq_eval.training import Monitor, PTQCallback

Importing this package imports no torch; `PTQCallback` imports transformers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__all__ = ["Monitor", "PTQCallback"]

if TYPE_CHECKING:
    from ptq_eval.training.callback import PTQCallback
    from ptq_eval.training.monitor import Monitor


def __getattr__(name: str) -> Any:
    if name in __all__:
        from importlib import import_module

        return getattr(import_module(f"ptq_eval.training.{'monitor' if name == 'Monitor' else 'callback'}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
