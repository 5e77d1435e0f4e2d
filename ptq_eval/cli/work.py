"""`ptq-eval work`: the process behind `--jobs`, which reads names of job files and answers with JSON."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

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
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as answers:
        os.dup2(2, 1)  # what a plug-in prints must not come between the answers

        def say(answer: dict[str, Any]) -> None:
            print(json.dumps(answer), file=answers, flush=True)

        worked(lines, Path(out), (int(index), int(count)), name, say)
