"""Evaluation loss and perplexity against the bits of the base, before the first epoch and after the last."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import pandas as pd

from ptq_eval.report.adapt import axes
from ptq_eval.report.common import figures
from ptq_eval.report.common.data import Frame

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMNS = ("quantizer", "bits", "seed", "when", "loss", "perplexity")
NAMES = {"loss": "loss, nats per token", "perplexity": "perplexity"}


def data(study: Mapping[str, Any]) -> Frame:
    """Everything drawn: a row for each run and moment."""
    return pd.DataFrame(axes.moments(study["summary"], ("loss", "perplexity")), columns=list(COLUMNS))


def draw(table: Frame) -> Figure:
    """Draw what `data` returned."""
    return axes.draw(table, NAMES) if len(table) else figures.nothing("Nothing was trained.")
