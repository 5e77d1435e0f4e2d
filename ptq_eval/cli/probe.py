"""`ptq-eval probe`: how a run should end, from branches and averages that are measured at equal data."""

from __future__ import annotations

from typing import Any

import click

from ptq_eval.cli import options as cli_options
from ptq_eval.cli.console import Bar, console, leave
from ptq_eval.config.endings import ProbeConfig
from ptq_eval.config.run import RunConfig


@click.command(short_help="Try ways to end a run from a checkpoint, at equal data.")
@click.argument("checkpoint")
@cli_options.out_option("Output folder.", required=True)
@cli_options.options_of(ProbeConfig)
@cli_options.options_of(RunConfig, *cli_options.GRID, *cli_options.TEXTS)
@cli_options.device_option
@cli_options.options_of(RunConfig, "memory")
def probe(checkpoint: str, out: str, **settings: Any) -> None:
    """Train short branches from CHECKPOINT, take averages, and measure all of them beside the trunk at the same D.

    CHECKPOINT is RUN/trunk/checkpoint-STEP of a run of `ptq-eval pretrain` that kept the state of its optimizer there:
    the last step of a run, and every one with --states.  decay:10% trains on while the learning rate falls to zero, so
    that the branch is the last 10 % of its D; qat:10%@4 trains on with weights rounded to 4 bits; decay+qat:10%@4 does
    both; average:8 is the mean of the last 8 checkpoints; ema:0.999 and lawa:8 are averages that the run saved.  The
    trunk is trained on to the end of each branch, and compared with it there.  Writes probe.json, .csv and .md and a
    figure.  Repeat the command to resume an interrupted job, or with further branches.

    \b
    Examples:
      ptq-eval probe trunk/checkpoint-800 -o out --branch decay:10%,average:4
      ptq-eval probe trunk/checkpoint-800 -o out --branch decay+qat:10%@4 --bits 4
    """
    import ptq_eval
    from ptq_eval.jobs.probe import PROBE
    from ptq_eval.report.endings import page

    with Bar() as bar:
        record, problems = ptq_eval.probe(checkpoint, out, progress=bar, **settings)
    console().print(page.render(record))
    click.echo(f"Written to {out}: {page.files_of(PROBE)}")
    leave(problems)
