"""The uncertainty of a fit: resampling runs (or checkpoints) and evaluation windows, never single points.

Points are not independent.  All bit-widths of a checkpoint share its weights, all checkpoints of a run share
its seed and data order, and all of them share the evaluation windows.  Resampling points ignores that and
claims far too much.  Two things are resampled instead, both shared by every fit with the same seed,
so that the replicates of a degradation law and of a full-precision curve can be combined row by row:

* evaluation windows: one vector of weights per replicate, the same for all points with the same windows, which redraws
  what was drawn independently (`sampling.Design`: windows within strata, or whole documents);
* clusters: a whole run where there are at least three of them, else a whole checkpoint.  The deviations of a
  cluster from the law are multiplied by one random number per replicate (the wild cluster bootstrap of
  Cameron, Gelbach and Miller 2008), so every replicate keeps all sizes and bit-widths and stays
  identifiable, which drawing 3 of 3 runs with replacement would not.  Deviations are first divided by what
  the fit has absorbed (CR3, the jackknife correction), because with few clusters a law bends towards each of
  them.

The part of a deviation that is evaluation noise is thus counted twice, once by its cluster and once by the
windows.  That errs on the side of wide intervals; taking it out by its expected size was tried and gave too
narrow ones.  Webb's bounded multipliers replace normal ones, whose long tails the Huber loss would cut off.
Intervals are percentiles of the replicates around the estimate, stretched by Student's t with one degree of
freedom less than there are clusters.
"""

from __future__ import annotations

import zlib
from collections.abc import Hashable, Sequence

import numpy as np
from scipy import stats

from ptq_eval.laws.base import Data
from ptq_eval.laws.fit.diagnostics import jacobian
from ptq_eval.laws.fit.losses import huber_weight
from ptq_eval.laws.fit.search import minimise
from ptq_eval.laws.fit.solver import Minima, Solution, minimise_near, to_theta
from ptq_eval.sampling import Design, independent

MIN_RUNS = 3
"""With fewer runs than this the runs themselves cannot be resampled."""

_MOST_ABSORBED = 0.9
_WEBB = np.sqrt([0.5, 1.0, 1.5, 0.5, 1.0, 1.5]) * [-1, -1, -1, 1, 1, 1]


def replicates(solution: Solution, *, seed: int, n_boot: int) -> np.ndarray:
    """The constants of `n_boot` refits, [n_boot, p] in search coordinates, with the same weights."""
    responses = resampled(solution, seed=seed, n_boot=n_boot)
    return refit(solution, responses).points


def refit(solution: Solution, responses: np.ndarray) -> Minima:
    """The minima for other responses [replicates, n] on the scale of the loss, each searched for from the solution."""
    if solution.problem.loss.k > 0:
        return minimise_near(solution.problem, responses, solution.point)
    return minimise(solution.problem, responses, np.tile(solution.point, (len(responses), 1)))


def resampled(solution: Solution, *, seed: int, n_boot: int) -> np.ndarray:
    """The responses of `n_boot` replicates, [n_boot, n], on the scale of the loss."""
    problem, point = solution.problem, solution.point
    data, sigma, k = problem.data, problem.sigma, problem.loss.k
    f = problem.law.predict(to_theta(problem.law, point), data)
    z = problem.loss.transform(data[problem.law.response])
    r = problem.residuals(point[None], z)[0]
    scaled = jacobian(problem, point, z)[:, [not p.fixed for p in problem.law.parameters]]
    labels = clusters(data["run"].tolist(), data["checkpoint"].tolist())
    weight = huber_weight(r, k) if k > 0 else np.ones(len(r))
    residual = jackknifed(r, scaled * np.sqrt(weight)[:, None], labels)
    noise = sigma * residual * multipliers(labels, n_boot, seed)
    noise += evaluation_noise(data, n_boot, seed) / (f if problem.loss.log else 1.0)
    return problem.loss.transform(f) + noise


