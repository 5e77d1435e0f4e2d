"""`ptq-eval serve`: the page of an output folder, live while a run goes on."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import click

from ptq_eval.cli import options as cli_options
from ptq_eval.config.commands import ServeConfig


@click.command(short_help="Show a running or finished grid as a page that refreshes itself.")
@click.argument("out")
@cli_options.options_of(ServeConfig)
def serve(out: str, **settings: Any) -> None:
    """Show the output folder OUT as a page in the browser, which refreshes itself as measurements arrive.

    For this machine alone (127.0.0.1), and read-only.  The page says how many measurements of each checkpoint are made
    and how many are planned; figures and tables hold what there is so far, the answer follows when the run ends.  A
    finished folder is shown too; `report.html` is the same without a server.  Ctrl-C ends it.

    \b
    Examples:
      ptq-eval serve out
      ptq-eval serve out --port 8000   (then ssh -L 8000:localhost:8000 HOST)
    """
    from ptq_eval.cli.server import bind
    from ptq_eval.report.web.live import Folder

    config = ServeConfig(**settings)
    with bind(Folder(out), config.port) as server:
        click.echo(f"Showing {out} at http://{server.server_address[0]}:{server.server_address[1]}/ (Ctrl-C ends it)")
        with suppress(KeyboardInterrupt):
            server.serve_forever()
    click.echo("Ended; nothing was changed.")
