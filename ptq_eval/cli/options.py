"""What the commands may be told: options that several of them share, and how their values are read.

A value is read here as far as its form goes (a list of numbers, `i/n`); whether it makes sense is decided where it
is used, so that Python and the command line refuse the same things with the same words.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from ptq_eval import units
from ptq_eval.errors import BitsError, GroupSizeError, OptionError

if TYPE_CHECKING:
    from ptq_eval.checkpoints import Overrides

_Command = TypeVar("_Command", bound=Callable[..., Any])
_Decorator = Callable[[_Command], _Command]


def _words(_ctx: click.Context, _param: click.Parameter, value: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in value.split(",") if part.strip())


def _bits(_ctx: click.Context, _param: click.Parameter, value: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in value.split(",") if part.strip())
    except ValueError as error:
        raise BitsError(
            "--bits is not a list of whole numbers", got=value, allowed="2 to 8", remedy="--bits 2,3,4,8"
        ) from error


def _group_size(_ctx: click.Context, _param: click.Parameter, value: str) -> Any:
    if value in ("auto", "none"):
        return None if value == "none" else "auto"
    try:
        return int(value)
    except ValueError as error:
        raise GroupSizeError("--group-size is not a number", got=value, allowed="a number, none, auto") from error


def _shard(_ctx: click.Context, _param: click.Parameter, value: str) -> tuple[int, int]:
    try:
        index, count = (int(part) for part in value.split("/"))
    except ValueError as error:
        raise OptionError("--shard is not i/n", got=value, remedy="--shard 1/4") from error
    return index, count


def _windows(_ctx: click.Context, _param: click.Parameter, value: str) -> int | None:
    if value == "all":
        return None
    try:
        return int(value)
    except ValueError as error:
        raise OptionError("--eval-windows is not a number", got=value, allowed="a number, or all") from error


def numbers(kind: Callable[[float], Any], example: str) -> Callable[..., tuple[Any, ...] | None]:
    """A callback that reads a comma-separated list of numbers as `kind`.  It raises OptionError."""

    def read(_ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[Any, ...] | None:
        try:
            return None if value is None else tuple(kind(float(part)) for part in value.split(","))
        except (ValueError, OverflowError) as error:
            flag = param.opts[0]
            raise OptionError(f"{flag} is not a list of numbers", got=value, remedy=f"{flag} {example}") from error

    return read


def _count(_ctx: click.Context, param: click.Parameter, value: str | None) -> int | None:
    return None if value is None else units.read(value, name=param.opts[0])


def _counts(_ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[int, ...] | None:
    return None if value is None else tuple(units.read(part, name=param.opts[0]) for part in value.split(","))


def together(*options: _Decorator) -> _Decorator:
    """Several options as one decorator; help shows them in this order."""

    def decorate(command: _Command) -> _Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


trajectory_options = together(
    click.option(
        "--tokens-per-step",
        callback=_count,
        help="D = step × this, in place of what checkpoints say.",
        metavar="TOKENS",
    ),
    click.option("--tokens", callback=_counts, metavar="D,D,…", help="D of each checkpoint, in order."),
    click.option("--params", callback=_count, metavar="N", help="N, in place of the count from the architecture."),
    click.option("--exclude", callback=_counts, metavar="STEP,…", help="Steps to leave out."),
)
"""Corrections to what was found about a trajectory, taken up by `overrides`."""

trust_option = click.option("--trust-remote-code", is_flag=True, help="Run code that comes with a checkpoint.")

device_option = click.option(
    "--device", default="auto", show_default=True, metavar="NAME", help="auto, cpu, cuda or cuda:N."
)

fit_options = together(
    click.option(
        "--seed",
        default=0,
        show_default=True,
        type=click.IntRange(min=0),
        metavar="N",
        help="Seed of the bootstrap.",
    ),
    click.option(
        "--bootstrap",
        default=500,
        show_default=True,
        type=click.IntRange(min=10),
        metavar="N",
        help="Resamples behind each interval.",
    ),
)

grid_options = together(
    click.option(
        "--quantizers",
        default="rtn,gptq,awq",
        show_default=True,
        callback=_words,
        metavar="NAME,…",
        help="Which; `ptq-eval quantizers` lists those installed.",
    ),
    click.option("--bits", default="2,3,4,8", show_default=True, callback=_bits, metavar="B,…", help="Each 2 to 8."),
    click.option(
        "--group-size",
        default="auto",
        show_default=True,
        callback=_group_size,
        metavar="N|none|auto",
        help="Columns per scale; none: one scale per row; auto: 128, or what the narrowest row allows.",
    ),
    click.option("--symmetric/--asymmetric", default=False, show_default=True, help="Grid around zero, or free."),
    click.option(
        "--calibration",
        default="default",
        show_default=True,
        type=click.Choice(["default", "shared", "sequential"]),
        help="Layer inputs to calibrate with: of the full-precision model (shared), of the model quantized so far "
        "(sequential), or as each method was published (default).",
    ),
    click.option(
        "--option",
        "options",
        multiple=True,
        metavar="Q.NAME=VALUE",
        help="An option of quantizer Q; may be repeated.",
    ),
    click.option("--include-head", is_flag=True, help="Quantize the output head too."),
)
"""What each checkpoint is measured under."""

text_options = together(
    click.option(
        "--eval-text", default="stdlib:evaluation", show_default=True, metavar="TEXT", help="Where loss is measured."
    ),
    click.option(
        "--calib-text", default="stdlib:calibration", show_default=True, metavar="TEXT", help="For calibration."
    ),
    click.option("--seq-len", type=int, metavar="N", help="Tokens per window.  [default: 2048, or the model's limit]"),
    click.option(
        "--eval-windows", default="256", show_default=True, callback=_windows, metavar="N|all", help="The first N."
    ),
    click.option("--calib-windows", default=128, show_default=True, metavar="N", help="The first N."),
    click.option(
        "--calib-seed", type=click.IntRange(min=0), metavar="SEED", help="Draw calibration windows at random."
    ),
    click.option("--bos", is_flag=True, help="Begin each window with the beginning-of-sequence token."),
)
"""What the loss is measured on.  A text is a file or the name of a data set, see the help of `run`."""

machine_options = together(
    device_option,
    click.option(
        "--dtype",
        default="float32",
        show_default=True,
        type=click.Choice(["float32", "bfloat16", "float16"]),
        help="Of the model that is measured.",
    ),
    click.option(
        "--shard",
        default="1/1",
        show_default=True,
        callback=_shard,
        metavar="i/n",
        help="Measure every n-th checkpoint only, from the i-th on.",
    ),
    click.option(
        "--precision",
        type=float,
        metavar="P",
        help="End a measurement once the error of delta is below P of delta (0.02: 2 %).  [default: all windows]",
    ),
    click.option(
        "--memory",
        metavar="BYTES",
        help="What weights may take on the device, such as 8GB.  [default: most of what is free]",
    ),
)


def overrides(settings: dict[str, Any]) -> Overrides | None:
    """Take the trajectory options out of `settings`.  Raises TrajectoryFileError."""
    from ptq_eval.checkpoints import Overrides

    names = ("tokens_per_step", "tokens", "params", "exclude")
    given = {name: settings.pop(name) for name in names}
    given = {name: value for name, value in given.items() if value is not None}
    return Overrides(**given) if given else None
