"""`ptq-eval sensitivity`: the damage of each layer, predicted and measured."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import click

from ptq_eval.cli import options as cli_options
from ptq_eval.cli.console import Bar, console, leave
from ptq_eval.config.run import RunConfig
from ptq_eval.config.study import SensitivityConfig
from ptq_eval.errors import NothingToFitError


@click.command(short_help="Damage per layer: predicted from noise and curvature, and measured.")
@click.argument("folders", nargs=-1, required=True)
@cli_options.out_option("Output folder; may be one of `ptq-eval run`.", required=True)
@cli_options.options_of(RunConfig, *cli_options.GRID, *cli_options.TEXTS, quantizers=("rtn",))
@cli_options.options_of(SensitivityConfig)
@cli_options.device_option
@cli_options.trajectory_options
@cli_options.trust_option
def sensitivity(folders: tuple[str, ...], out: str, **settings: Any) -> None:
    """Quantize the layers of checkpoints under FOLDERS one at a time, and predict what that costs.

    The prediction assumes uniform rounding noise and uses the Fisher information of the calibration text.  Writes
    sensitivity.json, .csv and .md and figures; where OUT is an output folder of `ptq-eval run`, its report.md includes
    them.  With --by part, embedding, head, attention and MLP are quantized one at a time, and all together, with what
    each part saves, into parts.json, .csv and .md.  With --budget, each layer gets a format of its own, and the mixed
    model is measured, into mixed.json, .csv and .md, with a plan for `run --mixed` and `export --mixed`.  Repeat the
    command to resume an interrupted job.

    \b
    Examples:
      ptq-eval sensitivity runs/my-model -o out --steps first,last
      ptq-eval sensitivity runs/my-model/checkpoint-1000 -o out --bits 3,4
      ptq-eval sensitivity runs/my-model -o out --steps last --by part
      ptq-eval sensitivity runs/my-model -o out --budget 3.5bits,60MB
    """
    from ptq_eval.checkpoints import Overrides
    from ptq_eval.jobs.sensitivity import sensitivity as study
    from ptq_eval.report.mixed import page as mixed
    from ptq_eval.report.parts import page as parts
    from ptq_eval.report.sensitivity.page import render

    corrections = Overrides.take(settings)
    with Bar() as bar:
        record, problems = study(folders, out, overrides=corrections, progress=bar, **settings)
    if settings["by"] == "part":
        console().print(parts.render(record))
        click.echo(f"Written to {out}: {parts.FILES}")
        leave(problems)
        return
    page = _page(Path(out))
    console().print(render(record))
    click.echo(f"Written to {out}: sensitivity.json, sensitivity.csv, sensitivity.md, figures/{page}")
    if settings["budget"] and (plans := mixed.read(Path(out))):
        console().print(mixed.render(plans))
        click.echo(f"Written to {out}: {mixed.FILES}")
    leave(problems)


def _page(out: Path) -> str:
    """Write the report of an output folder of `run` again; what to add to the list of files."""
    from ptq_eval.report import renew_page
    from ptq_eval.results.load import load

    with suppress(NothingToFitError):  # OUT is of this study alone, or nothing is measured there yet
        return "".join(f", {path.name}" for path in renew_page(load(out)))
    return ""
