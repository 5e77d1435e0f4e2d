"""`ptq-eval average`: which average of a trajectory's last checkpoints loses least when it is quantized."""

from __future__ import annotations

from typing import Any

import click

from ptq_eval.cli import options as cli_options
from ptq_eval.cli.console import Bar, console, leave
from ptq_eval.config.endings import AVERAGE, AverageConfig
from ptq_eval.config.run import RunConfig


@click.command(short_help="Measure averages of the last checkpoints before and after quantization.")
@click.argument("folders", nargs=-1, required=True)
@cli_options.out_option("Output folder.  [default: FOLDER-average, here]")
@cli_options.options_of(AverageConfig)
@cli_options.options_of(RunConfig, *cli_options.GRID, *cli_options.TEXTS)
@cli_options.device_option
@cli_options.options_of(RunConfig, "memory")
@cli_options.trajectory_options
@cli_options.trust_option
def average(folders: tuple[str, ...], out: str | None, **settings: Any) -> None:
    """Average the weights of the last checkpoints of each run under FOLDERS, and measure each average.

    Says which average has the least loss after quantization for each quantizer and bit-width, and whether it differs
    from the last checkpoint.  Any format of checkpoints that is read; one average is on the disk at a time.  Writes
    average.json, .csv and .md and a figure.  Repeat the command to resume an interrupted job.

    \b
    Examples:
      ptq-eval average runs/my-model -o out
      ptq-eval average runs/m -o out --windows 2,4,8 --quantizers gptq --bits 3
      ptq-eval average runs/my-model -o out --steps 1000,2000 --keep
    """
    import ptq_eval
    from ptq_eval.jobs.run import default_output
    from ptq_eval.report.endings import page

    with Bar() as bar:
        record, problems = ptq_eval.average(folders, out, progress=bar, **settings)
    console().print(page.render(record))
    click.echo(f"Written to {out or default_output(folders[0], AVERAGE)}: {page.files_of(AVERAGE)}")
    leave(problems)
