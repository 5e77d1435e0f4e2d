"""`ptq-eval plan`: how many tokens, how many parameters, at which precisions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from ptq_eval.cli import options as cli_options
from ptq_eval.cli.console import Bar, console
from ptq_eval.config.options import declared
from ptq_eval.config.plan import DEFAULT_PRESET, PlanConfig, SourceConfig
from ptq_eval.errors import PlanError

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
  ptq-eval plan --fit out --serve-bits 4 --activation-bits 8 --kv-bits 4
  ptq-eval plan --endings probed,averages --serve-bits 4
"""


_options = cli_options.together(
    cli_options.options_of(SourceConfig, "fit", "preset"),
    cli_options.options_of(PlanConfig),
    cli_options.options_of(SourceConfig, "offsets", "quantizer", "number_format", "endings"),
    cli_options.out_option("Output folder.  [default: OUT/plan, or NAME-plan here]", metavar="FOLDER"),
)


@click.command(epilog=EXAMPLES, short_help="Plan a training run: tokens, parameters and precisions, from a fit.")
@_options
def plan(out: str | None, **settings: Any) -> None:
    """Answer how many tokens, how many parameters, and which precisions to train and to serve at.

    The constants come from a fit or from a publication.  Every answer has an interval if they have one, and says how
    far it is beyond the data behind them.  Without --params, N is the best under --budget.  Where N and D are known,
    the plan also says how the run should end: stop, average, let the learning rate decay, or train quantized for the
    last x %.  --endings adds what was measured of this run, and gives N, D and the bits if no option does.
    """
    from ptq_eval.laws.plan.answers import Question
    from ptq_eval.laws.plan.answers import plan as answer
    from ptq_eval.report.plan import page as report
    from ptq_eval.report.plan.words import refusal
    from ptq_eval.results.endings import read_records

    origin = SourceConfig(**{name: settings[name] for name in declared(SourceConfig)})
    fit, preset = origin.fit, origin.preset or DEFAULT_PRESET
    records = {name: record for folder in origin.endings for name, record in read_records(folder).items()}
    asked = {name: settings[name] for name in declared(PlanConfig)}
    question = Question(**_completed(asked, records) if records else asked)
    with Bar() as bar:
        source = _source(origin, question)
        bar("planning", 0.0, 0.0)
        found = answer(source, question, records)
        if not found.answered:
            raise refusal(found, [name for name in source.others if _answers(origin, name, question)])
        beside = f"{preset.lower().replace(',', '+')}-plan"
        folder = Path(out or (f"{fit.rstrip('/')}/plan" if fit else beside))
        written = report.write(folder, found)
    console().print(report.render(found))
    click.echo(f"\nWritten to {folder}: plan.json and {len(written) - 1} files in figures/")


def _completed(asked: dict[str, Any], records: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a plan with N, D and bits of the endings that were measured, where no option gives them."""
    from ptq_eval.laws.plan.endings import recorded_bits, recorded_size

    N, D = recorded_size(records.values())
    given: dict[str, Any] = {"tokens": D} if asked["tokens"] is None else {}
    if all(asked[name] is None for name in ("params", "budget", "memory")):
        given["params"] = N
    if not asked["serve_bits"] and not asked["serve_format"]:
        given["serve_bits"] = recorded_bits(records.values())
    return {**asked, **given}


def _answers(origin: SourceConfig, quantizer: str, question: Any) -> bool:
    """Whether the fit of another quantizer answers the question."""
    from ptq_eval.laws.plan.answers import plan as answer

    try:
        return answer(_source(replace(origin, quantizer=quantizer), question), question).answered
    except PlanError:
        return False


def _source(origin: SourceConfig, question: PlanConfig) -> Any:
    from ptq_eval.laws.plan.source import preset_named
    from ptq_eval.laws.plan.stored import from_folder

    if origin.fit is None:
        preset = DEFAULT_PRESET if origin.preset is None else origin.preset
        return preset_named(preset, offsets=origin.offsets)
    chosen = {"quantizer": origin.quantizer, "number_format": origin.number_format, "params": question.params}
    served = question.activation_bits, question.kv_bits
    together = None if served == (None, None) else served
    return from_folder(origin.fit, together=together, **chosen)  # type: ignore[arg-type]
