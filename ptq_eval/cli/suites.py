"""`ptq-eval suites`: the public suites of checkpoints, and what a choice of one model's checkpoints takes to fetch."""

from __future__ import annotations

import json as json_lines
from typing import TYPE_CHECKING, Any

import click

from ptq_eval import units
from ptq_eval.checkpoints.overrides import Overrides
from ptq_eval.cli import options as cli_options
from ptq_eval.cli.console import console
from ptq_eval.config.commands import EventsConfig
from ptq_eval.errors import OptionError

if TYPE_CHECKING:
    from rich.table import Table

    from ptq_eval.checkpoints.catalogue import Entry


@click.command(short_help="List public suites of checkpoints, and what one model's checkpoints take to fetch.")
@click.argument("name", required=False)
@cli_options.options_of(Overrides, "checkpoint_count")
@cli_options.options_of(EventsConfig)
def suites(name: str | None, checkpoint_count: int | None, json: bool) -> None:
    """List the public suites of intermediate checkpoints, or the checkpoints of the model NAME on the hub.

    With --checkpoints, shows the revisions that `ptq-eval run suite:NAME` would measure, with D and download size.
    Offline (HF_HUB_OFFLINE=1), the revisions are those in the cache.

    \b
    Examples:
      ptq-eval suites
      ptq-eval suites pythia-70m --checkpoints 8
      ptq-eval run suite:pythia-70m --checkpoints 8 --prune
    """
    from ptq_eval.checkpoints import discover
    from ptq_eval.checkpoints.catalogue import download, entries, rows_of

    if name is None and checkpoint_count is not None:
        remedy = f"ptq-eval suites pythia-70m --checkpoints {checkpoint_count}"
        raise OptionError("--checkpoints is for the revisions of one model", got="no NAME", remedy=remedy)
    if name is None:
        found = entries()
        if json:
            for entry in found:
                click.echo(json_lines.dumps(entry.to_dict()))
        else:
            console().print(_listing(found))
        return
    root = name if ":" in name else f"suite:{name}"
    checkpoints = discover([root], overrides={"checkpoint_count": checkpoint_count})
    sizes = download(checkpoints) if checkpoint_count is not None else None
    if json:
        for row in rows_of(checkpoints, sizes):
            click.echo(json_lines.dumps(row))
        return
    console().print(_choice(rows_of(checkpoints, sizes), sized=sizes is not None))
    if sizes is not None:
        click.echo(f"To fetch: {_size(sizes.total)}, files that revisions share counted once.")


def _listing(found: list[Entry]) -> Table:
    from rich.table import Table

    table = Table("suite", "example", "sizes", "D", "last D/N", "D from", "status", "schedule")
    for entry in found:
        suite = entry.suite
        own = entry.rule, suite.status.value, suite.schedule or "?"
        table.add_row(suite.name, f"suite:{entry.model}", *entry.cells(), *own)
    return table


def _choice(rows: list[dict[str, Any]], *, sized: bool) -> Table:
    from rich.table import Table

    table = Table("revision", "D", "D/N, nominal", *(["download"] if sized else []), "D from")
    for row in rows:
        ratio, tokens = row["nominal_tokens_per_param"], row["tokens"]
        own = [_size(row["bytes"])] if sized else []
        table.add_row(
            row["revision"],
            units.write(tokens, digits=4) if tokens is not None else "?",
            f"{ratio:,.3g}" if ratio is not None else "?",
            *own,
            row["tokens_note"],
        )
    return table


def _size(size: int | None) -> str:
    return units.write(size, units.BYTES) if size is not None else "unknown"
