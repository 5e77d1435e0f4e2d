"""What a paper can be asked: the options of `ptq-eval paper`, each declared once."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ptq_eval.config.options import Kind, Options, once, option
from ptq_eval.errors import OptionError, PtqEvalError


def _names(value: Any, *, name: str, error: type[PtqEvalError]) -> dict[str, str]:
    """Names by name, from such a mapping or from texts like "old=new"; the last = separates."""
    if isinstance(value, Mapping):
        return {str(old): str(new) for old, new in value.items()}
    pairs = []
    for pair in [value] if isinstance(value, str) or not isinstance(value, Sequence) else value:
        old, equals, new = str(pair).rpartition("=")
        if not (equals and old and new.strip()):
            raise error(f"{name} is not RUN=NAME", got=pair, remedy=f"{name} 'llama-160k=Ours, 160k'")
        pairs.append((old, new.strip()))
    return once(pairs, name, error)


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
    rename: Mapping[str, str] = option(
        {},
        "Another name for a run, in text, tables and figures; may be repeated.",
        Kind(_names, "RUN=NAME"),
        repeated=True,
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
