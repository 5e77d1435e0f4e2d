"""Write docs/cli.md from the commands themselves: `python docs/generate_cli.py`.

With `--check` nothing is written; the exit code is 1 where docs/cli.md is not what the commands say.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import click

from ptq_eval import errors
from ptq_eval.cli.main import INTERRUPTED, cli

PAGE = Path(__file__).resolve().parent / "cli.md"

HEAD = """\
# Command line

<!-- Written by docs/generate_cli.py from the commands; change them, not this page. -->

`ptq-eval FOLDER` is short for `ptq-eval run FOLDER`, and `python -m ptq_eval` is `ptq-eval`.  Results go to standard
output.  A progress bar is drawn on standard error where that is a terminal; a problem is one line there, and an
[exit code](#exit-codes) of its own.

"""


def page() -> str:
    """The whole page as Markdown."""
    parent = click.Context(cli, info_name="ptq-eval")
    order = ("run", "inspect", "fit", "report", "quantizers", "pretrain")
    shown = {name for name, command in cli.commands.items() if not command.hidden}
    names = [*order, *sorted(shown - set(order))]
    table = "".join(
        f"| [`{name}`](#ptq-eval-{name}) | {cli.commands[name].get_short_help_str(100)} |\n" for name in names
    )
    parts = [HEAD, "| command | |\n|---|---|\n", table]
    parts += [section(cli.commands[name], click.Context(cli.commands[name], parent, name)) for name in names]
    return "".join([*parts, *exit_codes()])


def section(command: click.Command, context: click.Context) -> str:
    """One command: what it does, its examples and its options."""
    text, examples = split(command)
    lines = [
        f"\n## {context.command_path}\n\n",
        f"    {context.command_path} {usage(command, context)}\n\n",
        f"{text}\n",
    ]
    if examples:
        lines += ["\n```sh\n", *(f"{example}\n" for example in examples), "```\n"]
    options = [option for option in command.params if isinstance(option, click.Option) and not option.hidden]
    if options:
        lines += ["\n| option | meaning |\n|---|---|\n", *(row(option, context) for option in options)]
    within = command.commands if isinstance(command, click.Group) else {}
    lines += [section(own, click.Context(own, context, name)) for name, own in within.items()]
    return "".join(lines)


def usage(command: click.Command, context: click.Context) -> str:
    """The arguments after the command's name."""
    return " ".join(command.collect_usage_pieces(context))


def split(command: click.Command) -> tuple[str, list[str]]:
    """The prose of a command's help, and its example command lines."""
    text = inspect.cleandoc(f"{command.help}\n\n{inspect.cleandoc(command.epilog or '')}")
    lines = [line.strip() for line in text.replace("\b\n", "").splitlines()]
    examples = [re.sub(r" {3,}\((.*)\)$", r"   # \1", line) for line in lines if line.startswith("ptq-eval ")]
    prose = [line for line in lines if not line.startswith(("ptq-eval ", "Example"))]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(prose)).strip(), examples


def row(option: click.Option, context: click.Context) -> str:
    """One line of a table of options."""
    names, meaning = option.get_help_record(context) or ("", "")
    return f"| `{escaped(names)}` | {escaped(re.sub(r'  +', ' ', meaning))} |\n"


def escaped(text: str) -> str:
    """Text that cannot break a table's cell."""
    return text.replace("|", "\\|")


def exit_codes() -> Iterator[str]:
    """The table of exit codes, from the classes of errors."""
    yield "\n## Exit codes\n\nOf `compare`, 1 to 3 are [verdicts](gate.md#exit-codes), a wrong command line is 64.\n"
    yield "\n| code | meaning |\n|---|---|\n"
    yield "| 0 | everything that was asked for is done |\n"
    yield f"| {errors.PtqEvalError.exit_code} | a file cannot be read or written |\n"
    for kind in sorted(errors.PtqEvalError.__subclasses__(), key=lambda kind: kind.exit_code):
        yield f"| {kind.exit_code} | {escaped(' '.join((kind.__doc__ or '').split()))} |\n"
    yield f"| {INTERRUPTED} | Interrupted; what is done is kept, and the same command goes on from there. |\n"


def main() -> None:
    """Write the page, or compare it."""
    wanted = page()
    if sys.argv[1:] != ["--check"]:
        PAGE.write_text(wanted, encoding="utf-8")
    elif not PAGE.exists() or PAGE.read_text(encoding="utf-8") != wanted:
        sys.exit("docs/cli.md is stale: run `python docs/generate_cli.py`")


if __name__ == "__main__":
    main()
