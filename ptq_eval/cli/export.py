"""`ptq-eval export`: the quantized model that is measured, as files that other libraries load."""

from __future__ import annotations

from typing import Any

import click

from ptq_eval.cli import options as cli_options
from ptq_eval.cli.console import Bar
from ptq_eval.config.export import ExportConfig
from ptq_eval.config.options import declared
from ptq_eval.config.run import RunConfig

_GRID = tuple(name for name in cli_options.GRID if name not in ("quantizers", "bits", "formats"))


@click.command(short_help="Write a quantized checkpoint in a format that other libraries load.")
@click.argument("checkpoint")
@cli_options.out_option("Folder to write, new or empty.", metavar="DIR", required=True)
@cli_options.options_of(ExportConfig)
@cli_options.options_of(RunConfig, *_GRID, *cli_options.TEXTS)
@cli_options.device_option
@cli_options.options_of(RunConfig, "dtype", "memory")
@cli_options.trajectory_options
@cli_options.trust_option
def export(checkpoint: str, out: str, **settings: Any) -> None:
    """Quantize CHECKPOINT, measure its loss, and write what was measured as files that other libraries load.

    DIR gets the packed weights, the configuration and tokenizer, recipe.json with everything that was done and
    measured, and a model card.  The files are read back, and loaded where the libraries for the format are installed.

    \b
    Examples:
      ptq-eval export runs/my-model/checkpoint-1000 -o my-4bit --symmetric
      ptq-eval export runs/m/checkpoint-98 -o out --quantizer awq --format awq
      ptq-eval export runs/m/98 -o out --number-format q4_k --format gguf
      ptq-eval export runs/m/98 -o out --number-format nvfp4 --format fake
      ptq-eval export runs/m/98 -o out --mixed plan.json
    """
    from ptq_eval.checkpoints import Overrides
    from ptq_eval.jobs.export import export as write
    from ptq_eval.report.export.page import lines

    config = ExportConfig(**{name: settings.pop(name) for name in declared(ExportConfig)})
    settings |= {"overrides": Overrides.take(settings), "file_format": config.file_format, **config.grid()}
    with Bar() as bar:
        recipe = write(checkpoint, out, progress=bar, **settings)
    for line in lines(recipe):
        click.echo(line)
    click.echo(f"Written to {out}: weights, config.json, recipe.json, README.md")
