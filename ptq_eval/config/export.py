"""What an export can be asked beside the options of a run: the options of `ptq-eval export`, each declared once.

This file imports no torch, so that help is printed at once.
"""

from __future__ import annotations

from dataclasses import dataclass

from ptq_eval.config.options import BITS, Options, option
from ptq_eval.errors import BitsError, NumberFormatError, OptionError

DEFAULT_BITS = 4


@dataclass(frozen=True)
class ExportConfig(Options):
    """One quantizer, with one bit-width, number format or plan, and the format of the files.  Raises OptionError."""

    quantizer: str = option("gptq", "Method to quantize with.", metavar="NAME")
    bits: int | None = option(
        None,
        "Bit-width of integers.",
        BITS,
        low=2,
        high=8,
        metavar="B",
        unset=f"{DEFAULT_BITS}, unless --number-format or --mixed",
        error=BitsError,
    )
    number_format: str = option(
        "", "A number format instead; see `ptq-eval formats`.", metavar="NAME", error=NumberFormatError
    )
    mixed: str = option("", "A number format for each layer instead, from this plan.", metavar="FILE")
    file_format: str = option(
        "compressed-tensors",
        "Format of the files: compressed-tensors, gptq, awq, gguf, or fake (full precision, loads everywhere).",
        flag="--format",
        metavar="NAME",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        asked = {"--bits": self.bits, "--number-format": self.number_format, "--mixed": self.mixed}
        given = {flag: value for flag, value in asked.items() if value}
        if len(given) > 1:
            raise OptionError(
                f"{' and '.join(given)} exclude each other",
                got=" ".join(f"{flag} {value}" for flag, value in given.items()),
                remedy="give one of them",
            )

    def grid(self) -> dict[str, object]:
        """The quantizer and the scheme as options of a run."""
        bits = () if self.number_format or self.mixed else (self.bits or DEFAULT_BITS,)
        return {"quantizers": self.quantizer, "bits": bits, "formats": self.number_format, "mixed": self.mixed}
