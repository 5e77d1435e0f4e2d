"""`ptq-eval pretrain`: train a small model, saved as a trajectory that `ptq-eval run` can measure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import click

from ptq_eval.cli import options as cli_options
from ptq_eval.cli.console import Bar
from ptq_eval.config.options import COUNT, Options, option
from ptq_eval.errors import OptionError
from ptq_eval.pretrain import PretrainConfig


@dataclass(frozen=True)
class _Process(Options):
    threads: int | None = option(None, "CPU threads.", COUNT, low=1, unset="torch's own choice")


_options = cli_options.together(
    cli_options.options_of(PretrainConfig),
    click.option("--text", default="stdlib:train", show_default=True, metavar="TEXT", help="Text to train on."),
    cli_options.device_option,
    click.option("--compile/--no-compile", "compiled", default=None, help="Use torch.compile.  [default: on CUDA]"),
    cli_options.options_of(_Process),
)


@click.command(short_help="Train a small model, saved as a trajectory of checkpoints.")
@click.argument("out")
@_options
def pretrain(out: str, text: str, device: str, compiled: bool | None, threads: int | None, **settings: Any) -> None:
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

    config, device = PretrainConfig(**settings), resolve_device(device)
    source = corpora.read(text)
    if source.text is None:
        raise OptionError("--text must be text, not token ids", got=text, allowed="a text that can be tokenized")
    if threads:
        torch.set_num_threads(threads)
    with Bar() as bar:
        train(
            config,
            source.text,
            out,
            digest=source.digest,
            device=device,
            compiled=compiled,
            progress=lambda done, total, _loss: bar("training", done, total),
        )
    click.echo(f"Written: {out}")
