"""`ptq-eval adapt`: low-rank adapters on quantized bases."""

from __future__ import annotations

from typing import Any

import click

from ptq_eval.cli import options as cli_options
from ptq_eval.cli.console import Bar, complain, console, leave
from ptq_eval.config.adapt import AdaptConfig
from ptq_eval.config.run import RunConfig

_GRID = ("quantizers", "group_size", "symmetric", "calibration", "options", "include_head")


@click.command(short_help="Train LoRA adapters on a checkpoint quantized to several widths.")
@click.argument("checkpoint", required=False)
@cli_options.out_option("Output folder.  [default: CHECKPOINT-adapted, here]")
@cli_options.options_of(AdaptConfig)
@cli_options.options_of(RunConfig, *_GRID, *cli_options.TEXTS, quantizers=("rtn",))
@cli_options.device_option
@cli_options.trajectory_options
@cli_options.trust_option
def adapt(checkpoint: str | None, out: str | None, **settings: Any) -> None:
    """Train low-rank adapters (LoRA, of the package peft) on CHECKPOINT quantized to several widths.

    CHECKPOINT is a folder or hub:ORG/NAME; by default it is the last of the embedded llama-160k.  Each base and seed is
    one run; the base's weights are quantized once and fixed.  Writes a metrics file per run, with loss, perplexity,
    norm and variance of the gradient after each epoch, and tables, figures and a page over all runs.  Repeat the
    command to resume an interrupted job, or with further bits, seeds or quantizers.

    \b
    Examples:
      ptq-eval adapt runs/my-model/checkpoint-1000 -o out
      ptq-eval adapt hub:microsoft/DialoGPT-medium --bits 8,4 --train-text my.txt
      ptq-eval adapt --quantizers rtn,gptq --bits 4,3,2 --seeds 0,1,2
      ptq-eval adapt --quantizers bitsandbytes:nf4,bitsandbytes:int8 --bits 8
    """
    from ptq_eval.checkpoints import Overrides
    from ptq_eval.jobs.adapt import SUFFIX, root_of
    from ptq_eval.jobs.adapt import adapt as job
    from ptq_eval.jobs.run import default_output
    from ptq_eval.report.adapt import page, words

    corrections = Overrides.take(settings)
    with Bar() as bar:
        record, problems = job(checkpoint, out, overrides=corrections, progress=bar, **settings)
    console().print(page.render(record))
    for caution in words.cautions(record):
        complain(caution.strip("*.\n"), 0)
    click.echo(f"Written to {out or default_output(root_of(checkpoint), SUFFIX)}: {page.NAMES}")
    leave(problems)
