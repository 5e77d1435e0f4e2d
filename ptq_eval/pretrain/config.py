"""Everything that determines the weights of a training run, checked as a whole before anything is made."""

from __future__ import annotations

from dataclasses import dataclass

from ptq_eval.config.options import COUNT, NUMBER, SWITCH, TEXT, Options, option
from ptq_eval.errors import OptionError
from ptq_eval.pretrain.schedule import SCHEDULES, Schedule

SMALLEST_VOCAB = 257
"""A byte-level tokenizer knows 256 bytes and the end of a text."""


@dataclass(frozen=True)
class PretrainConfig(Options):
    """Everything that determines the weights.  `ratios` are the values of D/N to save; N is non-embedding.

    Raises OptionError.
    """

    architecture: str = option("llama", "llama, gpt2 or gpt-neox.", metavar="NAME")
    width: int = option(64, "Channels of a block: a multiple of 8.", low=1)
    layers: int = option(3, "Blocks.", low=1)
    vocab: int = option(1024, "Entries of the tokenizer, which is trained first.", low=SMALLEST_VOCAB)
    context: int = option(128, "Tokens per window.", low=2)
    batch_size: int = option(16, "Windows per step.", low=1)
    ratios: tuple[float, ...] = option(
        (5.0, 9.0, 16.0, 28.0, 50.0, 90.0, 160.0, 240.0, 320.0, 400.0),
        "Save a checkpoint at each of these ratios of tokens to parameters.",
        NUMBER,
        many=True,
        above=0,
        metavar="D/N,…",
    )
    schedule: Schedule = option(
        "constant",
        "Learning rate over time; wsd: a constant trunk, and an annealed branch for each checkpoint.",
        choices=SCHEDULES,
    )
    learning_rate: float = option(3e-3, "Learning rate at its peak.", above=0)
    warmup: int = option(40, "Steps of warm-up.", low=0)
    decay: float = option(0.2, "Fraction of a wsd branch in which the rate falls.", above=0, high=1)
    weight_decay: float = option(0.1, "Weight decay of AdamW, on matrices.", low=0)
    betas: tuple[float, ...] = option((0.9, 0.95), "The two betas of AdamW.", NUMBER, many=True, low=0, below=1)
    clip: float = option(1.0, "Norm to which gradients are clipped.", above=0)
    seed: int = option(0, "Seed of the initial weights and of the order of the text.", low=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "ratios", tuple(sorted(set(self.ratios))))
        if not self.ratios:
            raise OptionError("--ratios names no checkpoint to save", remedy="--ratios 5,10,20")
        if len(self.betas) != 2:
            raise OptionError("--betas must be two numbers", got=self.betas, remedy="--betas 0.9,0.95")


@dataclass(frozen=True)
class TrainingConfig(Options):
    """What a training reads and how it computes; the weights depend on the text alone.

    Raises OptionError.
    """

    text: str = option("stdlib:train", "Text to train on.")
    states: bool = option(
        False, "Keep the optimizer's state at each checkpoint of the trunk, so that `probe` can start from all of them."
    )
    compile: bool | None = option(None, "Use torch.compile.", SWITCH, off="--no-compile", unset="on CUDA")
    threads: int | None = option(None, "CPU threads.", COUNT, low=1, unset="torch's own choice")


@dataclass(frozen=True)
class StudyArguments(Options):
    """What `ptq-eval pretrain` needs for a study.  Raises OptionError."""

    study: str | None = option(None, "Train the runs of this TOML file.", TEXT, metavar="FILE.toml")
    status: bool = option(False, "Only say how far each run of the study is.")
    stage: int | None = option(None, "Only the runs of a study up to this stage.", COUNT, low=0, unset="all stages")
