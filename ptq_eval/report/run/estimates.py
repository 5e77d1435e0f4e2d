"""The table of `ptq-eval run --estimate`: a line per checkpoint, their total, and what it does not count."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ptq_eval.report.common.words import plural
from ptq_eval.units import BYTES, write

if TYPE_CHECKING:
    from ptq_eval.measure.estimate import Estimate

_MINUTE, _HOUR = 60, 3600


def estimate_table(estimates: Sequence[Estimate]) -> RenderableType:
    """Time by stage, memory and disk of every checkpoint, and of the run."""
    if not estimates:
        return Text("Nothing is missing: repeating the run only fits and reports.")
    stages = list(estimates[0].seconds)
    drawn = Table(box=box.SIMPLE_HEAD)
    drawn.add_column("checkpoint")
    for name in ("measurements", *stages, "time", "memory", "disk"):
        drawn.add_column(name, justify="right", no_wrap=True)
    for one in estimates:
        parts = [duration(one.seconds[stage]) for stage in stages]
        drawn.add_row(one.checkpoint, str(one.trials), *parts, duration(one.total), _size(one.memory), _size(one.disk))
    if len(estimates) > 1:
        sums = [duration(sum(one.seconds[stage] for one in estimates)) for stage in stages]
        total = duration(sum(one.total for one in estimates))
        most = [_size(max(getattr(one, name) for one in estimates)) for name in ("memory", "disk")]
        drawn.add_row("all", str(sum(one.trials for one in estimates)), *sums, total, *most, style="bold")
    return Group(drawn, *map(Text, _notes(estimates)))


def _notes(estimates: Sequence[Estimate]) -> Iterator[str]:
    yield "Time is of one checkpoint after another, at the present load of this machine. Memory and disk are peaks;"
    yield "the disk is freed as each checkpoint is finished."
    if backends := sum(one.backends for one in estimates):
        yield f"Not counted: {plural(backends, 'measurement')} by backends."


def duration(seconds: float) -> str:
    """Seconds as people write them: 4 s, 12 min, 3.5 h."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / _MINUTE:.0f} min" if seconds < 100 * _MINUTE else f"{seconds / _HOUR:.3g} h"


def _size(count: Any) -> str:
    return write(count, BYTES) if count else "–"
