"""`ptq-eval submit`: a run as an array of SLURM tasks."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ptq_eval.cli import options as cli_options
from ptq_eval.cli.console import Bar, raise_foremost
from ptq_eval.config.cluster import SlurmConfig
from ptq_eval.config.options import declared
from ptq_eval.config.run import RunConfig
from ptq_eval.errors import OptionError

if TYPE_CHECKING:
    from ptq_eval.jobs.submit import Submission


@click.command(short_help="Measure checkpoints on a SLURM cluster, a task of a job array for each.")
@click.argument("folders", nargs=-1, required=True)
@cli_options.out_option("Output folder, which every node must see.  [default: FOLDER-ptq, here]")
@cli_options.options_of(SlurmConfig)
@cli_options.options_of(RunConfig)
@cli_options.trajectory_options
def submit(folders: tuple[str, ...], out: str | None, **settings: Any) -> None:
    """Submit what `ptq-eval run FOLDERS` would measure to SLURM, a task for each checkpoint, and a report after them.

    The plan, two scripts to read and change, and the logs are in OUT/slurm/N.  Checkpoints, OUT and this Python must be
    on a file system that all nodes share.  Repeat the command to add to the grid.  What was lost (time or memory ran
    out, a node died, scancel) is submitted again with --retry-missing and the output folder alone; options of SLURM
    may change then.

    \b
    Examples:
      ptq-eval submit runs/my-model -o out --slurm --gpus 1 --time 2:00:00
      ptq-eval submit runs/my-model -o out --slurm --dry-run
      ptq-eval submit --slurm --retry-missing out --time 8:00:00
    """
    from ptq_eval.jobs.submit import retry
    from ptq_eval.jobs.submit import submit as submitted

    if settings["retry_missing"]:
        found = retry(_output(folders, out, settings), **{name: settings[name] for name in declared(SlurmConfig)})
    else:
        with Bar() as bar:
            found = submitted(folders, out, progress=bar, **settings)
    _say(found, settings["dry_run"])
    for problem in found.problems:
        click.echo(f"skipped: {problem}")
    raise_foremost(found.problems, sound=True)


def _output(folders: tuple[str, ...], out: str | None, settings: dict[str, Any]) -> str:
    """The output folder to look at.  Raises OptionError for options that the plan in it has fixed."""
    specs = declared(RunConfig)
    changed = [spec.flag or name for name, spec in specs.items() if settings[name] not in (spec.default, (), {})]
    if out is not None or len(folders) != 1 or changed:
        raise OptionError(
            "--retry-missing takes the output folder alone: the plan in it says what is to be measured",
            got=" ".join([*folders, *(["-o", out] if out else []), *changed]),
            remedy=f"ptq-eval submit --retry-missing {out or 'OUT'}",
        )
    return folders[0]


def _say(found: Submission, dry_run: bool) -> None:
    from ptq_eval.jobs.slurm import ARRAY, REPORT

    if found.folder is None:
        click.echo(f"Nothing is outstanding.  Tables and figures: ptq-eval report {_quoted(found.out)}")
        return
    array, report = found.folder / ARRAY, found.folder / REPORT
    if dry_run:
        for script in (array, report):
            click.echo(f"# {script}\n{script.read_text(encoding='utf-8')}")
        click.echo(f"# {found.count} checkpoints, nothing is submitted.  By hand:")
        click.echo(f"job=$(sbatch --parsable {_quoted(array)})")
        click.echo(f'sbatch --dependency=afterany:"$job" {_quoted(report)}')
        return
    click.echo(f"Submitted {found.count} checkpoints as SLURM job {found.job}" + _then(found.report))
    click.echo(f"Plan, scripts, logs: {found.folder}")
    click.echo(f"To watch them: squeue --job {found.job}, or ptq-eval serve {_quoted(found.out)}")
    click.echo(f"If any are lost: ptq-eval submit --retry-missing {_quoted(found.out)}")


def _then(report: str) -> str:
    return f"; tables and figures follow as job {report}" if report else ""


def _quoted(path: Path) -> str:
    return shlex.quote(str(path))
