"""The command line: arguments in, calls out.

This folder is the only place that prints.  Each command imports what it needs when it runs, so that help and mistyped
flags are answered without torch.
"""

from __future__ import annotations

import difflib
import sys
import warnings
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ptq_eval.cli import options as cli_options
from ptq_eval.cli.adapt import adapt
from ptq_eval.cli.arena import arena
from ptq_eval.cli.average import average
from ptq_eval.cli.backends import backends
from ptq_eval.cli.backtest import backtest
from ptq_eval.cli.compare import compare
from ptq_eval.cli.console import Bar, complain, console, raise_foremost, show_warning
from ptq_eval.cli.dataset import dataset
from ptq_eval.cli.export import export
from ptq_eval.cli.fit import fit
from ptq_eval.cli.paper import paper
from ptq_eval.cli.plan import plan
from ptq_eval.cli.pretrain import pretrain
from ptq_eval.cli.probe import probe
from ptq_eval.cli.process import prepare_process
from ptq_eval.cli.sensitivity import sensitivity
from ptq_eval.cli.serve import serve
from ptq_eval.cli.submit import submit
from ptq_eval.cli.suites import suites
from ptq_eval.cli.watch import watch
from ptq_eval.cli.work import work
from ptq_eval.config.commands import EstimateConfig, InspectConfig
from ptq_eval.config.run import RunConfig
from ptq_eval.errors import MeasurementFailedError, PtqEvalError
from ptq_eval.version import __version__

if TYPE_CHECKING:
    from ptq_eval import RunResult
    from ptq_eval.records import BitsAxis

INTERRUPTED = 130
RUN_EXAMPLES = """\b
Examples:
  ptq-eval run runs/my-model -o out
  ptq-eval run runs/ -o out --quantizers rtn,gptq --bits 2,3 --group-size 64
  ptq-eval run runs/ -o out --option gptq.act_order=true --symmetric
  ptq-eval run runs/ -o out --eval-text wikitext2 --calib-text c4
  ptq-eval run runs/ -o out --shard 1/4     (and 2/4, 3/4, 4/4 in other jobs)
  ptq-eval run runs/ -o out --executor ray  (for SLURM see ptq-eval submit)
  ptq-eval run suite:pythia-70m --checkpoints 8 --prune
  ptq-eval run 'hub:EleutherAI/pythia-70m@{step1000,step143000}'
"""


class _Commands(click.Group):
    """`ptq-eval FOLDER` means `ptq-eval run FOLDER`; a misspelt command is not taken for a folder."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        own = [name for param in self.get_params(ctx) for name in param.opts]
        if args and args[0] not in (*own, *self.list_commands(ctx)):
            near = difflib.get_close_matches(args[0], self.list_commands(ctx), n=1)
            if near and not Path(args[0]).exists():
                raise click.UsageError(f"No command or folder {args[0]!r}; did you mean {near[0]!r}?", ctx)
            args = ["run", *args]
        return super().parse_args(ctx, args)


@click.group(
    cls=_Commands,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, prog_name="ptq-eval")
@click.pass_context
def cli(ctx: click.Context) -> None:
    """What post-training quantization costs along a pretraining run, and where more data makes it worse.

    `ptq-eval FOLDER` measures a folder of checkpoints, the same as `ptq-eval run FOLDER`.

    \b
    Examples:
      ptq-eval inspect runs/my-model
      ptq-eval run runs/my-model -o out
      ptq-eval report out
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


@cli.command(epilog=RUN_EXAMPLES, short_help="Measure checkpoints before and after quantization, fit, report.")
@click.argument("folders", nargs=-1, required=True)
@cli_options.out_option("Output folder.  [default: FOLDER-ptq, here]")
@cli_options.options_of(RunConfig)
@cli_options.options_of(EstimateConfig)
@cli_options.trajectory_options
def run(folders: tuple[str, ...], out: str | None, estimate: bool, **settings: Any) -> None:
    """Measure every checkpoint under FOLDERS before and after quantization, fit the laws, write the report.

    Repeat the command to resume an interrupted run.  A FOLDER may hold one run, several runs, one
    checkpoint or a hub cache; hub:ORG/NAME@{REV,REV} names checkpoints on the hub, suite:NAME those of a
    public suite (see ptq-eval suites).  A TEXT is a .txt, .jsonl or
    .parquet file, token ids in a .npy or .bin file, stdlib:PART, wikitext2, c4 or hf:DATASET:SPLIT.
    """
    import ptq_eval
    from ptq_eval.jobs.run import default_output
    from ptq_eval.report import render, render_estimates

    if estimate:
        with Bar() as bar:
            found = ptq_eval.estimate(folders, out, progress=bar, **settings)
        console().print(render_estimates(found))
        return
    with Bar() as bar:
        result = ptq_eval.run(folders, out, progress=bar, **settings)
    console().print(render(result.table, result.fit, result.run, result.points))
    folder = out or default_output(folders[0])
    click.echo(f"\nWritten to {folder}: report.md, report.html, degradation.csv, fit.json, tables/, figures/")
    _raise_problems(result)


def _raise_problems(result: RunResult) -> None:
    """Everything that could be measured is stored and reported; now say what could not, with its own exit code."""
    raise_foremost(result.problems, sound=True)
    failed = result.table[result.table["status"] == "failed"]
    if len(failed):
        first = failed.iloc[0]
        bits = f"{first['bits']:g} bits" if first["bits"] == first["bits"] else "in full precision"
        raise MeasurementFailedError(
            f"{len(failed)} of {len(result.table)} measurements failed",
            got=f"{first['run']} step {first['step']} {first['quantizer']} {bits}: {first['message']}",
            remedy="the others are stored; see the column message of degradation.csv",
        )


