"""The command that trains: a small model, saved as a trajectory that `ptq-eval run` can measure."""

from __future__ import annotations

from typing import Any

import click

from ptq_eval.cli import options as cli_options
from ptq_eval.cli.console import Bar
from ptq_eval.errors import OptionError

_options = cli_options.together(
    click.option("--architecture", default="llama", show_default=True, metavar="NAME", help="llama, gpt2, gpt-neox."),
    click.option("--width", default=64, show_default=True, help="Channels of a block: a multiple of 8."),
    click.option("--layers", default=3, show_default=True, help="Blocks."),
    click.option("--vocab", default=1024, show_default=True, help="Entries of the tokenizer, which is trained first."),
    click.option("--context", default=128, show_default=True, help="Tokens per window."),
    click.option("--batch-size", default=16, show_default=True, help="Windows per step."),
    click.option(
        "--ratios",
        default="5,9,16,28,50,90,160,240,320,400",
        show_default=True,
        callback=cli_options.numbers(float, "5,10,20"),
        metavar="D/N,…",
        help="Save a checkpoint at each.",
    ),
    click.option(
        "--schedule",
        default="constant",
        show_default=True,
        type=click.Choice(["constant", "cosine", "wsd"]),
        help="wsd: a constant trunk, and an annealed branch for each checkpoint.",
    ),
    click.option("--learning-rate", default=3e-3, show_default=True, help="At the peak."),
    click.option("--warmup", default=40, show_default=True, help="Steps."),
    click.option("--decay", default=0.2, show_default=True, help="Share of a wsd branch in which the rate falls."),
    click.option("--text", default="stdlib:train", show_default=True, metavar="TEXT", help="What to train on."),
    click.option("--seed", default=0, show_default=True, help="Of initial weights and order of the text."),
    cli_options.device_option,
    click.option("--compile/--no-compile", "compiled", default=None, help="torch.compile.  [default: on CUDA]"),
    click.option(
        "--threads", type=click.IntRange(min=1), metavar="N", help="CPU threads.  [default: torch's own choice]"
    ),
)


@click.command(short_help="Train a small model, saved as a trajectory of checkpoints.")
@click.argument("out")
@_options
def pretrain(out: str, text: str, device: str, compiled: bool | None, threads: int | None, **settings: Any) -> None:
    """Train a small model on a text and save a trajectory of checkpoints under OUT.

    An interrupted training goes on when the same command is given again.

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

    config, device = PretrainConfig(**settings), RunConfig(device=device).resolve_device()
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
