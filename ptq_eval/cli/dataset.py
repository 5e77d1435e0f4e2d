"""`ptq-eval dataset`: the results of a run for pandas, polars, DuckDB, SQLite, lm-eval and the Hugging Face hub."""

from __future__ import annotations

import click

from ptq_eval.cli import options as cli_options


@click.command(short_help="Write results as Parquet, SQLite, lm-eval's format and a dataset card.")
@click.argument("results")
@cli_options.out_option("Folder of the data.", required=True, metavar="DATA")
def dataset(results: str, out: str) -> None:
    """Write the results in RESULTS, an output folder of `ptq-eval run`, as data that other programs read.

    degradation.parquet has a row per cell, windows.parquet one per window of every measurement; results.sqlite has
    both; lm-eval/ has a folder per model as lm-eval writes it, samples included; README.md is a card for the Hugging
    Face hub.

    \b
    Example:
      ptq-eval dataset out -o data
    """
    import ptq_eval

    written = ptq_eval.dataset(results, out)
    click.echo(f"Written: {len(written)} files below {out}")
