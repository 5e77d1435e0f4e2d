"""Pretraining of small real models, so that a trajectory exists wherever this package runs."""

from __future__ import annotations

from ptq_eval.pretrain.trainer import PretrainConfig, pretrain

__all__ = ["PretrainConfig", "pretrain"]
