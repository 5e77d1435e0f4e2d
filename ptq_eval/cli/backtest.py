"""`ptq-eval backtest`: what would have been forecast at each earlier checkpoint, and what happened."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from ptq_eval.cli import options as cli_options
from ptq_eval.cli.console import Bar, console
from ptq_eval.config.study import FEWEST_TO_TEST, BacktestConfig
from ptq_eval.errors import NothingToFitError


@click.command(short_help="Compare forecasts from earlier checkpoints with what was measured later.")
@click.argument("out")
@cli_options.options_of(BacktestConfig)
def backtest(out: str, **settings: Any) -> None:
    """Repeat the forecast at every earlier checkpoint in OUT, and compare it with what was measured later.

    Reads the records of `ptq-eval run`.  Forecasts the loss after quantization, δ and D_crit, and scores three
    baselines in the same way.  Writes backtest.json with one row per statement, backtest.md, a fan chart for every run,
    and a section of report.md.

    \b
    Examples:
      ptq-eval backtest out
      ptq-eval backtest out --level 0.8 --min-checkpoints 6
    """
    from ptq_eval.laws.forecast import backtest as laws
    from ptq_eval.laws.forecast.series import series_of
    from ptq_eval.report import renew_page
    from ptq_eval.report.backtest import page
    from ptq_eval.results.load import load

    config = BacktestConfig(**settings)
    results = load(out)
    series = series_of(results.points, results.windows, page.labels_of(results))
    tested = laws.long_enough(series, config.min_checkpoints)
    if not tested:
        most = max((len(s.tokens) for s in series), default=0)
        raise NothingToFitError(
            "too few checkpoints to hold forecasts against",
            got=f"at most {most} of one run with a delta at known tokens",
            allowed=f"{config.min_checkpoints} or more",
            remedy=f"measure more checkpoints, or lower --min-checkpoints (at least {FEWEST_TO_TEST})",
        )
    with Bar() as bar:
        statements = laws.backtest(
            tested, **asdict(config), progress=lambda done, total: bar("forecasting", done, total)
        )
    settings = {**asdict(config), "records": results.digest}
    test = page.Backtest(tested, statements, settings)
    written = page.write(Path(out), test)
    renew_page(results)
    console().print(page.render(test))
    click.echo(f"Written to {out}: backtest.json, backtest.md, figures/fan_*: {len(written)} files")