@cli.command(short_help="Show the checkpoints that are found, and what is wrong with them.")
@click.argument("folders", nargs=-1, required=True)
@cli_options.options_of(InspectConfig)
@cli_options.trajectory_options
@cli_options.trust_option
def inspect(folders: tuple[str, ...], json: bool, trust_remote_code: bool, **settings: Any) -> None:
    """Show the checkpoints under FOLDERS: step, D, N, D/N, learning rate, weight hash, and what is wrong.

    \b
    Examples:
      ptq-eval inspect runs/my-model
      ptq-eval inspect runs/ --tokens-per-step 2097152
    """
    from ptq_eval.checkpoints import Overrides, discover, gravest, inspection_rows, verify_all
    from ptq_eval.report import inspection_table

    with Bar() as bar:
        checkpoints = verify_all(
            discover(folders, overrides=Overrides.take(settings)),
            progress=lambda done, total, _name: bar("reading weights", done, total),
            trust_remote_code=trust_remote_code,
        )
    rows = inspection_rows(checkpoints)
    if json:
        for row in rows:
            click.echo(dumps(row, default=str))
    else:
        console().print(inspection_table(rows))
    wrong = [gravest(checkpoint) for checkpoint in checkpoints if checkpoint.fatal]
    raise_foremost(wrong, sound=len(wrong) < len(checkpoints))


@cli.command(short_help="Write tables, figures and page again from stored measurements.")
@click.argument("out")
@cli_options.options_of(RunConfig, "bits_axis", bits_axis=None)
@cli_options.fit_options
def report(out: str, bits_axis: BitsAxis | None, seed: int, bootstrap: int) -> None:
    """Write tables, figures and the report page again from the records in OUT.

    By default, the axis of bits is the same as in the run.

    \b
    Examples:
      ptq-eval report out
      ptq-eval report out --bits-axis effective
    """
    import ptq_eval
    from ptq_eval.report import render

    with Bar() as bar:
        result = ptq_eval.load(out, bits_axis=bits_axis, seed=seed, bootstrap=bootstrap, progress=bar)
        written = ptq_eval.save_report(out, result)
    console().print(render(result.table, result.fit, result.run, result.points))
    click.echo(f"Written: {len(written)} files below {out}")


@cli.command(short_help="List the installed quantizers with their options.")
def quantizers() -> None:
    """List the installed quantizers with their options, and the methods of backends (`ptq-eval backends list`).

    \b
    Example of an option in use:
      ptq-eval run runs/my-model -o out --option gptq.act_order=true
    """
    from rich.table import Table

    from ptq_eval import plugins
    from ptq_eval.backends.environments import statuses

    table = Table("quantizer", "from", "calibration", "option", "default", "allowed", "meaning", "source")
    for name, cls in plugins.load_all("quantizers").items():
        head: tuple[str, ...] = (name, plugins.provider("quantizers", name), cls.default_calibration)
        plain, allowed, source = cls(), cls.option_values(), cls.source
        for option, text in cls.option_help().items() or {"": ""}.items():
            table.add_row(*head, option, str(getattr(plain, option, "")), allowed.get(option, ""), text, source)
            head, source = ("", "", ""), ""
    for status in statuses():
        where = f"{status.backend.name} {status.version} ({status.state})".replace("  ", " ")
        for method, own in status.backend.methods.items():
            table.add_row(
                f"{status.backend.name}:{method}",
                where,
                own.calibration,
                "",
                "",
                "",
                own.summary,
                status.backend.source,
            )
    console().print(table)


@cli.command(short_help="List the number formats, with their bits, and the formats of checkpoints.")
def formats() -> None:
    """List the number formats that --formats takes, with the quantizers that are defined for each, and the formats of
    checkpoints: read as they are, converted when they are opened, or recognised, with a message that says what to do.

    Effective bits are all stored bits per weight of a layer of 4,096 by 4,096, scales included.  The Gaussian MSE is
    the mean squared error on standard Gaussian numbers.  The ideal bits are what a code at the limit of information
    theory needs for the same error.

    \b
    Example:
      ptq-eval run runs/my-model -o out --bits 4 --formats nvfp4,mxfp4,nf4
    """
    from rich.table import Table

    from ptq_eval.checkpoints import listing
    from ptq_eval.measure import schemes

    for rows in (schemes.listing(), listing.listing()):
        table = Table(*rows[0])
        for row in rows:
            table.add_row(*row.values())
        console().print(table)


cli.add_command(adapt)
cli.add_command(arena)
cli.add_command(average)
cli.add_command(backends)
cli.add_command(backtest)
cli.add_command(compare)
cli.add_command(dataset)
cli.add_command(export)
cli.add_command(fit)
cli.add_command(paper)
cli.add_command(plan)
cli.add_command(pretrain)
cli.add_command(probe)
cli.add_command(sensitivity)
cli.add_command(serve)
cli.add_command(submit)
cli.add_command(suites)
cli.add_command(watch)
cli.add_command(work)


def main() -> None:
    """Entry point: one line on stderr and an exit code of its own for everything that a user can fix."""
    prepare_process()
    try:
        with warnings.catch_warnings():
            warnings.showwarning = show_warning
            code = cli.main(prog_name="ptq-eval", standalone_mode=False)
    except click.UsageError as error:
        where = error.ctx.command_path if error.ctx else "ptq-eval"
        code = complain(f"{error.format_message()} | remedy: see {where} --help", error.exit_code)
    except PtqEvalError as error:
        code = complain(error, error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        code = complain("interrupted | what is done is kept; the same command goes on from there", INTERRUPTED)
    except OSError as error:  # a file that went away or may not be read, wherever that shows
        code = complain(f"a file cannot be read or written | got {error}", PtqEvalError.exit_code)
    sys.exit(code if isinstance(code, int) else 0)
