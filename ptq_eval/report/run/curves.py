"""Which curves a figure may show: a fitted law where it goes through the points, and the forecast beyond them.

A law that misses its points says nothing about them, however good its R² is, so it is not drawn.  It goes through them
if what remains, in units of the noise of each checkpoint (evaluation and the scatter of checkpoints about any smooth
curve), is no larger than that noise gives, within `LIMIT` standard errors: its mean square, and its mean over
the earlier and over the later half, because the later half decides where the curve goes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from ptq_eval.laws.forecast.forecast import draw, learn
from ptq_eval.laws.forecast.series import MIN_CHECKPOINTS, Series, series_of
from ptq_eval.report.common.data import Frame, Study
from ptq_eval.results.points import by

LIMIT = 2.0
HORIZON = 4.0
"""How many times the last D a forecast is drawn: the farthest that the backtest checks."""
BAND_POINTS = 40
QUANTILES = {"low": 0.05, "low_50": 0.25, "loss": 0.5, "high_50": 0.75, "high": 0.95}
"""The columns of a band: 90 and 50 %, and the median."""


def follows(curve: np.ndarray, values: np.ndarray, noise: np.ndarray) -> bool:
    """Whether a curve goes through its points, all [n] in the order of D."""
    scale = np.where(noise > 0, noise, np.nan)
    misses = (np.asarray(values, float) - np.asarray(curve, float)) / scale
    if len(misses) < 2 or not np.isfinite(misses).all():
        return False
    halves = np.array_split(misses, 2)
    centred = all(abs(float(half.mean())) * math.sqrt(len(half)) <= LIMIT for half in halves)
    return centred and float(np.mean(misses**2)) <= 1 + LIMIT * math.sqrt(2 / len(misses))


def all_series(study: Study) -> dict[str, list[Series]]:
    """The checkpoints of every run, by trajectory, one series per configuration and bit-width under its label."""
    names = {point.config: study.label_of(point.config.to_dict()) for point in study.points}
    return {str(run): found for run, found in by(series_of(study.points, None, names), "run").items()}


def bands(own: Sequence[Series], trained_once: bool, seed: int = 0) -> Frame:
    """The forecasts of one run that a figure shows, in long form; empty where nothing can be forecast.

    own: its series; trained_once: whether they are checkpoints of one training run.  Rows of kind "band" hold the loss
    after quantization (a checkpoint's own scatter is not in it), rows of kind "ahead" the median of the loss before.
    A band that reaches down to that median is omitted: it would repeat the one of the loss before quantization.
    """
    own = [s for s in own if len(s.tokens) >= MIN_CHECKPOINTS]
    if not own or not trained_once:
        return pd.DataFrame()
    learned, parts = learn(own), []
    for label, same in by(own, "quantizer").items():
        ahead: list[np.ndarray] = []
        x = math.log(same[0].tokens[-1]) + np.linspace(0, math.log(HORIZON), BAND_POINTS + 1)[1:]
        for s in same:
            paths = draw(s, own, x, learned=learned, seed=seed)
            loss, before = paths.loss[:, len(s.x) :], (paths.loss - paths.delta)[:, len(s.x) :]
            ahead.append(np.median(before, axis=0))
            quantiles = {name: np.quantile(loss, share, axis=0) for name, share in QUANTILES.items()}
            if apart(quantiles, ahead[-1]):
                start = {name: s.loss_q[-1:] for name in QUANTILES}
                values = {name: np.concatenate([start[name], quantiles[name]]) for name in QUANTILES}
                tokens = np.concatenate([s.tokens[-1:], np.exp(x)])
                parts.append(
                    pd.DataFrame({"tokens": tokens, **values}).assign(kind="band", bits=s.bits, quantizer=label)
                )
        line = np.concatenate([same[0].loss_fp[-1:], np.mean(ahead, axis=0)])
        tokens = np.concatenate([same[0].tokens[-1:], np.exp(x)])
        parts.append(pd.DataFrame({"tokens": tokens, "loss": line}).assign(kind="ahead", quantizer=label))
    return pd.concat(parts, ignore_index=True)


def apart(quantiles: Mapping[str, np.ndarray], before: np.ndarray) -> bool:
    """Whether a band of 90 % is above the median of the loss before quantization wherever it is drawn."""
    return bool(np.all(quantiles["low"] > before))
