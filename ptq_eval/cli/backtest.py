"""The command that asks what would have been stated earlier, and what happened."""

from __future__ import annotations

from pathlib import Path

import click

from ptq_eval.cli.console import Bar, console
from ptq_eval.errors import NothingToFitError


@click.command(short_help="Forecast each run from its earlier checkpoints, against what was measured.")
@click.argument("out")
@click.option(
    "--level",
    default=0.9,
    show_default=True,
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    metavar="P",
    help="Level of the intervals.",
)
@click.option(
    "--min-checkpoints",
    default=8,
    show_default=True,
    type=click.IntRange(min=5),
    metavar="N",
    help="Checkpoints that a run has at least.",
)
@click.option(
    "--horizon",
    default=16.0,
    show_default=True,
    type=click.FloatRange(1, 1e6, min_open=True),
    metavar="X",
    help="D_crit is searched up to X times the D of the origin, and open beyond.",
)
@click.option("--seed", default=0, show_default=True, type=click.IntRange(min=0), metavar="N", help="Of the draws.")
def backtest(out: str, level: float, min_checkpoints: int, horizon: float, seed: int) -> None:
    """Ask at every earlier checkpoint in OUT what would have been forecast, and compare with what was measured.

    Reads the records of `ptq-eval run`.  Forecast are the loss after quantization, δ, and D_crit; three baselines are
    judged by the same statements.  Writes backtest.json with one row per statement, backtest.md, a fan chart of every
    run, and a section of report.md.

    \b
    Examples:
      ptq-eval backtest out
      ptq-eval backtest out --level 0.8 --min-checkpoints 6
    """
    from ptq_eval.laws.forecast import backtest as laws
    from ptq_eval.laws.forecast.series import series_of
    from ptq_eval.report.backtest import page, section
    from ptq_eval.results.load import load

    results = load(out)
    series = series_of(results.points, results.windows, page.labels_of(results))
    tested = laws.long_enough(series, min_checkpoints)
    if not tested:
        most = max((len(s.tokens) for s in series), default=0)
        raise NothingToFitError(
            "too few checkpoints to hold forecasts against",
            got=f"at most {most} of one run with a delta at known tokens",
            allowed=f"{min_checkpoints} or more",
            remedy="measure more checkpoints, or lower --min-checkpoints (at least 5)",
        )
    with Bar() as bar:
        statements = laws.backtest(
            tested,
            level=level,
            min_checkpoints=min_checkpoints,
            horizon=horizon,
            seed=seed,
            progress=lambda done, total: bar("forecasting", done, total),
        )
    asked = {"level": level, "min_checkpoints": min_checkpoints, "horizon": horizon, "seed": seed}
    settings = {**asked, "records": results.digest}
    test = page.Backtest(tested, statements, settings)
    written = page.write(Path(out), test)
    section.embed(Path(out), section.read(Path(out)) or {})
    console().print(page.render(test))
    click.echo(f"Written to {out}: backtest.json, backtest.md, figures/fan_*: {len(written)} files")
