"""`ptq-eval compare`: is a new result worse than an old one?  The gate for a change of a quantizer."""

from __future__ import annotations

import os
from typing import Any

import click

from ptq_eval.cli import options as cli_options
from ptq_eval.cli.console import console
from ptq_eval.config.gate import GateConfig, GateFiles
from ptq_eval.errors import DataFileError, OptionError

USAGE = 64
"""Exit code of a wrong command line, which is 2 elsewhere: 1 to 3 are verdicts here."""


class _Gate(click.Command):
    """A command whose exit codes 1 to 3 are verdicts and nothing else."""

    def make_context(self, *args: Any, **more: Any) -> click.Context:
        try:
            return super().make_context(*args, **more)
        except (click.UsageError, OptionError) as error:
            error.exit_code = USAGE  # type: ignore[misc]
            raise

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (click.UsageError, OptionError) as error:
            error.exit_code = USAGE  # type: ignore[misc]
            raise
        except OSError as error:
            raise DataFileError("a file cannot be read or written", got=error) from error


@click.command(cls=_Gate, short_help="Is a new result worse than an old one? Exit code 1 if so.")
@click.argument("base")
@click.argument("new")
@cli_options.options_of(GateConfig)
@cli_options.options_of(GateFiles)
def compare(base: str, new: str, **settings: Any) -> int:
    """Compare the results NEW with the results BASE, cell by cell and window by window.

    Each is an output folder of `ptq-eval run`, REVISION:FOLDER for one stored in git, or a folder of lm-eval with
    samples (--log_samples), which are compared document by document.  A cell is a checkpoint with a quantizer, its
    options and scheme.  It is worse if its loss after quantization rose by more than the tolerance and by more than
    chance explains, with control over all cells.  Also says which worsening could have been seen, and how many windows
    would show twice the tolerance.

    Exit code: 0 not worse; 1 worse; 2 not comparable (weights, windows or calibration differ); 3 cells of BASE are
    missing; the lowest that applies.  A wrong command line is 64, other problems are in the table of exit codes.

    \b
    Examples:
      ptq-eval compare base-out new-out
      ptq-eval compare main:results/embedded results/embedded --tolerance 0.02
      ptq-eval compare base-out new-out --summary --junit gate.xml
      ptq-eval compare lm-eval/base lm-eval/new --tolerance 0.01
    """
    import ptq_eval
    from ptq_eval.report.gate.files import SUMMARY, write
    from ptq_eval.report.gate.page import Rendered

    files = GateFiles(**{name: settings.pop(name) for name in GateFiles.__dataclass_fields__})
    if files.summary and not os.environ.get(SUMMARY):
        raise OptionError(f"--summary needs the variable {SUMMARY}", remedy="--markdown FILE")
    found = ptq_eval.compare(base, new, **settings)
    console().print(Rendered(found))
    if written := write(found, files):
        click.echo(f"Written: {', '.join(map(str, written))}")
    return found.verdict.exit_code
