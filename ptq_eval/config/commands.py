"""Options of commands that have one or two of their own: `run`, `inspect`, `watch`, `serve`, `fit --data` and others.

What a command is about is an argument and no option: folders, names, OUT.
"""

from __future__ import annotations

from dataclasses import dataclass

from ptq_eval.config.options import TEXT, Options, option


@dataclass(frozen=True)
class InspectConfig(Options):
    """How checkpoints are shown."""

    json: bool = option(False, "One JSON object per checkpoint instead of a table.")


@dataclass(frozen=True)
class EstimateConfig(Options):
    """What a run does."""

    estimate: bool = option(False, "Say what time, memory and disk the run will take, and measure nothing.")


@dataclass(frozen=True)
class EventsConfig(Options):
    """How events are printed."""

    json: bool = option(False, "One JSON object per line instead of text.")


@dataclass(frozen=True)
class TableConfig(Options):
    """The table that a law is fitted to, in place of a folder with records."""

    data: str | None = option(None, "A .csv, .tsv, .parquet, .json or .jsonl table.", TEXT, metavar="FILE")


@dataclass(frozen=True)
class InstallConfig(Options):
    """What is done with a backend that was installed."""

    check: bool = option(True, "Try its methods afterwards.", off="--no-check")


@dataclass(frozen=True)
class ServeConfig(Options):
    """Where the page of an output folder is served."""

    port: int = option(0, "Port on this machine; 0 is any that is free.", low=0, high=65535)
