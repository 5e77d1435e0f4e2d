"""`ptq-eval paper`: a LaTeX project from a finished output folder."""

from __future__ import annotations

from typing import Any

import click

from ptq_eval.cli import options as cli_options
from ptq_eval.config.paper import PaperConfig


@click.command(short_help="Write a finished output folder as a paper in LaTeX, and compile it.")
@click.argument("results")
@cli_options.out_option("Folder of the paper: new, empty, or written by this command.", required=True, metavar="PAPER")
@cli_options.options_of(PaperConfig)
def paper(results: str, out: str, **settings: Any) -> None:
    """Write the report in RESULTS, an output folder of `ptq-eval run`, as a LaTeX project: text, tables, figures.

    main.tex is yours: it is written once and never changed again.  generated/ has what depends on the results, all
    numbers as macros among it, and is written anew each time the command is repeated.  Without LaTeX the sources are
    left and the exit code is 56.

    \b
    Examples:
      ptq-eval paper out -o paper
      ptq-eval paper out -o paper --documentclass '[conference]{IEEEtran}'
      ptq-eval paper out -o paper --rename 'llama-160k=Ours, 160k'
      ptq-eval paper out -o paper --no-compile     (compile it elsewhere)
    """
    import ptq_eval
    from ptq_eval.jobs.paper import compiled
    from ptq_eval.report.paper.page import lines

    config = PaperConfig(**settings)
    found = ptq_eval.paper(results, out, **{**settings, "compile": False})
    for text in lines(found.written):
        click.echo(text)
    if config.compile:
        click.echo(f"Compiled: {compiled(found.written.folder)}")
