"""`ptq-eval work`: the process that measures jobs for `--jobs`, SLURM and Ray."""

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
@click.argument("files", nargs=-1)
def work(out: str, shard: str, name: str, files: tuple[str, ...]) -> None:
    """Measure jobs into the records of OUT: those of FILES, or of files whose names come in on standard input.

    Answers to names on standard input are JSON on standard output.  With FILES an error is a line and an exit code.
    """
    from ptq_eval.jobs.files import error_from_dict
    from ptq_eval.jobs.process import work as worked

    index, _, count = shard.partition("/")
    own = Path(out), (int(index), int(count)), name
    if files:
        errors: list[dict[str, Any]] = []
        worked(files, *own, lambda answer: errors.append(answer["error"]) if answer.get("error") else None)
        if errors:
            raise error_from_dict(errors[0])
        click.echo("done")
        return
    lines = (line.rstrip("\n") for line in sys.stdin)
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as answers:
        os.dup2(2, 1)  # what a plug-in prints must not come between the answers

        def say(answer: dict[str, Any]) -> None:
            print(json.dumps(answer), file=answers, flush=True)

        worked(lines, *own, say)
