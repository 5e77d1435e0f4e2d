"""`ptq-eval pretrain`: train a small model, saved as a trajectory that `ptq-eval run` can measure."""

from __future__ import annotations

from typing import Any

import click
from click.core import ParameterSource

from ptq_eval.cli import options as cli_options
from ptq_eval.cli.console import Bar
from ptq_eval.config.options import declared
from ptq_eval.errors import OptionError
from ptq_eval.pretrain.config import PretrainConfig, StudyArguments, TrainingConfig

_options = cli_options.together(
    cli_options.options_of(PretrainConfig), cli_options.device_option, cli_options.options_of(TrainingConfig)
)


@click.command(short_help="Train a small model, or many, saved as trajectories of checkpoints.")
@click.argument("out", required=False)
@_options
@cli_options.options_of(StudyArguments)
@cli_options.out_option("Output folder of a study.", name="folder")
def pretrain(
    out: str | None,
    device: str,
    study: str | None,
    status: bool,
    stage: int | None,
    folder: str | None,
    **settings: Any,
) -> None:
    """Train a small model on a text and save a trajectory of checkpoints under OUT.

    With --study, train every run of a grid in a TOML file, in low precision too, many at once.

    Repeat the command to resume an interrupted training.

    \b
    Examples:
      ptq-eval pretrain runs/small --width 32 --ratios 5,10,20,50,100,200
      ptq-eval pretrain runs/annealed --schedule wsd --text my-text.txt
      ptq-eval pretrain runs/trunk --ratios 20,40,60,80 --states
      ptq-eval pretrain --study study.toml -o runs/study
      ptq-eval pretrain --study study.toml -o runs/study --status
    """
    if study is None:
        if out is None or folder is not None or status or stage is not None:
            remedy = "ptq-eval pretrain OUT, or --study FILE -o OUT"
            raise OptionError("one run needs OUT; -o, --status and --stage belong to --study", remedy=remedy)
        _one(out, device, settings)
        return
    target = folder or out
    if target is None or (folder and out):
        raise OptionError("a study needs one output folder", remedy="--study FILE -o OUT")
    own, context = {"compile", "threads"}, click.get_current_context()
    given = [
        name
        for name in settings
        if name not in own and context.get_parameter_source(name) == ParameterSource.COMMANDLINE
    ]
    if given:
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        raise OptionError("options of a run belong in the study file", got=flags, remedy="write them under [run]")
    stage = StudyArguments(stage=stage).stage
    _study(study, stage, target, device, settings["compile"], settings["threads"], status)


def _study(
    path: str, stage: int | None, out: str, device: str, compiled: bool | None, threads: int | None, status: bool
) -> None:
    from ptq_eval.pretrain.stacked import study

    planned = study.read(path).until(stage)
    if status:
        _print_status(study.status(planned, out))
        return
    import torch

    from ptq_eval.config.device import resolve_device

    if threads:
        torch.set_num_threads(threads)
    with Bar() as bar:
        study.train(planned, out, device=resolve_device(device), compiled=compiled, progress=bar)
    click.echo(f"Written: {out}")


def _print_status(runs: list[Any]) -> None:
    for run in runs:
        click.echo(f"{run.saved:>4} of {run.planned:<4} {run.name}")
    complete = sum(run.saved == run.planned for run in runs)
    saved, planned = sum(run.saved for run in runs), sum(run.planned for run in runs)
    click.echo(f"{complete} of {len(runs)} runs complete, {saved} of {planned} checkpoints saved")


def _one(out: str, device: str, settings: dict[str, Any]) -> None:
    import torch

    from ptq_eval import corpora
    from ptq_eval.config.device import resolve_device
    from ptq_eval.pretrain import pretrain as train

    training = TrainingConfig(**{name: settings.pop(name) for name in declared(TrainingConfig)})
    config, device = PretrainConfig(**settings), resolve_device(device)
    source = corpora.read(training.text)
    if source.text is None:
        allowed = "a text that can be tokenized"
        raise OptionError("--text must be text, not token ids", got=training.text, allowed=allowed)
    if training.threads:
        torch.set_num_threads(training.threads)
    with Bar() as bar:
        train(
            config,
            source.text,
            out,
            source=training.text,
            digest=source.digest,
            device=device,
            compiled=training.compile,
            states=training.states,
            progress=lambda done, total, _loss: bar("training", done, total),
        )
    click.echo(f"Written: {out}")
