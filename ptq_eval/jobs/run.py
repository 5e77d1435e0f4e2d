"""The main job as a function: a checkpoint folder in, a degradation table and its law out.

    discover → verify → plan → sweep → store → fit → report

Each step hands plain records to the next.  Whatever stops a run, what was measured stays in the store, and the same
call goes on from there.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from ptq_eval.config.options import declared
from ptq_eval.errors import PtqEvalError, full_disk
from ptq_eval.records import BitsAxis, Progress
from ptq_eval.results.load import Results
from ptq_eval.results.load import load as load_results
from ptq_eval.results.points import Point, rows_of

if TYPE_CHECKING:
    from ptq_eval.checkpoints import Overrides
    from ptq_eval.config.run import RunConfig
    from ptq_eval.jobs.grid import Grid
    from ptq_eval.measure.estimate import Estimate


@dataclass(frozen=True)
class RunResult:
    """What a run found: one row of `table` per checkpoint, quantizer and bit-width.

    `fit` and `run` are the contents of `fit.json` and `run.json`, `problems` the errors of checkpoints and trials that
    could not be measured, `replicates` the bootstrap's constants of each fit, `points` the rows that laws are fitted
    to.
    """

    table: pd.DataFrame
    fit: dict[str, Any] = field(repr=False)
    run: dict[str, Any] = field(repr=False)
    problems: tuple[PtqEvalError, ...] = ()
    replicates: Sequence[np.ndarray] = field(default=(), repr=False)
    points: Sequence[Point] = field(default=(), repr=False)


def run(
    folders: str | Path | Sequence[str | Path],
    out: str | Path | None = None,
    *,
    overrides: Overrides | Mapping[str, Any] | None = None,
    progress: Progress | None = None,
    write_report: bool = True,
    **options: Any,
) -> RunResult:
    """Measure every checkpoint under `folders` before and after quantization, fit the laws, write the report.

    `options` are the same as on the command line: the fields of `ptq_eval.config.run.RunConfig` and, for what
    checkpoints do not say, of `ptq_eval.checkpoints.Overrides`, which add to `overrides`.  `out` defaults to
    `<folder>-ptq` in the working directory.  The same call continues an interrupted run.  Raises PtqEvalError
    subclasses; checkpoints that are wrong do not stop the others, they are rows of status "excluded" or "failed" and
    listed in `problems`.
    """
    from ptq_eval.checkpoints import Overrides, discover
    from ptq_eval.config.run import RunConfig
    from ptq_eval.jobs.parts import in_parts
    from ptq_eval.jobs.pool import ahead
    from ptq_eval.results.store import Store

    overrides = Overrides.take(options, overrides)
    config = RunConfig.of(options, also=declared(Overrides))
    out = out if out is not None else default_output(_roots(folders)[0])
    if config.prune:
        grid = _prepared(_roots(folders), out, config, progress)
        problems = in_parts(grid, discover(_roots(folders), overrides=overrides), _roots(folders))
    else:
        with ahead(Store(out, config.shard), config) as ready:
            grid = planned(folders, out, config, overrides, progress)
            problems = [*(error for _, error in grid.plan.excluded), *grid.measure(grid.jobs(), ready)]
    options = {"laws": config.laws, "seed": config.seed, "bootstrap": config.bootstrap}
    found = analyse(grid.results(), progress=progress, **options)
    result = replace(found, problems=tuple(problems))
    if write_report:
        save_report(grid.store.folder, result)
    return result


def estimate(
    folders: str | Path | Sequence[str | Path],
    out: str | Path | None = None,
    *,
    overrides: Overrides | Mapping[str, Any] | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> list[Estimate]:
    """What the same call of `run` would take, checkpoint by checkpoint; nothing is measured or written.

    Raises PtqEvalError subclasses.
    """
    from ptq_eval.checkpoints import Overrides, discover, verify_all
    from ptq_eval.config.run import RunConfig

    overrides = Overrides.take(options, overrides)
    config = RunConfig.of(options, also=declared(Overrides))
    grid = _prepared(_roots(folders), out, config, progress)
    checkpoints = verify_all(
        discover(_roots(folders), overrides=overrides),
        progress=lambda done, total, _name: grid.progress("reading weights", done, total),
        trust_remote_code=config.trust_remote_code,
    )
    return grid.estimates(checkpoints)


def _roots(folders: str | Path | Sequence[str | Path]) -> list[str | Path]:
    return [folders] if isinstance(folders, (str, Path)) else list(folders)


def planned(
    folders: str | Path | Sequence[str | Path],
    out: str | Path | None,
    config: RunConfig,
    overrides: Overrides,
    progress: Progress | None = None,
) -> Grid:
    """The grid of a run with its trials, none of them measured yet.  Raises PtqEvalError subclasses."""
    from ptq_eval.checkpoints import discover, verify_all

    roots = _roots(folders)
    grid = _prepared(roots, out, config, progress)
    checkpoints = verify_all(
        discover(roots, overrides=overrides),
        progress=lambda done, total, _name: grid.progress("reading weights", done, total),
        trust_remote_code=config.trust_remote_code,
    )
    grid.take(checkpoints, roots)
    return grid


def _prepared(
    roots: Sequence[str | Path], out: str | Path | None, config: RunConfig, progress: Progress | None
) -> Grid:
    """The empty grid of a run; mistakes in the request are reported here, before any weight is read."""
    from ptq_eval.jobs.grid import Grid
    from ptq_eval.laws.fit.choice import chosen
    from ptq_eval.measure.trials import quantizers_of

    chosen(config.laws)
    quantizers_of(config)
    config.resolve_device()
    said: Progress = progress or (lambda what, done, total: None)
    return Grid(out if out is not None else default_output(roots[0]), config, said)


def analyse(
    results: Results,
    *,
    laws: Sequence[str] | None = None,
    seed: int = 0,
    bootstrap: int = 500,
    progress: Progress | None = None,
) -> RunResult:
    """Fit the laws to the results in an output folder: `laws`, or those that its run was asked for.  Needs no torch."""
    from ptq_eval.checkpoints import warnings
    from ptq_eval.laws.fit.choice import chosen
    from ptq_eval.laws.fit.folder import fit_points
    from ptq_eval.laws.fit.precisions import fit_table
    from ptq_eval.laws.forecast.folder import hindsight
    from ptq_eval.report import with_texts
    from ptq_eval.report.run.warnings import notes
    from ptq_eval.results import calibrations, interactions

    if progress:
        progress("fitting", 0.0, 0.0)
    asked = chosen(results.run.get("options", {}).get("laws", ()) if laws is None else laws)
    settings = {"seed": seed, "n_boot": bootstrap, "laws": asked, "axis": results.bits_axis}
    found = fit_points(results.points, results.windows, **settings)
    fit = with_texts(found.content)
    fit["hindsight"] = hindsight(results.points, results.windows, found.turns, seed=seed)
    rows, trajectories = rows_of(results.frame), {p.run: p.trajectory for p in results.points}
    for name, effects in (("calibrations", calibrations.effects), ("activations_and_cache", interactions.effects)):
        if found_effects := effects(rows, results.windows, trajectories):
            fit[name] = found_effects
    together = fit_table(rows, results.windows, found.curves, seed=seed, n_boot=bootstrap, axis=results.bits_axis)
    if together:
        fit["precisions"] = [one.entry for one in together]
    replicates = [*found.replicates, *(draws for one in together for draws in one.replicates)]
    if results.tasks:
        fit["tasks"] = list(results.tasks)
    fit["warnings"] = [*fit["warnings"], *warnings(results.checkpoints), *notes(results)]
    return RunResult(results.frame, fit, dict(results.run), replicates=replicates, points=results.points)


def save_report(folder: str | Path, result: RunResult) -> list[Path]:
    """Write the table, the fit, the figures and the page of a run below `folder`; the paths written."""
    from ptq_eval.report import write

    with full_disk(Path(folder)):
        return write(Path(folder), result.table, result.fit, result.run, result.replicates, result.points)


def load(
    folder: str | Path,
    *,
    laws: Sequence[str] | None = None,
    bits_axis: BitsAxis | None = None,
    seed: int = 0,
    bootstrap: int = 500,
    progress: Progress | None = None,
) -> RunResult:
    """The table and fit of an output folder, as `analyse` makes it, without measuring anything and without torch.

    `bits_axis`: by default as in its run.
    """
    return analyse(load_results(folder, bits_axis), laws=laws, seed=seed, bootstrap=bootstrap, progress=progress)


def default_output(root: str | Path, suffix: str = "ptq") -> Path:
    """`<name of the folder or model>-ptq` in the working directory, or with another suffix."""
    remote = re.match(r"(hub|suite):(?P<id>[^@]*)", str(root))
    name = remote["id"].rstrip("/").rpartition("/")[2] if remote else Path(root).resolve().name
    return Path(f"{name or 'run'}-{suffix}")
