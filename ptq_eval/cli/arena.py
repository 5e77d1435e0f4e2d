"""`ptq-eval arena`: every law on every table, scored by what it says of points that were held out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ptq_eval.cli import options as cli_options
from ptq_eval.cli.console import Bar, console
from ptq_eval.config.arena import ArenaConfig
from ptq_eval.config.fit import TABLE, FitConfig


@click.command(short_help="Score every law on every table by points that were held out.")
@click.argument("tables_", metavar="TABLE...", nargs=-1, required=True)
@cli_options.out_option("Output folder.  [default: arena, here]")
@cli_options.options_of(ArenaConfig)
@cli_options.options_of(FitConfig, *TABLE)
def arena(tables_: tuple[str, ...], out: str | None, **settings: Any) -> None:
    """Fit every law in the catalogue to every TABLE, and score what it says of points that were held out.

    A TABLE is an output folder of `ptq-eval run` or a table that `ptq-eval fit` reads, as PATH or NAME=PATH.
    Held out are the largest D of each run, the largest N, and each bit-width in turn.  Scores have standard errors over
    runs; a law is called worse than the best only where a paired test over runs says so, with control over all pairs.
    What a table cannot tell is called not identified, with the quantity that lacks variation.  Two baselines are
    scored too: δ stays as it is, and a power of D and N per bit-width.  Writes arena.md, arena.json, arena.csv and a
    figure.

    \b
    Examples:
      ptq-eval arena out
      ptq-eval arena out runs=runs.csv --columns D=tokens,delta=q-fp -o o
      ptq-eval arena ptq.csv --by quantizer,group_size --where 'bits <= 4'
      ptq-eval arena a=a.csv b=b.parquet --tables tables.toml -o o
      ptq-eval arena out --laws kumar,ouyang
    """
    import ptq_eval
    from ptq_eval.report.arena import page

    with Bar() as bar:
        found = ptq_eval.arena(tables_, progress=bar, **settings)
    folder = Path(out or page.NAME)
    written = page.write(folder, found)
    console().print(page.render(found))
    click.echo(f"Written to {folder}: {', '.join(str(path.relative_to(folder)) for path in written)}")
