"""`ptq-eval pretrain`: train a small model, saved as a trajectory that `ptq-eval run` can measure."""

from __future__ import annotations

from typing import Any

import click

from ptq_eval.cli import options as cli_options
from ptq_eval.cli.console import Bar
from ptq_eval.config.options import declared
from ptq_eval.errors import OptionError
from ptq_eval.pretrain.config import PretrainConfig, TrainingConfig

_options = cli_options.together(
    cli_options.options_of(PretrainConfig), cli_options.device_option, cli_options.options_of(TrainingConfig)
)


@click.command(short_help="Train a small model, saved as a trajectory of checkpoints.")
@click.argument("out")
@_options
def pretrain(out: str, device: str, **settings: Any) -> None:
    """Train a small model on a text and save a trajectory of checkpoints under OUT.

    Repeat the command to resume an interrupted training.

    \b
    Examples:
      ptq-eval pretrain runs/small --width 32 --ratios 5,10,20,50,100,200
      ptq-eval pretrain runs/annealed --schedule wsd --text my-text.txt
    """
    import torch

    from ptq_eval import corpora
    from ptq_eval.config.run import resolve_device
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
            digest=source.digest,
            device=device,
            compiled=training.compile,
            progress=lambda done, total, _loss: bar("training", done, total),
        )
    click.echo(f"Written: {out}")