def evaluation_noise(data: Data, n_boot: int, seed: int) -> np.ndarray:
    """[n_boot, n]: from the windows where they are known, with what the draw of calibration windows adds
    independently ("calibration_se"); else independent normal errors of size "se"."""
    if has_windows(data):
        noise = window_noise(data["windows"], n_boot, seed, data.get("design"))
        if "calibration_se" in data:
            drawn = np.random.default_rng([seed, 1]).standard_normal((n_boot, len(data["calibration_se"])))
            noise += drawn * data["calibration_se"]
        return noise
    return np.random.default_rng([seed, 0]).standard_normal((n_boot, len(data["se"]))) * data["se"]


def has_windows(data: Data) -> bool:
    """Whether the points come with at least two evaluation windows."""
    return "windows" in data and data["windows"].ndim == 2 and data["windows"].shape[1] > 1


def window_noise(windows: np.ndarray, n_boot: int, seed: int, design: Design | np.ndarray | None = None) -> np.ndarray:
    """Change of every point's mean when the windows are drawn anew.

    windows [n, n_windows], the response per window; `design`: how they were drawn, one for all points or one for each
    [n], None as if independently.  Returns [n_boot, n], in the response's unit; it varies as the means do.
    """
    n, n_windows = windows.shape
    designs = design if isinstance(design, np.ndarray) else np.full(n, design, object)
    centred = windows - windows.mean(axis=1, keepdims=True)
    noise = np.empty((n_boot, n))
    for own in set(designs):
        rows = designs == own
        weights = (own or independent(n_windows)).deviations(n_boot, seed)
        noise[:, rows] = weights @ centred[rows].T / n_windows
    return noise


def multipliers(labels: Sequence[Hashable], n_boot: int, seed: int) -> np.ndarray:
    """One of Webb's six numbers (mean 0, variance 1) per label and replicate, [n_boot, len(labels)]; a label
    keeps its own."""
    draws = {
        label: np.random.default_rng([seed, zlib.crc32(repr(label).encode())]).choice(_WEBB, n_boot)
        for label in set(labels)
    }
    return np.stack([draws[label] for label in labels], axis=1)


def jackknifed(r: np.ndarray, jacobian: np.ndarray, labels: Sequence[Hashable]) -> np.ndarray:
    """Residuals [n] as each cluster would show them had it not taken part in the fit (CR3).

    `jacobian` [n, p] and `r` are both in units of sigma.  A direction that a cluster determines almost alone
    is enlarged tenfold at most.
    """
    basis = np.linalg.svd(jacobian, full_matrices=False)[0]
    names = np.array([repr(label) for label in labels])
    result = np.array(r, float)
    for name in np.unique(names):
        rows = names == name
        absorbed, directions = np.linalg.eigh(basis[rows] @ basis[rows].T)
        gain = 1 / (1 - np.clip(absorbed, 0.0, _MOST_ABSORBED))
        result[rows] = directions @ (gain * (directions.T @ r[rows]))
    return result


def clusters(runs: Sequence[Hashable], checkpoints: Sequence[Hashable]) -> list[Hashable]:
    """The label of each point's cluster: its run, or its checkpoint where there are fewer than three runs."""
    return list(runs) if len(set(runs)) >= MIN_RUNS else list(checkpoints)


def stretch(n_clusters: int, level: float) -> float:
    """How much wider than a normal interval the one from `n_clusters` clusters has to be (Student's t)."""
    tail = (1 + level) / 2
    return float(stats.t.ppf(tail, max(n_clusters - 1, 1)) / stats.norm.ppf(tail))


def interval(value: float, replicates: np.ndarray, *, factor: float, level: float, log: bool) -> tuple[float, float]:
    """The percentile interval of `replicates` around `value`, stretched by `factor`, on a log scale if asked.

    Infinite replicates are allowed and open an end; the interval always contains the value.
    """
    if not len(replicates) or not np.isfinite(value):
        return np.nan, np.nan
    center, draws = (np.log(value), np.log(replicates)) if log else (value, replicates)
    tail = (1 - level) / 2
    low, high = np.quantile(draws, [tail, 1 - tail], method="inverted_cdf")
    low, high = center + factor * min(low - center, 0.0), center + factor * max(high - center, 0.0)
    return (float(np.exp(low)), float(np.exp(high))) if log else (float(low), float(high))
