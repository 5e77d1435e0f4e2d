"""Norm and variance of the gradient by the adapter against the bits of the base, before training and after it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import pandas as pd

from ptq_eval.report.adapt import axes
from ptq_eval.report.common import figures
from ptq_eval.report.common.data import Frame

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMNS = ("quantizer", "bits", "seed", "when", "gradient_norm", "gradient_variance")
NAMES = {"gradient_norm": "norm of a batch's gradient", "gradient_variance": "variance of a batch's gradient"}


def data(study: Mapping[str, Any]) -> Frame:
    """Everything drawn: a row for each run and moment."""
    return pd.DataFrame(axes.moments(study["summary"], tuple(NAMES)), columns=list(COLUMNS))


def draw(table: Frame) -> Figure:
    """Draw what `data` returned."""
    return axes.draw(table, NAMES) if len(table) else figures.nothing("Nothing was trained.")
