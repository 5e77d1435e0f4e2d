"""What a paper can be asked: the options of `ptq-eval paper`, each declared once."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from ptq_eval.config.options import Options, option
from ptq_eval.errors import OptionError


@dataclass(frozen=True)
class PaperConfig(Options):
    """How main.tex begins, and whether it is compiled.  Raises OptionError."""

    style: Literal["twocolumn", "onecolumn"] = option(
        "twocolumn", "Columns of the article.", choices=("twocolumn", "onecolumn")
    )
    documentclass: str = option(
        "",
        "Another class instead, with its options as in LaTeX: acmart or '[conference]{IEEEtran}'.",
        metavar="CLASS",
        unset="article",
    )
    compile: bool = option(True, "Compile the project with latexmk.", off="--no-compile")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.documentclass and not re.fullmatch(r"(\[[^][{}\\%]*\])?(\{[\w.-]+\}|[\w.-]+)", self.documentclass):
            allowed = "a class, or [options]{class}"
            raise OptionError("--documentclass is not a class of LaTeX", got=self.documentclass, allowed=allowed)

    @property
    def latex_class(self) -> str:
        r"""What follows \documentclass."""
        if not self.documentclass:
            return f"[{self.style},10pt]{{article}}"
        options, name = re.fullmatch(r"(\[.*\])?\{?([^{}]+)\}?", self.documentclass).groups()  # type: ignore[union-attr]
        return f"{options or ''}{{{name}}}"
