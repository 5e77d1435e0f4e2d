"""`ptq-eval fit`: fit the laws again, compare laws, or fit a law to a table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from ptq_eval.cli import options as cli_options
from ptq_eval.cli.console import Bar, console
from ptq_eval.config.commands import TableConfig
from ptq_eval.config.fit import ONE_LAW, TABLE, FitConfig
from ptq_eval.config.options import declared
from ptq_eval.errors import OptionError

EXAMPLES = """\b
Examples:
  ptq-eval fit out --bootstrap 2000
  ptq-eval fit out --laws kumar,ouyang,phase
  ptq-eval fit out --by bits
  ptq-eval fit out --bits-axis gaussian
  ptq-eval fit out --test gamma_D=gamma_N
  ptq-eval fit --data runs.csv --law chinchilla --columns 'D=flop/(6*N)' -o o
  ptq-eval fit --data runs.csv --law chinchilla --loss log-huber -o o
  ptq-eval fit --data runs.csv --law chinchilla --intervals profile
  ptq-eval fit --data runs.csv --formula 'E + A*N**-alpha + B*D**-beta' -o o
  ptq-eval fit --data runs.json --law chinchilla --per-category format
  ptq-eval fit --data ptq.parquet --law ptq --columns 'P=b,delta=q-fp'
  ptq-eval fit --data ptq.jsonl --law chinchilla,ptq --fixed gamma_N=0.34
"""
HAND = ("seed", "bootstrap")
"""Options that `run` has as well, with its defaults."""

table_options = cli_options.together(
    cli_options.options_of(TableConfig),
    cli_options.options_of(FitConfig, *(n for n, o in declared(FitConfig).items() if o.flag and n not in HAND)),
    cli_options.out_option("Folder for a table's results.  [default: FILE-fit, here]", name="target"),
)


@click.command(epilog=EXAMPLES, short_help="Fit the laws again, compare laws, or fit a table of your own.")
@click.argument("out", required=False)
@table_options
@cli_options.fit_options
def fit(out: str | None, **options: Any) -> None:
    """Fit the laws again to the records in OUT, and write fit.json; or fit a law to the table FILE.

    With --laws or --test: rank laws on the same records by held-out error and by AICc, name the laws that the records
    cannot distinguish, and test tokens against the learning rate; writes comparison.md, comparison.json and a figure.
    Variables are N (parameters), D (tokens), P (bits; also `bits`), loss, delta, and any others that a law reads; `se`,
    `run`, `checkpoint`, `learning_rate` and `phase` are used if the table has them.  In --columns, put a name with
    spaces in backticks; an expression may use variables defined before it.
    """
    data, target = options.pop("data"), options.pop("target")
    if out is None and data is None:
        raise click.UsageError("Missing argument 'OUT', a folder with records, or --data FILE, a table")
    if out is not None and data is not None:
        raise OptionError("fit takes a folder with records or a table, not both", got=f"{out} and {data}")
    config = FitConfig.of(options)
    if config.laws or config.tests:
        _compare(out, data, target, config)
    elif data is not None:
        _fit_table(data, target, config)
    else:
        _fit_again(str(out), target, config)


def _compare(out: str | None, data: str | None, target: str | None, config: FitConfig) -> None:
    import ptq_eval
    from ptq_eval.report import renew_page
    from ptq_eval.report.comparison import page as comparison
    from ptq_eval.results.load import load

    options = {**config.given(), "law": ""}
    laws = options.pop("laws") or config.law
    with Bar() as bar:
        found = ptq_eval.compare_laws(data or str(out), laws, progress=bar, **options)
    folder = _target(out, data, target)
    written = comparison.write(folder, found)
    if found["records"] and out is not None and folder == Path(out):
        written += renew_page(load(out))
    console().print(comparison.Rendered(found))
    _say(written, folder)


def _fit_table(data: str, target: str | None, config: FitConfig) -> None:
    import ptq_eval
    from ptq_eval.report.table_fit.page import Rendered

    if not config.law and not config.formula:
        raise OptionError(
            "--data needs a law", remedy="--law chinchilla, --formula EXPR, or --laws kumar,ouyang to compare"
        )
    with Bar() as bar:
        found = ptq_eval.fit_data(data, progress=bar, **config.given())
    console().print(Rendered(found.fit))
    _say(found.write(_target(None, data, target)), _target(None, data, target))


def _fit_again(out: str, target: str | None, config: FitConfig) -> None:
    import ptq_eval
    from ptq_eval.jobs.run import analyse
    from ptq_eval.report import render_fit, write_fit
    from ptq_eval.results.load import load

    foreign = [*config.changed(*TABLE, *ONE_LAW, "loss", "huber_delta"), *(["-o"] if target else [])]
    if foreign:
        remedy = "for other laws on records: ptq-eval fit OUT --laws LAW,…"
        raise OptionError(f"{', '.join(foreign)}: only with --data", remedy=remedy)
    with Bar() as bar:
        results = load(out, config.bits_axis)
        common: dict[str, Any] = {"seed": config.seed, "bootstrap": config.bootstrap}
        kept: dict[str, Any]
        if config.by:
            found = ptq_eval.fit_by(results, config.by, **common, progress=bar)
            kept = {"name": f"fit-by-{config.by}.json"}
        else:
            result = analyse(results, **common, progress=bar)
            found = result.fit
            kept = {"replicates": result.replicates}
    console().print(render_fit(results.frame, found, results.run, results.points))
    click.echo(f"Written: {', '.join(map(str, write_fit(Path(out), found, **kept)))}")


def _target(out: str | None, data: str | None, target: str | None) -> Path:
    if target:
        return Path(target)
    return Path(out) if out is not None else Path(f"{Path(str(data)).name.split('.')[0]}-fit")


def _say(written: Sequence[Path], folder: Path) -> None:
    names = ", ".join(str(path.relative_to(folder)) for path in written)
    click.echo(f"Written to {folder}: {names}")
