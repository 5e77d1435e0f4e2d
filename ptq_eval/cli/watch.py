"""`ptq-eval watch`: measure the checkpoints of a run that is still training."""

from __future__ import annotations

import shutil
import subprocess
import sys
from contextlib import nullcontext, redirect_stdout, suppress
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ptq_eval.checkpoints.overrides import Overrides
from ptq_eval.cli import options as cli_options
from ptq_eval.cli.console import Bar, complain
from ptq_eval.config.commands import EventsConfig
from ptq_eval.config.run import RunConfig
from ptq_eval.config.watch import MEANINGLESS, WatchConfig

if TYPE_CHECKING:
    from ptq_eval.jobs.events import Event

_COMMAND_SECONDS = 60


@click.command(short_help="Measure the checkpoints of a run that is still training, as they appear.")
@click.argument("folders", nargs=-1, required=True)
@cli_options.out_option("Output folder.  [default: FOLDER-ptq, here]")
@cli_options.options_of(WatchConfig)
@cli_options.options_of(EventsConfig)
@cli_options.options_of(RunConfig, without=MEANINGLESS)
@cli_options.options_of(Overrides, without=("checkpoint_count",))
@click.option("--copies", is_flag=True, hidden=True, help="The folder holds copies: delete each once measured.")
def watch(folders: tuple[str, ...], out: str | None, json: bool, copies: bool, **settings: Any) -> None:
    """Measure checkpoints under FOLDERS as they appear, forecast D_crit anew, and alert when it is near.

    Checkpoints that are still being written wait until they are complete.  Of several, the newest is measured first.
    Everything is stored as by `ptq-eval run`, with report.md and figures renewed each time, so the same command goes on
    from there.  An existing FOLDER is caught up with, one that does not exist yet is waited for.  The watch ends with
    Ctrl-C, or when FOLDER has a file `.training-ended` and all is measured.

    \b
    Examples:
      ptq-eval watch runs/my-model -o out --quantizers gptq --bits 4
      ptq-eval watch runs/my-model -o out --alert-command 'notify-send ptq-eval'
      ptq-eval watch runs/my-model -o out --once   (from cron, or after each save)
    """
    from ptq_eval.checkpoints.arrivals import remove
    from ptq_eval.jobs.watch import watch as watched

    command, answers = settings["alert_command"], sys.stdout
    with Bar() as bar, redirect_stdout(sys.stderr) if json else nullcontext():  # a plug-in may print
        for event in watched(folders, out, progress=bar, **settings):
            found, text = _said(event)
            if copies and found["event"] in ("measured", "unmeasured"):
                remove(Path(found["location"]))
            if line := dumps(found) if json else text:
                click.echo(line, file=answers)
            if found["event"] == "alert" and command:
                _run(command, found)
    for folder in folders if copies else ():
        shutil.rmtree(folder, ignore_errors=True)
        with suppress(OSError):  # others may have copies there
            Path(folder).parent.rmdir()


def _said(event: Event) -> tuple[dict[str, Any], str]:
    """The JSON object and the line of an event, which is empty where a progress bar says it."""
    from ptq_eval.jobs.events import Delayed, Measured, Started, Unmeasured, Waiting
    from ptq_eval.report.watch import words

    match event:
        case Started(checkpoint):
            return words.started_json(checkpoint), ""
        case Measured(checkpoint, result, seconds, spent):
            found = words.measured_json(checkpoint, result.table, result.fit, seconds, spent)
            return found, words.measured_text(checkpoint, result.table, seconds)
        case Unmeasured(checkpoint, error):
            return words.unmeasured_json(checkpoint, error), words.unmeasured_text(checkpoint, error)
        case Delayed(error):
            return {"event": "delayed", "error": str(error)}, f"delayed: {error}"
        case Waiting():
            return {"event": "waiting", **vars(event)}, words.waiting_text(**vars(event))
    return words.alert_json(event), f"ALERT {words.alert_text(event)}"


def _run(command: str, found: dict[str, Any]) -> None:
    """Run the user's command; whatever becomes of it, the watch goes on."""
    import shlex

    try:
        subprocess.run(
            [*shlex.split(command), found["text"]],
            input=dumps(found),
            text=True,
            timeout=_COMMAND_SECONDS,
            check=True,
        )
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        complain(f"the alert command failed | got {error}", 0)
