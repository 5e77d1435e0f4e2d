"""The command line: arguments in, calls out.  The only module that prints, and it imports torch only when measuring."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ptq_eval import __version__
from ptq_eval.errors import (
    BitsError,
    GroupSizeError,
    MeasurementFailedError,
    OptionError,
    OutputFullError,
    PtqEvalError,
)

if TYPE_CHECKING:
    from rich.console import Console

INTERRUPTED = 130
RUN_EXAMPLES = """\b
Examples:
  ptq-eval run runs/my-model -o out
  ptq-eval run runs/ -o out --quantizers rtn,gptq --bits 2,3,4 --group-size 64
  ptq-eval run hub:EleutherAI/pythia-70m@step1000,step143000 --eval-text wikitext2 --calib-text c4
  ptq-eval run runs/ -o out --shard 1/4        (and 2/4, 3/4, 4/4 in other jobs)
  ptq-eval run runs/ -o out --option gptq.act_order=true --symmetric
"""


class _Commands(click.Group):
    """`ptq-eval FOLDER` means `ptq-eval run FOLDER`; a misspelt command is told apart from a folder."""

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        name = args[0]
        if self.get_command(ctx, name) is None and not name.startswith("-"):
            import difflib

            near = difflib.get_close_matches(name, self.list_commands(ctx), n=1)
            if near and not Path(name).exists():
                raise click.UsageError(f"No command or folder {name!r}; did you mean {near[0]!r}?", ctx)
            args = ["run", *args]
        return super().resolve_command(ctx, args)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="ptq-eval")
def cli() -> None:
    """What post-training quantization costs along a pretraining run, and where more data makes it worse.

    `ptq-eval FOLDER` measures a folder of checkpoints, the same as `ptq-eval run FOLDER`.

    \b
    Examples:
      ptq-eval inspect runs/my-model
      ptq-eval run runs/my-model -o out
      ptq-eval report out
    """


def _split(_ctx: click.Context, _param: click.Parameter, value: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in value.split(",") if part.strip())


def _bits(_ctx: click.Context, _param: click.Parameter, value: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in value.split(",") if part.strip())
    except ValueError as error:
        raise BitsError("--bits is not a list of whole numbers", got=value, remedy="--bits 2,3,4,8") from error


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


def _count(_ctx: click.Context, _param: click.Parameter, value: str) -> int | None:
    if value == "all":
        return None
    try:
        return int(value)
    except ValueError as error:
        raise OptionError("--eval-windows is not a number", got=value, allowed="a number, or all") from error


def _tokens(_ctx: click.Context, _param: click.Parameter, value: str | None) -> tuple[int, ...] | None:
    if value is None:
        return None
    try:
        return tuple(int(float(part)) for part in value.split(","))
    except ValueError as error:
        raise OptionError("--tokens is not a list of numbers", got=value, remedy="--tokens 1e9,2e9,4e9") from error


def _trajectory_options(command: Any) -> Any:
    for option in (
        click.option("--params", type=int, help="N, where it cannot be told from the weights."),
        click.option("--tokens", callback=_tokens, help="D of each checkpoint, in order: 1e9,2e9,…"),
        click.option("--tokens-per-step", type=int, help="D = step × this, where checkpoints do not say."),
    ):
        command = option(command)
    return command


@cli.command(epilog=RUN_EXAMPLES)
@click.argument("folders", nargs=-1, required=True)
@click.option("-o", "--out", help="Output folder.  [default: <FOLDER>-ptq]")
@click.option("--quantizers", default="rtn,gptq,awq", show_default=True, callback=_split, help="Comma-separated.")
@click.option("--bits", default="2,3,4,8", show_default=True, callback=_bits, help="Comma-separated, each 2 to 8.")
@click.option(
    "--group-size",
    default="auto",
    show_default=True,
    callback=_group_size,
    metavar="N|none|auto",
    help="Columns per scale; none is one scale per row; auto is 128, or what the narrowest row allows.",
)
@click.option("--symmetric/--asymmetric", default=False, show_default=True, help="Grid around zero, or free.")
@click.option(
    "--calibration",
    default="default",
    show_default=True,
    type=click.Choice(["default", "shared", "sequential"]),
    help="Inputs that calibration sees: of the full-precision model, of the model quantized so far, or as published.",
)
@click.option("--option", "options", multiple=True, metavar="Q.NAME=VALUE", help="An option of a quantizer.")
@click.option("--eval-text", default="stdlib:evaluation", show_default=True, help="Text that the loss is measured on.")
@click.option("--calib-text", default="stdlib:calibration", show_default=True, help="Text for calibration.")
@click.option("--seq-len", type=int, help="Tokens per window.  [default: 2048 or the model's maximum]")
@click.option("--eval-windows", default="256", show_default=True, callback=_count, metavar="N|all", help="The first N.")
@click.option("--calib-windows", default=128, show_default=True, help="Windows of calibration text: the first N.")
@click.option("--calib-seed", type=int, help="Draw calibration windows at random instead of in order.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:N.")
@click.option("--dtype", default="float32", show_default=True, type=click.Choice(["float32", "bfloat16", "float16"]))
@click.option("--include-head", is_flag=True, help="Quantize the output head too.")
@click.option("--trust-remote-code", is_flag=True, help="Run code that comes with a checkpoint.")
@click.option(
    "--shard", default="1/1", show_default=True, callback=_shard, metavar="i/n", help="Every n-th checkpoint."
)
@click.option("--seed", default=0, show_default=True, help="Seed of the bootstrap.")
@click.option("--bootstrap", default=500, show_default=True, help="Resamples behind each interval.")
@_trajectory_options
def run(folders: tuple[str, ...], out: str | None, options: tuple[str, ...], **settings: Any) -> None:
    """Measure every checkpoint under FOLDERS before and after quantization, fit the laws, write the report.

    An interrupted run goes on when the same command is given again.  A FOLDER may hold one run, several runs, one
    checkpoint or a hub cache; hub:org/name@revision,revision names checkpoints on the hub.
    """
    import ptq_eval
    from ptq_eval.config import parse_options
    from ptq_eval.report import render

    overrides = _overrides(settings)
    with _Bar() as progress:
        table = ptq_eval.run(
            folders, out, overrides=overrides, progress=progress, options=parse_options(options), **settings
        )
    console = _console()
    console.print(render(table, table.fit, table.run_info))
    folder = Path(out) if out else _default(folders[0])
    console.print(f"\nWritten to [bold]{folder}[/bold]: report.md, degradation.csv, fit.json, tables/, figures/")
    _raise_problems(table)


def _raise_problems(table: Any) -> None:
    """Everything that could be measured is stored and reported; now say what could not, with its own exit code."""
    if table.problems:
        raise table.problems[0]
    failed = table[table["status"] == "failed"]
    if len(failed):
        first = failed.iloc[0]
        raise MeasurementFailedError(
            f"{len(failed)} of {len(table)} measurements failed",
            got=f"{first['run']} step {first['step']} {first['quantizer']} {first['bits']:g} bits: {first['message']}",
            remedy="the others are stored; see the column message of degradation.csv",
        )


@cli.command()
@click.argument("folders", nargs=-1, required=True)
@click.option("--json", "as_json", is_flag=True, help="One JSON object per checkpoint instead of a table.")
@click.option("--trust-remote-code", is_flag=True, help="Run code that comes with a checkpoint.")
@_trajectory_options
def inspect(folders: tuple[str, ...], as_json: bool, trust_remote_code: bool, **settings: Any) -> None:
    """Show the checkpoints under FOLDERS: step, D, N, D/N, learning rate, weight hash, and what is wrong.

    \b
    Examples:
      ptq-eval inspect runs/my-model
      ptq-eval inspect runs/ --tokens-per-step 2097152
    """
    import json

    from ptq_eval.checkpoints import discover, error_for, inspection_rows, verify_all

    with _Bar() as progress:
        found = discover(folders, overrides=_overrides(settings))
        checkpoints = verify_all(
            found,
            progress=lambda done, total, _name: progress("reading weights", done, total),
            trust_remote_code=trust_remote_code,
        )
    rows = inspection_rows(checkpoints)
    if as_json:
        for row in rows:
            click.echo(json.dumps(row, default=str))
    else:
        from ptq_eval.report import inspection_table

        _console().print(inspection_table(rows))
    for checkpoint in checkpoints:
        if checkpoint.fatal:
            raise error_for(checkpoint, checkpoint.fatal[0])


@cli.command()
@click.argument("out")
@click.option("--seed", default=0, show_default=True, help="Seed of the bootstrap.")
@click.option("--bootstrap", default=500, show_default=True, help="Resamples behind each interval.")
def fit(out: str, seed: int, bootstrap: int) -> None:
    """Fit the laws again to the records in OUT, and write fit.json.

    \b
    Example:
      ptq-eval fit out --bootstrap 2000
    """
    import ptq_eval
    from ptq_eval.report import render_fit, write_fit

    with _Bar() as progress:
        table = ptq_eval.load(out, seed=seed, bootstrap=bootstrap, progress=progress)
    _console().print(render_fit(table.fit))
    click.echo(f"Written: {write_fit(Path(out), table.fit)}")


@cli.command()
@click.argument("out")
@click.option("--seed", default=0, show_default=True, help="Seed of the bootstrap.")
@click.option("--bootstrap", default=500, show_default=True, help="Resamples behind each interval.")
def report(out: str, seed: int, bootstrap: int) -> None:
    """Write tables, figures and the report page again from the records in OUT.

    \b
    Example:
      ptq-eval report out
    """
    import ptq_eval
    from ptq_eval.report import render

    with _Bar() as progress:
        table = ptq_eval.load(out, seed=seed, bootstrap=bootstrap, progress=progress)
        written = ptq_eval.report(out, table)
    _console().print(render(table, table.fit, table.run_info))
    click.echo(f"Written: {len(written)} files below {out}")


@cli.command()
def quantizers() -> None:
    """List the installed quantizers with their options."""
    from rich.table import Table

    from ptq_eval import plugins

    table = Table("quantizer", "from", "calibration", "option", "default", "meaning")
    for name, cls in plugins.load_all("quantizers").items():
        head: tuple[str, ...] = (name, plugins.provider("quantizers", name), cls.default_calibration)
        defaults = cls().options()
        for option, text in cls.option_help().items() or {"": ""}.items():
            table.add_row(*head, option, str(defaults.get(option, "")), text)
            head = ("", "", "")
    _console().print(table)


@cli.command()
@click.argument("out")
@click.option("--architecture", default="llama", show_default=True, help="llama, gpt2 or gpt-neox.")
@click.option("--width", default=64, show_default=True, help="Channels of a block.")
@click.option("--layers", default=3, show_default=True)
@click.option("--vocab", default=1024, show_default=True, help="Entries of the tokenizer that is trained first.")
@click.option("--context", default=128, show_default=True, help="Tokens per window.")
@click.option("--batch-size", default=16, show_default=True, help="Windows per step.")
@click.option("--ratios", default="5,9,16,28,50,90,160,240,320,400", show_default=True, help="D/N of the checkpoints.")
@click.option("--schedule", default="constant", show_default=True, type=click.Choice(["constant", "cosine", "wsd"]))
@click.option("--learning-rate", default=3e-3, show_default=True, help="Peak rate.")
@click.option("--warmup", default=40, show_default=True, help="Steps of warm-up.")
@click.option("--decay", default=0.2, show_default=True, help="Share of a wsd branch in which the rate falls.")
@click.option("--text", default="stdlib:train", show_default=True, help="Training text.")
@click.option("--seed", default=0, show_default=True)
@click.option("--device", default="auto", show_default=True, help="auto, cpu, cuda.")
@click.option("--compile/--no-compile", "compiled", default=None, help="torch.compile.  [default: on CUDA]")
@click.option("--threads", type=int, help="CPU threads.  [default: torch's own choice]")
def pretrain(
    out: str, ratios: str, text: str, device: str, compiled: bool | None, threads: int | None, **settings: Any
):
    """Train a small model on TEXT and save a trajectory of checkpoints under OUT; an interrupted training goes on.

    \b
    Examples:
      ptq-eval pretrain runs/small --width 32 --ratios 5,10,20,50,100,200
      ptq-eval pretrain runs/annealed --schedule wsd --text my-text.txt
    """
    import torch

    from ptq_eval import corpora
    from ptq_eval.config import RunConfig
    from ptq_eval.pretrain import PretrainConfig
    from ptq_eval.pretrain import pretrain as train

    try:
        wanted = tuple(float(part) for part in ratios.split(","))
    except ValueError as error:
        raise OptionError("--ratios is not a list of numbers", got=ratios, remedy="--ratios 5,10,20") from error
    if threads:
        torch.set_num_threads(threads)
    source = corpora.read(text)
    if source.text is None:
        raise OptionError("--text must be text, not token ids", got=text)
    with _Bar() as progress:
        train(
            PretrainConfig(ratios=wanted, **settings),
            source.text,
            out,
            digest=source.digest,
            device=RunConfig(device=device).resolve_device(),
            compiled=compiled,
            progress=lambda done, total, _loss: progress("training", done, total),
        )
    click.echo(f"Written: {out}")


class _Bar:
    """One progress bar with the time that remains; silent when the output is no terminal."""

    def __enter__(self) -> _Bar:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

        console = Console(stderr=True)
        columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
        self._progress = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        self._tasks: dict[str, Any] = {}
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def __call__(self, what: str, done: float, total: float) -> None:
        if what not in self._tasks:
            self._tasks[what] = self._progress.add_task(what, total=total or None)
        self._progress.update(self._tasks[what], completed=done, total=total or None)


def _overrides(settings: dict[str, Any]) -> Any:
    from ptq_eval.checkpoints import Overrides

    given = {name: settings.pop(name) for name in ("tokens_per_step", "tokens", "params")}
    return Overrides(**given) if any(value is not None for value in given.values()) else None


def _default(root: str) -> Path:
    from ptq_eval.api import default_output

    return default_output(root)


def _console() -> Console:
    from rich.console import Console

    # A pipe or a file has no width of its own: give tables room instead of folding them at 80 columns.
    return Console() if sys.stdout.isatty() else Console(width=160)


def main() -> None:
    """Entry point: one line on stderr and a distinct exit code for everything that a user can mend."""
    try:
        code = cli.main(standalone_mode=False)
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except PtqEvalError as error:
        click.echo(f"ptq-eval: {error}", err=True)
        code = error.exit_code
    except (KeyboardInterrupt, click.Abort):
        click.echo("ptq-eval: interrupted | what was measured is stored; the same command goes on from there", err=True)
        code = INTERRUPTED
    except BrokenPipeError:
        code = 0
    except OSError as error:
        import errno

        if error.errno != errno.ENOSPC:
            raise
        code = OutputFullError.exit_code
        click.echo(f"ptq-eval: no space left on the disk | {error} | what is stored is kept", err=True)
    sys.exit(code if isinstance(code, int) else 0)


if __name__ == "__main__":
    main()
