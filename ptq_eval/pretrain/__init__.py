"""Pretraining of small real models, so that a trajectory exists wherever this package runs.

Importing this package imports no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ptq_eval.pretrain.config import PretrainConfig

if TYPE_CHECKING:
    from ptq_eval.pretrain.trainer import pretrain

__all__ = ["PretrainConfig", "pretrain"]


def __getattr__(name: str) -> Any:
    if name == "pretrain":
        from ptq_eval.pretrain.trainer import pretrain

        return pretrain
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
