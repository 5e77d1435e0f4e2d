"""What the command line shows: a console as wide as it should be, one progress bar, one line for an error."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.console import Console

    from ptq_eval.errors import PtqEvalError

PIPE_WIDTH = 160
"""Columns for a pipe or a file, which have no width of their own; 80 would wrap the tables."""


def console() -> Console:
    """Standard output."""
    from rich.console import Console

    return Console() if sys.stdout.isatty() else Console(width=PIPE_WIDTH)


def complain(what: object, code: int) -> int:
    """Say in one line on stderr what is wrong; returns the exit code for it."""
    click.echo("ptq-eval: " + " ".join(str(what).split()), err=True)
    return code


def leave(problems: Sequence[PtqEvalError]) -> None:
    """Name what was skipped beside what was done, and raise the first fault, if there is any, for its exit code."""
    from ptq_eval.checkpoints import faults

    first = next(iter(faults(problems, sound=True)), None)
    for problem in problems:
        if problem is not first:
            click.echo(f"skipped: {problem}")
    if first is not None:
        raise first


def raise_foremost(problems: Sequence[PtqEvalError], *, sound: bool) -> None:
    """Raise the gravest of what is wrong with checkpoints, if anything is, once all of it has been shown.

    `sound`: whether there is a checkpoint without a problem.
    """
    from ptq_eval.checkpoints import faults, foremost

    if found := faults(problems, sound=sound):
        raise foremost(found, "listed above")


def show_warning(message: Warning | str, category: type[Warning], *where: Any, **also: Any) -> None:
    """Show a warning of this program in one line, without the source line, and other packages' as Python does."""
    if category.__module__.partition(".")[0] in ("ptq_eval", "quantizers"):
        complain(message, 0)
    else:
        click.echo(warnings.formatwarning(message, category, *where[:2]), err=True, nl=False)


class Bar:
    """One progress bar on stderr with the time that remains; silent where stderr is no terminal.

    Called as bar(what is being done, units done, units in all).  What is done next takes the place of what was done
    before, so there is a single bar, and for measuring it spans the whole grid: what follows a colon is a stage of it.
    """

    def __enter__(self) -> Bar:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[unit]}"),
            console=Console(stderr=True),
            transient=True,
            disable=not sys.stderr.isatty(),
            # Units differ in speed between methods: the estimate looks back over ten minutes, not half of one.
            speed_estimate_period=600,
        )
        self._what, self._task = "", self._progress.add_task("", total=None, visible=False, unit="")
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def __call__(self, what: str, done: float, total: float) -> None:
        """Show that `done` of `total` units are done; a `total` of 0 is one that is not known."""
        total_known: Any = total or None
        if what.partition(":")[0] != self._what.partition(":")[0]:
            unit = "left" if total_known else ""
            self._progress.reset(self._task, description=what, total=total_known, completed=0, visible=True, unit=unit)
        self._what = what
        self._progress.update(self._task, description=what, completed=done, total=total_known)
