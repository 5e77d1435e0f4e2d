"""`ptq-eval work`: the process behind `--jobs`, which reads names of job files and answers with JSON."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click


@click.command(hidden=True)
@click.argument("out")
@click.argument("shard")
@click.argument("name")
def work(out: str, shard: str, name: str) -> None:
    """Measure the jobs whose files come in on standard input, one per line, into the records of OUT."""
    from ptq_eval.jobs.process import work as worked

    index, _, count = shard.partition("/")
    lines = (line.rstrip("\n") for line in sys.stdin)
    worked(lines, Path(out), (int(index), int(count)), name, lambda answer: click.echo(json.dumps(answer)))
