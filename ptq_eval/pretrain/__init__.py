"""Pretraining of small real models, so that a trajectory exists wherever this package runs."""

from __future__ import annotations

from ptq_eval.pretrain.config import PretrainConfig
from ptq_eval.pretrain.trainer import pretrain

__all__ = ["PretrainConfig", "pretrain"]
