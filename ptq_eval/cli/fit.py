"""`ptq-eval fit`: fit the laws again, compare laws, or fit a law to a table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from ptq_eval.cli import options as cli_options
from ptq_eval.cli.console import Bar, console
from ptq_eval.errors import OptionError

EXAMPLES = """\b
Examples:
  ptq-eval fit out --bootstrap 2000
  ptq-eval fit out --laws kumar,ouyang,phase
  ptq-eval fit out --by bits
  ptq-eval fit out --test gamma_D=gamma_N
  ptq-eval fit --data runs.csv --law chinchilla --columns 'D=flop/(6*N)' -o o
  ptq-eval fit --data runs.csv --law chinchilla --loss log-huber -o o
  ptq-eval fit --data runs.csv --law chinchilla --intervals profile
  ptq-eval fit --data ptq.parquet --law ptq --columns 'P=b,delta=q-fp'
  ptq-eval fit --data ptq.jsonl --law chinchilla,ptq --fixed gamma_N=0.34
"""
LOSSES = ("huber", "squared", "lad", "log-huber", "log-squared", "log-lad")


def pairs(kind: Callable[[str], Any], flag: str, example: str) -> Callable[..., tuple[tuple[str, Any], ...]]:
    """A callback that reads `NAME=VALUE` texts; several may be joined by commas."""

    def read(_ctx: click.Context, _param: click.Parameter, values: Sequence[str]) -> tuple[tuple[str, Any], ...]:
        found = []
        for text in [part for value in values for part in value.split(",") if part.strip()]:
            name, _, value = (part.strip() for part in text.partition("="))
            try:
                if not name or not value:
                    raise ValueError
                found.append((name, kind(value)))
            except ValueError as error:
                raise OptionError(f"{flag} is not a pair", got=text, remedy=f"{flag} {example}") from error
        return tuple(found)

    return read


def _ends(text: str) -> tuple[float, float]:
    low, high = text.split(":")
    return float(low), float(high)


table_options = cli_options.together(
    click.option("--data", type=click.Path(), metavar="FILE", help="A .csv, .tsv, .parquet or .jsonl table to fit."),
    click.option("--law", default="", metavar="LAW,…", help="The law to fit to FILE; several are fitted separately."),
    click.option(
        "--columns",
        default="",
        metavar="V=EXPR,…",
        help="The column of each variable, or an expression of columns.",
    ),
    click.option("--where", default="", metavar="EXPR", help="Rows of FILE to use: a condition on its columns."),
    click.option(
        "--loss", default="huber", show_default=True, type=click.Choice(LOSSES), help="Loss function of the residuals."
    ),
    click.option(
        "--intervals",
        default="bootstrap",
        show_default=True,
        type=click.Choice(("bootstrap", "profile")),
        help="Intervals by bootstrap over runs, or by profile likelihood of independent points.",
    ),
    click.option("--huber-delta", type=float, metavar="X", help="Where Huber's loss turns linear, in its own unit."),
    click.option(
        "--fixed",
        multiple=True,
        callback=pairs(float, "--fixed", "gamma_N=0.34"),
        metavar="NAME=X",
        help="A constant to keep fixed; may be repeated.",
    ),
    click.option(
        "--tied",
        multiple=True,
        callback=pairs(str, "--tied", "alpha=beta"),
        metavar="NAME=NAME",
        help="Two constants that are equal; may be repeated.",
    ),
    click.option(
        "--bounds",
        multiple=True,
        callback=pairs(_ends, "--bounds", "alpha=0.1:0.9"),
        metavar="NAME=LOW:HIGH",
        help="Bounds instead of the law's own; may be repeated.",
    ),
    click.option(
        "--law-option",
        multiple=True,
        metavar="NAME=VALUE",
        help="An option of the law, such as offsets=false or parts=weights+kv.",
    ),
    click.option(
        "-o", "--out", "target", metavar="OUT", help="Folder for a table's results.  [default: FILE-fit, here]"
    ),
)
"""Options of a fit to a table; `--where`, `--columns` and the losses serve comparisons too."""

choice_options = cli_options.together(
    click.option("--laws", default="", metavar="LAW,…", help="Rank these laws on the same records."),
    click.option(
        "--by", default="", metavar="COLUMN", help="One fit for each value of a column, such as bits or quantizer."
    ),
    click.option(
        "--test",
        "tests",
        multiple=True,
        callback=pairs(str, "--test", "gamma_D=gamma_N"),
        metavar="NAME=NAME",
        help="Test whether two constants are equal; may be repeated.",
    ),
)


@click.command(epilog=EXAMPLES, short_help="Fit the laws again, compare laws, or fit a table of your own.")
@click.argument("out", required=False)
@choice_options
@table_options
@cli_options.fit_options
def fit(out: str | None, **options: Any) -> None:
    """Fit the laws again to the records in OUT, and write fit.json; or fit a law to the table FILE.

    With --laws or --test: rank laws on the same records by held-out error and by AICc, name the laws that the records
    cannot distinguish, and test tokens against the learning rate; writes comparison.md, comparison.json and a figure.
    Variables are N (parameters), D (tokens), P (bits; also `bits`), loss, delta, and any others that a law reads; `se`,
    `run`, `checkpoint`, `learning_rate` and `phase` are used if the table has them.  In --columns, put a name with
    spaces in backticks; a variable may use those before it.
    """
    data = options.pop("data")
    if out is None and data is None:
        raise click.UsageError("Missing argument 'OUT', a folder with records, or --data FILE, a table")
    if out is not None and data is not None:
        raise OptionError("fit takes a folder with records or a table, not both", got=f"{out} and {data}")
    if options["laws"] or options["tests"]:
        _compare(out, data, **options)
    elif data is not None:
        _fit_table(data, **options)
    else:
        _fit_again(str(out), **options)


def _compare(out: str | None, data: str | None, **options: Any) -> None:
    import ptq_eval
    from ptq_eval.report.comparison import page as comparison

    if any(options[name] for name in ("fixed", "tied", "bounds", "law_option")) or options["intervals"] != "bootstrap":
        flags = "--fixed, --tied, --bounds, --intervals and --law-option"
        raise OptionError(f"{flags} go with --law, not with a comparison")
    names = ("columns", "where", "by", "tests", "loss", "huber_delta", "seed", "bootstrap")
    laws = options["laws"] or options["law"]
    with Bar() as bar:
        found = ptq_eval.compare(data or str(out), laws, progress=bar, **{name: options[name] for name in names})
    console().print(comparison.Rendered(found))
    _say(comparison.write(_target(out, data, options), found), _target(out, data, options))


def _fit_table(data: str, **options: Any) -> None:
    import ptq_eval
    from ptq_eval.laws.catalogue import parse_options
    from ptq_eval.report.table_fit.page import Rendered

    if not options["law"]:
        raise OptionError("--data needs a law", remedy="--law chinchilla, or --laws kumar,ouyang to compare")
    names = ("columns", "where", "by", "loss", "huber_delta", "tied", "intervals", "seed", "bootstrap")
    given = {"fixed": dict(options["fixed"]), "bounds": dict(options["bounds"])}
    given["law_options"] = parse_options(options["law_option"])
    with Bar() as bar:
        found = ptq_eval.fit_data(
            data, options["law"], progress=bar, **given, **{name: options[name] for name in names}
        )
    console().print(Rendered(found.fit))
    _say(found.write(_target(None, data, options)), _target(None, data, options))


def _fit_again(out: str, *, seed: int, bootstrap: int, by: str, **options: Any) -> None:
    import ptq_eval
    from ptq_eval.api import analyse
    from ptq_eval.report import render_fit, write_fit
    from ptq_eval.results.load import load

    unused = next(
        (name for name in ("law", "columns", "where", "fixed", "tied", "bounds", "law_option") if options[name]), ""
    )
    changed = options["loss"] != "huber" or options["intervals"] != "bootstrap" or options["huber_delta"] is not None
    if unused or changed or options["target"]:
        flag = f"--{unused.replace('_', '-')}" if unused else "--loss, --huber-delta, --intervals and -o"
        raise OptionError(f"{flag} goes with --data", remedy="for other laws on records: ptq-eval fit OUT --laws LAW,…")
    with Bar() as bar:
        results = load(out)
        kept: dict[str, Any]
        if by:
            found = ptq_eval.fit_by(results, by, seed=seed, bootstrap=bootstrap, progress=bar)
            kept = {"name": f"fit-by-{by}.json"}
        else:
            result = analyse(results, seed=seed, bootstrap=bootstrap, progress=bar)
            found, kept = result.fit, {"replicates": result.replicates}
    console().print(render_fit(results.frame, found, results.run, results.points))
    click.echo(f"Written: {', '.join(map(str, write_fit(Path(out), found, **kept)))}")


def _target(out: str | None, data: str | None, options: dict[str, Any]) -> Path:
    if options["target"]:
        return Path(options["target"])
    return Path(out) if out is not None else Path(f"{Path(str(data)).name.split('.')[0]}-fit")


def _say(written: Sequence[Path], folder: Path) -> None:
    names = ", ".join(str(path.relative_to(folder)) for path in written)
    click.echo(f"Written to {folder}: {names}")
