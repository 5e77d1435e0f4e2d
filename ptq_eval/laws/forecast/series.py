"""The checkpoints of one run at one configuration and bit-width: what a forecast starts from."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ptq_eval.laws.forecast.candidates import SCATTER, History, timed
from ptq_eval.laws.forecast.start import CONSTANTS, PRIOR_COUNT, assumed, squares, start
from ptq_eval.laws.tables.schedule import phase_of
from ptq_eval.laws.turning.observed import checkpoint_scatter
from ptq_eval.results.points import FULL_PRECISION, Config, Point, Windows, by, curve
from ptq_eval.sampling import Design, errors_needed

MIN_CHECKPOINTS = 4
"""The fewest checkpoints that are continued; a delta is significant if the last so many are significantly above zero:
by two standard errors, or by the equivalent quantile of Student's t where degrees of freedom are few.

Deltas that are noise are negative half the time, so a row of four above zero comes about by chance in one of sixteen.
"""
GROWN = 3.0
"""By how many times their noise the last two deltas are above zero where earlier ones are not clear."""


@dataclass(frozen=True)
class Series:
    """One run at one configuration and bit-width, in order of D.

    tokens, loss_fp, delta and se (of delta, zero where unknown) are [n], in tokens and nats per token.  phase [n] is
    the share of the learning rate's decay that is done (0 to 1), NaN where unknown.  windows [n, n_windows] is the loss
    after quantization per evaluation window, None where it is not known of every checkpoint; design is how these were
    drawn, and calibration_se [n] the part of se that is due to the draw of calibration windows, None where that is not
    known.  df [n]: the degrees of freedom of se, None where not known.
    """

    run: str
    quantizer: str
    bits: float
    params: float
    tokens: np.ndarray
    loss_fp: np.ndarray
    delta: np.ndarray
    se: np.ndarray
    phase: np.ndarray
    windows: np.ndarray | None = None
    design: Design | None = None
    calibration_se: np.ndarray | None = None
    df: np.ndarray | None = None
    together: bool = False
    """Whether it is all runs of one size together, whose N is its name."""

    @property
    def x(self) -> np.ndarray:
        """Log D, [n]."""
        return np.log(self.tokens)

    @property
    def loss_q(self) -> np.ndarray:
        """The loss after quantization, [n]."""
        return self.loss_fp + self.delta

    def until(self, tokens: float) -> Series:
        """The checkpoints up to D = `tokens`."""
        keep = self.tokens <= tokens
        arrays = {name: value[keep] for name, value in vars(self).items() if isinstance(value, np.ndarray)}
        values: dict[str, Any] = {**vars(self), **arrays}
        return Series(**values)

    @property
    def significant(self) -> bool:
        """Whether the last `MIN_CHECKPOINTS` deltas are all significantly above zero, or the last two have grown out
        of the noise.

        The noise is what the deltas before show: their root mean square in standard errors, at least one.
        """
        if len(self.delta) < MIN_CHECKPOINTS:
            return False
        if np.all(self.clear[-MIN_CHECKPOINTS:]):
            return True
        if not np.all(self.se > 0):
            return False
        units = self.delta / self.se
        return bool(np.all(units[-2:] > GROWN * max(1.0, float(np.sqrt(np.mean(units[:-2] ** 2))))))

    @property
    def clear(self) -> np.ndarray:
        """Which deltas are significantly above zero, [n]."""
        return self.delta > errors_needed(np.nan if self.df is None else self.df) * self.se

    @property
    def noise(self) -> np.ndarray:
        """The standard deviation of each delta about a smooth curve, [n].

        Where delta is significant it is a share of delta: that by which checkpoints scatter (`SCATTER` where fewer than
        four are clear), together with the standard error, which counts as `PRIOR_COUNT` checkpoints.  The error is not
        added: checkpoints are evaluated on the same windows, so that much of it is common to all.  Else the noise is a
        multiple of the standard error, as both grow
        with the size of what rounding changes; or the deltas' standard deviation where no error is known.
        """
        if self.significant:
            clear, count = self.clear, max(self.noise_freedom - PRIOR_COUNT, 1.0)
            share = checkpoint_scatter(self.x[clear], np.log(self.delta[clear])) if clear.sum() > 3 else SCATTER
            scatter = np.where(clear, share * np.abs(self.delta), self.se)
            return np.sqrt((PRIOR_COUNT * self.se**2 + count * scatter**2) / (PRIOR_COUNT + count))
        if np.all(self.se > 0):
            return self.se * max(1.0, float(np.sqrt(np.mean(np.square(self.delta / self.se)))))
        return np.full_like(self.delta, np.std(self.delta, ddof=1) if len(self.delta) > 1 else 0.0)

    @property
    def noise_freedom(self) -> float:
        """Degrees of freedom of the noise of a significant delta: checkpoints beyond the three of a third difference,
        and those that the standard error counts as."""
        return PRIOR_COUNT + max(float(self.clear.sum()) - 3, 0.0)

    @property
    def start(self) -> int:
        """The checkpoint from which the full-precision loss falls as a power of D (see `start`)."""
        history = timed(History(self.x, self.loss_fp, np.zeros_like(self.x), self.phase))
        return start(history.x, history.y)

    @property
    def scatter_freedom(self) -> float:
        """Those of the scatter: checkpoints beyond the constants of a falling power, and those assumed beforehand."""
        return PRIOR_COUNT + len(self.x) - self.start - CONSTANTS

    @property
    def scatter(self) -> float:
        """Standard deviation of checkpoints about a smooth curve of the full-precision loss; 0 where unknown.

        The smaller of two estimates, both of which count as scatter what their curve misses: from third differences,
        and from the residuals of E + B·D^−beta together with what is assumed beforehand; from `start` on.
        """
        own = slice(self.start, None)
        x, loss = self.x[own], self.loss_fp[own]
        rough, about = checkpoint_scatter(x, loss), squares(x, loss)
        if not math.isfinite(about):
            return float(np.nan_to_num(rough))
        return float(np.fmin(rough, math.sqrt((assumed(loss) + about) / self.scatter_freedom)))


def series_of(
    points: Sequence[Point], windows: Windows | None = None, labels: Mapping[Config, str] | None = None
) -> list[Series]:
    """The series in the points of a folder, in their order; `labels` names configurations (default: the quantizer).

    Of several points at one D the first counts; points without a delta are excluded.
    """
    usable = [p for p in points if p.config.quantizer != FULL_PRECISION and math.isfinite(p.delta + p.loss_fp)]
    found = []
    for run, own in by(usable, "trajectory").items():
        for config, same in by(own, "config").items():
            for bits, group in by(same, "bits").items():
                group = sorted({p.D: p for p in reversed(group)}.values(), key=lambda p: p.D)
                name = str((labels or {}).get(config) or config.quantizer)
                found.append(_series(group, run, name, bits, windows or {}))
    return found


def _series(group: list[Point], run: str, name: str, bits: float, windows: Windows) -> Series:
    names = ("D", "loss_fp", "delta", "se", "df")
    columns = {key: np.array([getattr(p, key) for p in group], float) for key in names}
    phase = phase_of(
        np.array([p.learning_rate for p in group], float),
        [p.phase for p in group],
        [p.training for p in group],
        columns["D"],
    )[0]
    known = curve(group, windows, quantized=True)
    return Series(
        run,
        name,
        bits,
        group[0].N,
        tokens=columns["D"],
        loss_fp=columns["loss_fp"],
        delta=columns["delta"],
        se=np.nan_to_num(columns["se"]),
        phase=phase - 1.0,
        windows=known.windows,
        design=known.design,
        calibration_se=known.calibration_se,
        df=columns["df"],
        together=group[0].together,
    )
