"""Command-line options, generated from the fields that declare them (see `ptq_eval.config.options`).

A value is read when the command line is parsed, by the same code that reads it from Python, so both accept and refuse
the same values with the same words.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection
from typing import Any, TypeVar

import click

from ptq_eval.checkpoints.overrides import Overrides
from ptq_eval.config.options import SWITCH, Kind, Option, Options, declared
from ptq_eval.config.run import RunConfig
from ptq_eval.errors import OptionError, OutputFolderError, PtqEvalError

_Command = TypeVar("_Command", bound=Callable[..., Any])
_Decorator = Callable[[_Command], _Command]


def together(*options: _Decorator) -> _Decorator:
    """Several options as one decorator; help shows them in this order."""

    def decorate(command: _Command) -> _Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


def options_of(cls: type[Options], *names: str, without: Collection[str] = (), **defaults: Any) -> _Decorator:
    """The fields of `cls` that have a flag as options, or those named, `without` some; `defaults` replace their own."""
    specs = declared(cls)
    chosen = names or [name for name, spec in specs.items() if spec.flag and name not in without]
    return together(*(_option(specs[name], defaults.get(name, specs[name].default)) for name in chosen))


def out_option(help: str, name: str = "out", metavar: str = "OUT", required: bool = False) -> _Decorator:
    """`-o`: a folder to write, refused before anything is computed where it is a file."""

    def read(value: Any, *, name: str, error: type[PtqEvalError]) -> str:
        if not str(value).strip():
            raise error("the name of the output folder is empty", remedy="for the current folder write .")
        if os.path.isfile(value):
            raise OutputFolderError("the output folder is a file", got=value, remedy="choose another -o")
        return str(value)

    spec = Option(None, help, Kind(read, metavar), flag="-o", name=name)
    return _option(spec, None, "-o", "--out", required=required)


def _option(spec: Option, default: Any, *flags: str, required: bool = False) -> _Decorator:
    switch = spec.kind is SWITCH and default is not None  # click says which of two flags is the default
    shown = f"default: {spec.written(default)}" if spec.written(default) and not switch else ""
    obvious = spec.low in (None, 0, 1) and (spec.high, spec.below) == (None, None)
    notes = "; ".join(filter(None, [shown, "" if obvious else "each " * spec.many + spec.limits()]))
    help = spec.help + (f"  [{notes}]" if notes else "")
    flag = spec.flag or ""
    if spec.kind is SWITCH:
        names = f"{flag}/{spec.off}" if spec.off else flag
        shows = bool(switch and spec.off)
        return click.option(names, spec.name, is_flag=True, default=default, show_default=shows, help=help)

    def read(_ctx: click.Context, _param: click.Parameter, values: tuple[Any, ...]) -> Any:
        if spec.repeated:
            return spec.read(",".join(values) if spec.many else values)
        if len(values) > 1:
            remedy = "give all values once, with commas" if spec.many else "give it once"
            raise OptionError(f"{flag} occurs {len(values)} times", got=" and ".join(values), remedy=remedy)
        value = values[0] if values else default
        return value if value is None else spec.read(value)

    return click.option(
        *(flags or (flag,)),
        spec.name,
        multiple=True,
        type=click.UNPROCESSED,
        required=required,
        callback=read,
        metavar=spec.metavar or "|".join([*spec.choices]) or "|".join([spec.kind.metavar, *spec.words]),
        help=help,
    )


GRID = (
    "quantizers", "bits", "formats", "group_size", "symmetric", "calibration", "options", "include_head",
    "include_embedding",
)  # fmt: skip
TEXTS = (
    "eval_text", "calib_text", "seq_len", "eval_windows", "eval_sample", "eval_seed",
    "calib_windows", "calib_length", "calib_sample", "calib_seed", "bos",
)  # fmt: skip
trajectory_options = options_of(Overrides)
device_option = options_of(RunConfig, "device")
trust_option = options_of(RunConfig, "trust_remote_code")
fit_options = options_of(RunConfig, "seed", "bootstrap")
