"""What a comparison of two results can be asked: the options of `ptq-eval compare`, each declared once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ptq_eval.config.options import Options, option


@dataclass(frozen=True)
class GateConfig(Options):
    """When a result counts as worse than another.  Raises OptionError."""

    tolerance: float = option(
        0.01,
        "Worsening that is accepted, in nats per token (of lm-eval, in the unit of the metric).",
        low=0.0,
        high=100.0,
        metavar="X",
    )
    level: float = option(0.02, "Probability of a false alarm anywhere, at most.", above=0.0, below=0.5, metavar="P")
    judge: Literal["model", "method"] = option(
        "model",
        "What is judged: these very weights (model), or the quantizer (method: what another rounding of the same "
        "quality may explain counts as chance).",
        choices=("model", "method"),
    )


@dataclass(frozen=True)
class GateFiles(Options):
    """Where a comparison is written to.  Raises OptionError."""

    markdown: str = option("", "Write it as Markdown.", metavar="FILE")
    junit: str = option("", "Write JUnit XML, a test case for each cell.", metavar="FILE")
    benchmark_json: str = option(
        "", "Write the losses for github-action-benchmark (customSmallerIsBetter).", metavar="FILE"
    )
    json: str = option("", "Write everything as JSON.", metavar="FILE")
    summary: bool = option(False, "Append the Markdown to the file that $GITHUB_STEP_SUMMARY names.")
