"""The options of `ptq-eval adapt`.  This file imports neither torch nor peft, so that help is printed at once."""

from __future__ import annotations

from dataclasses import dataclass

from ptq_eval.config.options import BITS, COUNT, Options, option
from ptq_eval.errors import BitsError, OptionError

UNQUANTIZED_BITS = 16
"""The bits of a base that is not quantized."""
MOST_QUANTIZED = 8
SHARED_WINDOWS = "the batches of the gradient's variance would share windows"
FEWER_WINDOWS = "a smaller --batch-size, fewer --noise-batches (at least 2)"


@dataclass(frozen=True)
class AdaptConfig(Options):
    """Low-rank adaptation of a quantized base: the bases, the adapter, and its training.  Raises OptionError.

    A base of 16 bits is the checkpoint as it is, in float32, and is always among the bases: the others are compared
    with it.  `epochs` pass over the same `train_windows` in an order that the seed decides.  The `noise_batches` have
    no window in common: batches of the same windows would have too small a variance, or none.
    """

    bits: tuple[int, ...] = option(
        (16, 8, 4),
        "Bits of the base; 16 is the checkpoint as it is, and always included.",
        BITS,
        many=True,
        low=2,
        high=UNQUANTIZED_BITS,
        error=BitsError,
        metavar="B,…",
    )
    seeds: tuple[int, ...] = option(
        (0, 1), "Seeds, each of the adapter's first values and of the order of the text.", COUNT, many=True, low=0
    )
    rank: int = option(16, "Rank r of the update.", low=1)
    alpha: float = option(32.0, "The update is multiplied by alpha/r.", above=0)
    epochs: int = option(3, "Passes over the training windows.", low=1)
    learning_rate: float = option(1e-3, "Learning rate of AdamW after warm-up.", above=0)
    warmup: int = option(10, "Steps of warm-up.", low=0)
    clip: float = option(1.0, "Norm to which gradients are clipped.", above=0)
    batch_size: int = option(16, "Windows per step.", low=1)
    train_text: str = option("stdlib:train", "Text to adapt to.")
    train_windows: int = option(512, "Windows of the training text.", low=1)
    noise_batches: int = option(16, "Batches over which the gradient's variance is taken after each epoch.", low=2)

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "bits", tuple(sorted({UNQUANTIZED_BITS, *self.bits}, reverse=True)))
        object.__setattr__(self, "seeds", tuple(dict.fromkeys(self.seeds)))
        for bits in self.quantized:
            if bits > MOST_QUANTIZED:
                allowed = f"2 to {MOST_QUANTIZED}, or {UNQUANTIZED_BITS} for the checkpoint as it is"
                raise BitsError("--bits has a width that no quantizer makes", got=bits, allowed=allowed)
        if not self.seeds:
            raise OptionError("--seeds needs a value", got="none", remedy="--seeds 0,1")
        if self.noise_windows > self.train_windows:
            got = f"{self.batches_asked} with --train-windows {self.train_windows}"
            allowed, remedy = f"at least {self.noise_windows} windows", f"{FEWER_WINDOWS}, or more --train-windows"
            raise OptionError(SHARED_WINDOWS, got=got, allowed=allowed, remedy=remedy)

    @property
    def noise_windows(self) -> int:
        """How many windows the batches of the gradient's variance take."""
        return self.noise_batches * self.batch_size

    @property
    def batches_asked(self) -> str:
        """The batches of the gradient's variance, as options."""
        return f"--noise-batches {self.noise_batches} of --batch-size {self.batch_size}"

    @property
    def quantized(self) -> tuple[int, ...]:
        """The widths of bases that are quantized, widest first."""
        return tuple(bits for bits in self.bits if bits != UNQUANTIZED_BITS)
