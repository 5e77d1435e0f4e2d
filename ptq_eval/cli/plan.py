"""`ptq-eval plan`: how many tokens, how many parameters, at which precisions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ptq_eval.cli import options as cli_options
from ptq_eval.cli.console import Bar, console
from ptq_eval.config.options import declared
from ptq_eval.config.plan import PlanConfig
from ptq_eval.errors import OptionError

DEFAULT_PRESET = "KUMAR_2024"
EXAMPLES = """\b
Examples:
  ptq-eval plan --params 1B --serve-bits 4
  ptq-eval plan --params 300M --tokens 20B --serve-bits 3,4 --max-loss 0.01
  ptq-eval plan --budget 1e21 --serve-bits 4 --served-tokens 1T
  ptq-eval plan --budget 1e21 --memory 8GB --serve-bits 3,4
  ptq-eval plan --preset EPOCH_2024,OUYANG_2024 --params 1B --serve-bits 4
  ptq-eval plan --preset EPOCH_2024,CHEN_2025 --params 1B --group-size 128
  ptq-eval plan --fit out --quantizer gptq --params 160M --serve-bits 4
  ptq-eval plan --fit out --quantizer gptq --number-format nvfp4 --params 160M
"""


_options = cli_options.together(
    click.option("--fit", "fit", metavar="OUT", help="Plan from the fit in this output folder."),
    click.option(
        "--preset",
        metavar="NAME,…",
        help=f"Plan from published constants, of several presets together.  [default: {DEFAULT_PRESET}]",
    ),
    cli_options.options_of(PlanConfig),
    click.option("--offsets/--no-offsets", default=True, show_default=True, help="Use the offsets n in N_eff."),
    click.option("--quantizer", metavar="NAME", help="The quantizer to plan for, if OUT holds several."),
    click.option("--number-format", metavar="NAME", help="The number format to plan for, if each has a law."),
    click.option("-o", "--out", metavar="FOLDER", help="Output folder.  [default: OUT/plan, or NAME-plan here]"),
)


@click.command(epilog=EXAMPLES, short_help="Plan a training run: tokens, parameters and precisions, from a fit.")
@_options
def plan(fit: str | None, preset: str | None, out: str | None, **settings: Any) -> None:
    """Answer how many tokens, how many parameters, and which precisions to train and to serve at.

    The constants come from a fit or from a publication.  Every answer has an interval if they have one, and says how
    far it is beyond the data behind them.  Without --params, N is the best under --budget.
    """
    from ptq_eval.laws.plan.answers import Question
    from ptq_eval.laws.plan.answers import plan as answer
    from ptq_eval.report.plan import page as report

    _check(fit, preset, settings)
    question = Question(**{name: settings[name] for name in declared(PlanConfig)})
    with Bar() as bar:
        source = _source(fit, preset, settings)
        bar("planning", 0.0, 0.0)
        found = answer(source, question)
        beside = f"{(preset or DEFAULT_PRESET).lower().replace(',', '+')}-plan"
        folder = Path(out or (f"{fit.rstrip('/')}/plan" if fit else beside))
        written = report.write(folder, found)
    console().print(report.render(found))
    click.echo(f"\nWritten to {folder}: plan.json and {len(written) - 1} files in figures/")


def _check(fit: str | None, preset: str | None, settings: dict[str, Any]) -> None:
    """Raises OptionError for options that belong to the other origin of constants."""
    if fit is not None and preset is not None:
        raise OptionError("--fit and --preset exclude each other", got=f"{fit} and {preset}", remedy="give one of them")
    for name, flag in (("quantizer", "--quantizer"), ("number_format", "--number-format")):
        if fit is None and settings[name] is not None:
            what = f"{flag} chooses among the fits of --fit; presets have none"
            raise OptionError(what, got=settings[name], remedy=f"--fit OUT, or no {flag}")
    if fit is not None and not settings["offsets"]:
        what = "--no-offsets belongs to presets: a fit has the offsets that were fitted"
        raise OptionError(what, got=fit, remedy="no --no-offsets, or fit again: --law-option offsets=false")


def _source(fit: str | None, preset: str | None, settings: dict[str, Any]) -> Any:
    from ptq_eval.laws.plan.source import preset_named
    from ptq_eval.laws.plan.stored import from_folder

    if fit is None:
        return preset_named(DEFAULT_PRESET if preset is None else preset, offsets=settings["offsets"])
    return from_folder(fit, **{name: settings[name] for name in ("quantizer", "number_format", "params")})
